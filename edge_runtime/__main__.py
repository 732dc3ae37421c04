"""The runtime's commands: `python -m edge_runtime run|train|predict|datasets`."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge_runtime.agent import command as agent
from edge_runtime.agent.config import AgentConfig
from edge_runtime.datasets import command as datasets

if TYPE_CHECKING:
    from edge_runtime.training.worker import LocalWorker


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is the command's own (see its --help), 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="python -m edge_runtime", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    agent.add_arguments(commands.add_parser("run", help="join a federation over MQTT"))
    datasets.add_arguments(commands.add_parser("datasets", help="make data sets"))
    local = {"train": "train locally, without a network", "predict": "run a plain model over some images"}
    parsers = {name: commands.add_parser(name, help=text) for name, text in local.items()}
    # The engine is loaded by the commands that compute; the others work without it.
    if (arguments or sys.argv[1:])[:1] in (["train"], ["predict"]):
        from edge_runtime.training import command as training

        training.add_train_arguments(parsers["train"])
        training.add_predict_arguments(parsers["predict"])
        args = parser.parse_args(arguments)
        return training.train(args) if args.command == "train" else training.predict(args)
    args = parser.parse_args(arguments)
    return datasets.run(args) if args.command == "datasets" else agent.run(args, _worker)


def _worker(config: AgentConfig) -> "LocalWorker":
    from edge_runtime.training.worker import LocalWorker

    return LocalWorker(config.data, config.state, config.threads, official=config.engine == "official")


if __name__ == "__main__":
    sys.exit(main())
