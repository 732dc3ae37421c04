"""The runtime's commands: `python -m edge_runtime run|train|predict|split-train|encoder-server|datasets|energy`."""

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from devices.cli.program import COMPLETION, add_completion, called
from devices.cli.run import UsageError
from devices.cli.settings import ConfigInvalid
from edge_runtime.agent import command as agent
from edge_runtime.agent.config import AgentConfig
from edge_runtime.datasets import command as datasets

if TYPE_CHECKING:
    from edge_runtime.energy.account import EnergyAccount
    from edge_runtime.worker import LocalWorker

_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is the command's own (see its --help), 2 for a wrong command line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog=called("edge_runtime"), description=__doc__)
    add_completion(parser, "edge_runtime")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    joins = commands.add_parser("run", help="join a federation over MQTT")
    agent.add_arguments(joins)
    joins.set_defaults(call=lambda args: agent.run(args, _worker, make_account=_account))
    makes = commands.add_parser("datasets", help="make data sets")
    datasets.add_arguments(makes)
    makes.set_defaults(call=datasets.run)
    for names, load in _LOADED_LATE:
        parsers = {name: commands.add_parser(name, help=text) for name, text in names.items()}
        if words and words[0] in {*names, COMPLETION}:
            words = load(parsers, words)
    args = parser.parse_args(words)
    call: Callable[[argparse.Namespace], int] = args.call
    return call(args)


Parsers = Mapping[str, argparse.ArgumentParser]


def _energy(parsers: Parsers, words: list[str]) -> list[str]:
    """Add what the commands take, and what they do; return the words that are not another program's."""
    from edge_runtime.energy import command as energy

    ours, command = energy.split(words)
    energy.add_arguments(parsers["energy"])
    parsers["energy"].set_defaults(call=lambda args: energy.run(args, command))
    return ours


def _training(parsers: Parsers, words: list[str]) -> list[str]:
    from edge_runtime.training import command as training

    training.add_train_arguments(parsers["train"])
    parsers["train"].set_defaults(call=training.train)
    training.add_predict_arguments(parsers["predict"])
    parsers["predict"].set_defaults(call=training.predict)
    return words


def _split_learning(parsers: Parsers, words: list[str]) -> list[str]:
    from edge_runtime.split_learning import command as split

    split.add_train_arguments(parsers["split-train"])
    parsers["split-train"].set_defaults(call=split.train)
    split.add_server_arguments(parsers["encoder-server"])
    parsers["encoder-server"].set_defaults(call=split.serve_encoder)
    return words


# What only some commands need is loaded by them: the engine, and recordings of energy. A device counts its memory.
_LOADED_LATE: Sequence[tuple[Mapping[str, str], Callable[[Parsers, list[str]], list[str]]]] = (
    ({"energy": "measure the energy of a command or of the idle machine"}, _energy),
    (
        {"train": "train locally, without a network", "predict": "run a plain model over some images"},
        _training,
    ),
    (
        {
            "split-train": "train stem and heads here, and the encoder in a process of its own",
            "encoder-server": "that process: compute a bundle's encoder for requests on its standard input",
        },
        _split_learning,
    ),
)


def _worker(config: AgentConfig) -> "LocalWorker":
    from edge_runtime.agent.identity import noise_key
    from edge_runtime.training.service_memory import unheld_limit_bytes
    from edge_runtime.worker import LocalWorker

    if (limit_bytes := unheld_limit_bytes()) is not None:
        _log.warning(
            "the kernel does not hold this service to its %d MiB of memory (on a Raspberry Pi cgroup_enable=memory is "
            "missing in cmdline.txt): the agent watches itself, and gives up work that takes more",
            limit_bytes >> 20,
        )
    return LocalWorker(
        config.data,
        config.state,
        config.threads,
        ort_training=config.ort_training,
        checkpoint_s=config.checkpoint_s,
        memory_budget_bytes=config.memory_budget_bytes,
        unheld_limit_bytes=limit_bytes,
        noise_key=noise_key(config.state),
    )


def _account(config: AgentConfig) -> "EnergyAccount":
    """Return the account of this device's energy. Raises ConfigInvalid for its meter's settings, and MeterUnusable."""
    from devices.health import HealthProbe
    from edge_runtime.energy.account import EnergyAccount
    from edge_runtime.energy.meter import MeterUnusable, open_meter
    from edge_runtime.energy.recording import calibration
    from edge_runtime.energy.recording.calibrated import CalibratedMeter

    try:
        found = open_meter(
            config.meter,
            root=config.meter_root,
            user=config.meter_user,
            password_file=config.meter_password_file,
            ca_file=config.meter_ca_file,
        )
    except UsageError as exc:
        raise ConfigInvalid(f"meter: {exc}") from exc
    if found.meter is None and config.meter not in {"auto", "none"}:
        raise MeterUnusable("; ".join(found.reasons))
    path, meter = config.state / "energy.journal", found.meter
    try:
        if meter is not None and config.meter_calibration is not None:
            meter = CalibratedMeter(meter, calibration.read(config.meter_calibration))
    except calibration.CalibrationInvalid as exc:
        raise ConfigInvalid(f"meter_calibration: {exc}") from exc
    return EnergyAccount(meter, health=HealthProbe(config.meter_root), path=path, reasons=found.reasons)


if __name__ == "__main__":
    sys.exit(main())
