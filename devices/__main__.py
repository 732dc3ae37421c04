"""Boards: `python -m devices list|show|detect|wheelhouse|flash|jetson|provision`.

Exit codes: 0 done · 1 not confirmed, nothing was written · 2 wrong usage or configuration · 3 an image, a card or
wheels cannot be used and nothing was written · 4 a target could not be written to its end · 130
stopped.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from devices import catalogue, wheelhouse
from devices.cli.program import add_completion, called
from devices.cli.run import BAD_INPUT, DONE, HALF_WRITTEN, USAGE, UsageError
from devices.cli.run import run as run_command
from devices.firstboot.agent import CA_NAME
from devices.flashing import command as flashing
from devices.flashing.card import Card
from devices.flashing.disk import TargetRefused
from devices.flashing.fat import FatUnusable
from devices.flashing.image import ImageInvalid, ScratchFull
from devices.flashing.kind import KindUnknown
from devices.flashing.target import WriteFailed
from devices.profile import ProfileInvalid, load
from devices.provisioning import command as provisioning
from devices.provisioning import upkeep
from devices.provisioning.jetson import RootfsUnusable
from devices.provisioning.ssh import HostUnusable
from devices.wheelhouse import WheelhouseInvalid

SERVER_KEY = "server.key"
"""A file that every server's state folder has."""
_FAULTS: dict[type[Exception], int] = {
    ProfileInvalid: USAGE,
    ImageInvalid: BAD_INPUT,
    ScratchFull: BAD_INPUT,
    KindUnknown: BAD_INPUT,
    FatUnusable: BAD_INPUT,
    TargetRefused: BAD_INPUT,
    RootfsUnusable: BAD_INPUT,
    HostUnusable: BAD_INPUT,
    WheelhouseInvalid: BAD_INPUT,
    WriteFailed: HALF_WRITTEN,
    OSError: BAD_INPUT,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = parser().parse_args(arguments)
    return run_command(partial(args.run, args), _FAULTS, stopped="stopped; a card that was being written is not usable")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    whole = argparse.ArgumentParser(prog=called("devices"), description=(__doc__ or "").partition("\n")[0])
    add_completion(whole, "devices")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    catalogue.add_arguments(commands)
    wheels = commands.add_parser(
        "wheelhouse", help="fetch the wheels that a board installs, so that it needs no internet"
    )
    wheels.add_argument("--board", required=True, metavar="BOARD", help="the kind of board: a name that `list` prints")
    wheels.add_argument("--system", metavar="NAME", help="its system, as `show` names it (default: the newest)")
    wheels.add_argument("--python", metavar="X.Y", help="another Python than the system's, put beside it on the board")
    wheels.add_argument("--out", type=Path, metavar="FOLDER", help="where they go (default: wheels/BOARD)")
    wheels.add_argument("--sources", type=Path, default=Path(), metavar="FOLDER", help="the project (default: here)")
    wheels.set_defaults(run=_wheelhouse)
    flashing.add_arguments(commands.add_parser("flash", help="write a system's image, set up for a device"), _enrol)
    provisioning.add_arguments(
        commands.add_parser("jetson", help="put a device's first boot into a Jetson's root file system"),
        commands.add_parser("provision", help="set up a board that runs already, by SSH"),
        _enrol,
    )
    upkeep.add_arguments(
        commands.add_parser("update", help="install another version on boards that are set up, by SSH"),
        commands.add_parser("uninstall", help="take the agent off boards, by SSH"),
        commands.add_parser("logs", help="print the last lines of boards' logs, by SSH"),
    )
    return whole


def _wheelhouse(args: argparse.Namespace) -> int:
    profile = load(args.board)
    system = profile.system(args.system)
    if args.python is not None:
        if re.fullmatch(r"3\.\d{1,2}", args.python) is None:
            raise WheelhouseInvalid(f"{args.python!r} is no version of Python: write it as in 3.11")
        system = msgspec.structs.replace(system, python=args.python)
    made = wheelhouse.make(profile, system, args.out or Path("wheels") / profile.name, args.sources)
    print(f"{made.folder}: {len(made.files)} wheels for Python {made.python}, {made.size_bytes / 1e6:.1f} MB")
    return DONE


def _enrol(device: str, out: Path, card: Card) -> None:
    """Write a device's agent.toml by the server's own command, with the state folder that the card names."""
    state = Path(str(card.enrol)).expanduser()
    if not (state / SERVER_KEY).is_file():
        raise UsageError(
            f"{state} is no server's state folder: it has no {SERVER_KEY}; start the server once, or enrol there"
        )
    words = [sys.executable, "-m", "broker_server", "enrol", device, "--out", str(out), "--state", str(state)]
    words += [] if card.server is None else ["--url", card.server]
    words += [] if card.ca is None else ["--ca-file", CA_NAME]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(done.stderr.strip().removeprefix("error: "))


if __name__ == "__main__":
    sys.exit(main())
