"""`python -m devices flash`: an image onto a card or into a file, for one device or a fleet.

Without --yes the command checks and shows everything, and writes nothing.
"""

import argparse
import getpass
import sys
import tempfile
from pathlib import Path

from devices.cli.run import DONE, NOT_CONFIRMED, UsageError
from devices.flashing import flags
from devices.flashing.card import Card, Enrol, flash_request, overlay, read_fleet
from devices.flashing.image import Survey, survey
from devices.flashing.job import FlashRequest, describe, execute, prepare, system_on
from devices.flashing.progress import bar
from devices.flashing.system import InstalledSystem

Surveyed = tuple[Survey, InstalledSystem]


def add_arguments(parser: argparse.ArgumentParser, enrol: Enrol) -> None:
    """Add the arguments of `flash`."""
    parser.epilog = __doc__.partition("\n\n")[2]
    flags.add(parser, flags.HELP)
    parser.add_argument("--fleet", type=Path, metavar="fleet.toml", help="many devices; the flags above override it")
    parser.add_argument("--only", action="append", metavar="NAME", help="of the fleet, this device; may be repeated")
    parser.add_argument("--yes", action="store_true", help="write")
    parser.set_defaults(run=lambda args: run(args, enrol))


def run(args: argparse.Namespace, enrol: Enrol) -> int:
    """Check all, show the plans, and write if --yes was given; return 0 if written, 1 if not confirmed."""
    flagged = flags.card(args)
    cards = (flagged,) if args.fleet is None else tuple(overlay(flagged, card) for card in _fleet(args))
    ask = getpass.getpass if sys.stdin.isatty() else None
    with tempfile.TemporaryDirectory(prefix="mas-edge-flash-") as name:
        scratch = Path(name)
        surveys: dict[tuple[str, str | None], Surveyed] = {}
        requests = [(flash_request(card, scratch, enrol, ask), card) for card in cards]
        for request, card in requests:
            plan = prepare(request, *_survey(card, scratch, surveys), scratch)
            print(describe(plan, stated=card.sha256 is not None), flush=True)
            plan.boot.unlink()  # one boot partition at a time: a fleet's would fill the disk
        if not args.yes:
            print("nothing was written: the same command with --yes writes", flush=True)
            return NOT_CONFIRMED
        again = _again([request for request, _card in requests])
        for request, card in requests:
            if request.settings.device in again:
                input(f"put in the card for {request.settings.device} and press Enter ")
            plan = prepare(request, *_survey(card, scratch, surveys), scratch)
            execute(plan, bar)
            plan.boot.unlink()
            print(f"{request.settings.device}: written and read back", flush=True)
    return DONE


def _survey(card: Card, scratch: Path, surveys: dict[tuple[str, str | None], Surveyed]) -> Surveyed:
    """Return the survey of the card's image, and the system on it; an image is read once for all its cards."""
    key = (str(card.image), card.sha256)
    if key not in surveys:
        image = Path(str(card.image)).expanduser()
        with bar("checking", None) as progress:
            found = survey(image, scratch / f"boot-{len(surveys)}.img", sha256=card.sha256, progress=progress)
        surveys[key] = found, system_on(found)
    return surveys[key]


def _fleet(args: argparse.Namespace) -> tuple[Card, ...]:
    if args.device is not None:
        raise UsageError("--device-id names one card and --fleet many: use --only NAME to pick from the fleet")
    cards = read_fleet(args.fleet)
    if args.only is None:
        return cards
    if unknown := sorted(set(args.only) - {str(card.device) for card in cards}):
        raise UsageError(f"{args.fleet} has no device {', '.join(unknown)}")
    return tuple(card for card in cards if card.device in args.only)


def _again(requests: list[FlashRequest]) -> set[str]:
    """Return the devices that go to the same place as one before them: a person changes the card. Raises UsageError."""
    places = [each.target.describe() for each in requests]
    again = {each.settings.device for number, each in enumerate(requests) if places[number] in places[:number]}
    if again and not sys.stdin.isatty():
        raise UsageError(
            f"{min(again)} goes to the same place as a device before it: write it alone, with --only {min(again)}"
        )
    return again
