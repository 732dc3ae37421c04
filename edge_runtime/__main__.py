"""The runtime's commands: `python -m edge_runtime run|train|predict|train-apart|general|datasets|energy`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.agent import command as agent
from edge_runtime.agent.config import AgentConfig, ConfigInvalid
from edge_runtime.datasets import command as datasets
from edge_runtime.energy import command as energy
from edge_runtime.energy.recording import command as recording

if TYPE_CHECKING:
    from devices.meters import Found, Meter
    from edge_runtime.energy.account import EnergyAccount
    from edge_runtime.worker import LocalWorker


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is the command's own (see its --help), 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="python -m edge_runtime", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    agent.add_arguments(commands.add_parser("run", help="join a federation over MQTT"))
    datasets.add_arguments(commands.add_parser("datasets", help="make data sets"))
    energy.add_arguments(commands.add_parser("energy", help="measure the energy of a command or of the idle machine"))
    local = {
        "train": "train locally, without a network",
        "predict": "run a plain model over some images",
        "train-apart": "train stem and heads here, and the encoder in a process of its own",
        "general": "that process: computes a bundle's encoder for who writes to its standard input",
    }
    parsers = {name: commands.add_parser(name, help=text) for name, text in local.items()}
    # The engine is loaded by the commands that compute; the others work without it.
    if (arguments or sys.argv[1:])[:1] in (["train"], ["predict"]):
        from edge_runtime.training import command as training

        training.add_train_arguments(parsers["train"])
        training.add_predict_arguments(parsers["predict"])
        args = parser.parse_args(arguments)
        return training.train(args) if args.command == "train" else training.predict(args)
    if (arguments or sys.argv[1:])[:1] in (["train-apart"], ["general"]):
        from edge_runtime.split_learning import command as apart

        apart.add_train_arguments(parsers["train-apart"])
        apart.add_general_arguments(parsers["general"])
        args = parser.parse_args(arguments)
        return apart.train(args) if args.command == "train-apart" else apart.general(args)
    if (arguments or sys.argv[1:])[:1] == ["energy"]:
        from devices.health import HealthProbe

        words, command = energy.split(arguments or sys.argv[1:])
        args = parser.parse_args(words)
        if args.energy_command is not None:
            return recording.run(
                args, lambda source: _open(source, args.root, args.mqtt_user, args.mqtt_password_file, args.mqtt_ca)
            )
        return energy.run(args, command, _meter, HealthProbe(args.root))
    args = parser.parse_args(arguments)
    return datasets.run(args) if args.command == "datasets" else agent.run(args, _worker, make_account=_account)


def _worker(config: AgentConfig) -> "LocalWorker":
    from edge_runtime.worker import LocalWorker

    return LocalWorker(
        config.data,
        config.state,
        config.threads,
        official=config.official,
        checkpoint_s=config.checkpoint_s,
        memory_budget_bytes=config.memory_budget_bytes,
    )


def _account(config: AgentConfig) -> "EnergyAccount":
    """What books this device's energy. Raises ConfigInvalid for a meter or calibration that is none, MeterUnusable."""
    from devices.health import HealthProbe
    from edge_runtime.energy.account import EnergyAccount
    from edge_runtime.energy.meter import MeterUnusable
    from edge_runtime.energy.recording import calibration
    from edge_runtime.energy.recording.calibrated import CalibratedMeter

    try:
        found = _open(
            config.meter, config.meter_root, config.meter_user, config.meter_password_file, config.meter_ca_file
        )
    except ValueError as exc:
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


def _meter(args: argparse.Namespace) -> "tuple[Meter | None, tuple[str, ...]]":
    found = _open(args.source, args.root, args.mqtt_user, args.mqtt_password_file, args.mqtt_ca)
    return found.meter, found.reasons


def _open(source: str, root: Path, user: str, password_file: Path | None, ca_file: Path | None) -> "Found":
    """A meter of this board's, and MQTT for those that need it. Raises ValueError."""
    from devices.meters import open_source
    from edge_runtime.energy.listener import listen

    def hear(url: str, topic: str, take: Callable[[bytes], None]) -> Callable[[], None]:
        password = energy.read_password(password_file)
        return listen(url, topic, take, username=user, password=password, ca_file=ca_file)

    return open_source(source, root=root, listen=hear)


if __name__ == "__main__":
    sys.exit(main())
