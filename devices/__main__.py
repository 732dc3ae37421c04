"""Boards: `python -m devices list|show|detect`.

Exit codes: 0 done · 2 wrong usage or configuration.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from devices import catalogue
from devices.profile import ProfileInvalid

OK, USAGE = 0, 2
_FAULTS: dict[type[Exception], int] = {ProfileInvalid: USAGE}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    args = parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        return run(args)
    except tuple(_FAULTS) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return next(code for kind, code in _FAULTS.items() if isinstance(exc, kind))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(prog="python -m devices", description=(__doc__ or "").partition("\n")[0])
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    catalogue.add_arguments(commands)
    return whole


if __name__ == "__main__":
    sys.exit(main())
