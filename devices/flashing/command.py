"""`python -m devices flash`: an image onto a card or into a file, for one device or a fleet.

Without --yes everything is checked and shown, and nothing is written.
"""

import argparse
import getpass
import sys
import tempfile
from pathlib import Path

from devices.cli.run import DONE, NOT_CONFIRMED, UsageError
from devices.flashing import flags
from devices.flashing.card import Card, Enrol, order, over, read_fleet
from devices.flashing.image import Survey, survey
from devices.flashing.job import FlashRequest, describe, execute, prepare
from devices.flashing.progress import bar


def add_arguments(parser: argparse.ArgumentParser, enrol: Enrol) -> None:
    """The arguments of `flash`."""
    parser.epilog = __doc__.partition("\n\n")[2]
    flags.add(parser, flags.HELP)
    parser.add_argument("--fleet", type=Path, metavar="fleet.toml", help="many devices; the flags above go over it")
    parser.add_argument("--only", action="append", metavar="NAME", help="of the fleet, this device; may be repeated")
    parser.add_argument("--yes", action="store_true", help="write")
    parser.set_defaults(run=lambda args: run(args, enrol))


def run(args: argparse.Namespace, enrol: Enrol) -> int:
    """Check all, show the plans, and write if that was confirmed. 0 written, 1 not confirmed."""
    given = flags.card(args)
    cards = (given,) if args.fleet is None else tuple(over(given, card) for card in _fleet(args))
    ask = getpass.getpass if sys.stdin.isatty() else None
    with tempfile.TemporaryDirectory(prefix="mas-edge-flash-") as name:
        scratch = Path(name)
        seen: dict[tuple[str, str | None], Survey] = {}
        orders = [(order(card, scratch, enrol, ask), card) for card in cards]
        for ordered, card in orders:
            plan = prepare(ordered, _survey(card, scratch, seen), scratch)
            print(describe(plan, stated=card.sha256 is not None), flush=True)
            plan.boot.unlink()  # one boot partition at a time: a fleet's would fill the disk
        if not args.yes:
            print("nothing was written: the same command with --yes writes", flush=True)
            return NOT_CONFIRMED
        again = _again([ordered for ordered, _card in orders])
        for ordered, card in orders:
            if ordered.settings.device in again:
                input(f"put in the card for {ordered.settings.device} and press Enter ")
            plan = prepare(ordered, _survey(card, scratch, seen), scratch)
            execute(plan, bar)
            plan.boot.unlink()
            print(f"{ordered.settings.device}: written and read back", flush=True)
    return DONE


def _survey(card: Card, scratch: Path, seen: dict[tuple[str, str | None], Survey]) -> Survey:
    """The card's image, read once however many cards it is for."""
    key = (str(card.image), card.sha256)
    if key not in seen:
        image = Path(str(card.image)).expanduser()
        with bar("checking", None) as progress:
            seen[key] = survey(image, scratch / f"boot-{len(seen)}.img", sha256=card.sha256, progress=progress)
    return seen[key]


def _fleet(args: argparse.Namespace) -> tuple[Card, ...]:
    if args.device is not None:
        raise UsageError("--device-id names one card and --fleet many: use --only NAME to pick from the fleet")
    cards = read_fleet(args.fleet)
    if args.only is None:
        return cards
    if unknown := sorted(set(args.only) - {str(card.device) for card in cards}):
        raise UsageError(f"{args.fleet} has no device {', '.join(unknown)}")
    return tuple(card for card in cards if card.device in args.only)


def _again(orders: list[FlashRequest]) -> set[str]:
    """Devices that go to the same place as one before them: a person changes the card. Raises UsageError."""
    places = [each.target.describe() for each in orders]
    again = {each.settings.device for number, each in enumerate(orders) if places[number] in places[:number]}
    if again and not sys.stdin.isatty():
        raise UsageError(
            f"{min(again)} goes to the same place as a device before it: write it alone, with --only {min(again)}"
        )
    return again
