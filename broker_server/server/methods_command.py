"""`python -m broker_server methods`: the table of methods, printed."""

import argparse
from typing import get_args

import msgspec

from broker_server.strategies.methods import METHODS, shown
from broker_server.strategies.settings import StrategyName
from devices.cli.run import DONE

STRATEGIES = get_args(StrategyName)
"""The names that the setting `grouping.strategy` takes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `methods`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Print the methods; the exit code."""
    print(msgspec.json.format(msgspec.json.encode(METHODS), indent=1).decode() if options.json else shown(METHODS))
    return DONE
