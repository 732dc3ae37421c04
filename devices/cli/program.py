"""What a program is called, and the completion of its command line in a shell."""

# coverage: every branch

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPTS = {
    "broker_server": "mas-edge-server",
    "devices": "mas-edge-devices",
    "edge_runtime": "mas-edge-agent",
    "export": "mas-edge-export",
}
"""The installed script of each package; pyproject.toml has them too."""
COMPLETION = "--print-completion"


def called(package: str) -> str:
    """Return what a user types to start the package's program: its script, or `python -m PACKAGE`."""
    name = Path(sys.argv[0]).name
    return name if name == SCRIPTS[package] else f"python -m {package}"


def add_completion(parser: argparse.ArgumentParser, package: str, *, is_shown: bool = True) -> None:
    """Add the flag that prints how a shell completes the package's script, from the parser as it is when asked.

    What is not shown in the help is taken all the same.
    """

    class PrintCompletion(argparse.Action):
        def __call__(
            self,
            parser: argparse.ArgumentParser,
            namespace: argparse.Namespace,  # noqa: ARG002  (argparse's own)
            values: str | Sequence[object] | None,
            option_string: str | None = None,
        ) -> None:
            try:
                import shtab
            except ImportError:
                parser.error(f"{option_string} needs the package shtab: pip install shtab")
            parser.prog = SCRIPTS[package]
            print(shtab.complete(parser, str(values)))
            parser.exit()

    shells = ("bash", "zsh", "tcsh")
    about = f"print the completion of this command line for {', '.join(shells)}, and end"
    parser.add_argument(
        COMPLETION,
        action=PrintCompletion,
        choices=shells,
        metavar="SHELL",
        help=about if is_shown else argparse.SUPPRESS,
    )
