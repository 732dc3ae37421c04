"""`python -m devices flash`: an image onto a card or into a file, for one device or a fleet.

Without --yes everything is checked and shown, and nothing is written.
"""

import argparse
import getpass
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from devices.firstboot.settings import SettingsInvalid
from devices.flashing.card import Card, Enrol, order, over, read_fleet
from devices.flashing.image import Survey, survey
from devices.flashing.job import Plan, describe, execute, prepare
from devices.flashing.kind import WAYS
from devices.flashing.progress import bar

NOT_CONFIRMED = 1
_HELP = {
    "device": ("--device-id", "NAME", "the device's name, as it was enrolled"),
    "board": ("--board", "BOARD", "the kind of board: a name that `list` prints"),
    "image": ("--image", "FILE", "the system's image, plain or as .xz, .gz or .zip"),
    "sha256": ("--sha256", "HEX", "the image's SHA-256 as its maker states it, packed or unpacked"),
    "to": ("--to", "TARGET", "a disk such as /dev/sdX, or a file to write"),
    "server": ("--server", "URL", "the broker's address on the board: mqtts://host:8883"),
    "agent": ("--agent", "FILE", "agent.toml from `python -m broker_server enrol`"),
    "enrol": ("--enrol", "FOLDER", "the server's state folder: the device is enrolled now"),
    "ca": ("--ca", "FILE", "with --enrol: certificates to trust for mqtts://"),
    "wheels": ("--wheels", "FOLDER", "from `python -m devices wheelhouse`"),
    "data": ("--data", "FOLDER", "a data set to take along, if it is small"),
    "user": ("--user", "NAME", "the person's user on the board (default: mas)"),
    "ssh_key": ("--ssh-key", "FILE", "public keys by which that user enters"),
    "password_hash_file": ("--password-hash-file", "FILE", "a hash from `openssl passwd -6`, for a password"),
    "wifi": ("--wifi", "SSID", "a Wi-Fi network"),
    "wifi_password_file": ("--wifi-password-file", "FILE", "its password; asked for in a terminal"),
    "wifi_country": ("--wifi-country", "CC", "the country whose rules for radio hold: DE, GB, US …"),
    "wifi_hidden": ("--wifi-hidden", "", "the network does not announce itself"),
    "timezone": ("--timezone", "ZONE", "as in Europe/Berlin"),
    "ntp": ("--ntp", "HOST", "a time server, for a network without the internet's"),
    "memory_max_mib": ("--memory-max-mib", "MIB", "what the agent may use (default: all but the board's reserve)"),
    "first_boot": ("--first-boot", "WAY", "how the image is told, if it cannot be seen"),
}


def add_arguments(parser: argparse.ArgumentParser, enrol: Enrol) -> None:
    """The arguments of `flash`."""
    parser.epilog = __doc__.partition("\n\n")[2]
    for name, (flag, metavar, text) in _HELP.items():
        if name == "wifi_hidden":
            parser.add_argument(flag, dest=name, action="store_true", default=None, help=text)
        elif name == "first_boot":
            parser.add_argument(flag, dest=name, choices=WAYS, help=text)
        else:
            kind = int if name == "memory_max_mib" else str
            parser.add_argument(flag, dest=name, metavar=metavar, type=kind, help=text)
    parser.add_argument("--fleet", type=Path, metavar="fleet.toml", help="many devices; the flags above go over it")
    parser.add_argument("--only", action="append", metavar="NAME", help="of the fleet, this device; may be repeated")
    parser.add_argument("--yes", action="store_true", help="write")
    parser.set_defaults(run=lambda args: run(args, enrol))


def run(args: argparse.Namespace, enrol: Enrol) -> int:
    """Check all, show the plans, and write if that was confirmed. 0 written, 1 not confirmed."""
    given = Card(**{name: getattr(args, name) for name in _HELP})
    cards = (given,) if args.fleet is None else tuple(over(given, card) for card in _fleet(args))
    ask = getpass.getpass if sys.stdin.isatty() else None
    with tempfile.TemporaryDirectory(prefix="mas-edge-flash-") as name:
        scratch = Path(name)
        seen: dict[tuple[str, str | None], Survey] = {}
        plans = []
        for card in cards:
            plans.append(_plan(card, scratch, enrol, ask, seen))
            print(describe(plans[-1], stated=card.sha256 is not None), flush=True)
        if not args.yes:
            print("nothing was written: the same command with --yes writes", flush=True)
            return NOT_CONFIRMED
        for number, plan in enumerate(plans, 1):
            _next_card(plans, number)
            execute(plan, bar)
            print(f"{plan.order.settings.device}: written and read back", flush=True)
    return 0


def _plan(
    card: Card,
    scratch: Path,
    enrol: Enrol,
    ask: Callable[[str], str] | None,
    seen: dict[tuple[str, str | None], Survey],
) -> Plan:
    ordered = order(card, scratch, enrol, ask)
    key = (str(card.image), card.sha256)
    if key not in seen:
        image = Path(str(card.image)).expanduser()
        with bar("checking", None) as progress:
            seen[key] = survey(image, scratch / f"boot-{len(seen)}.img", sha256=card.sha256, progress=progress)
    return prepare(ordered, seen[key], scratch)


def _fleet(args: argparse.Namespace) -> tuple[Card, ...]:
    if args.device is not None:
        raise SettingsInvalid("--device-id names one card and --fleet many: use --only NAME to pick from the fleet")
    cards = read_fleet(args.fleet)
    if args.only is None:
        return cards
    if unknown := sorted(set(args.only) - {str(card.device) for card in cards}):
        raise SettingsInvalid(f"{args.fleet} has no device {', '.join(unknown)}")
    return tuple(card for card in cards if card.device in args.only)


def _next_card(plans: list[Plan], number: int) -> None:
    """Wait for a person to change the card, where the same reader is to be written again."""
    places = [plan.order.target.describe() for plan in plans]
    if number > 1 and places[number - 1] in places[: number - 1]:
        device = plans[number - 1].order.settings.device
        if not sys.stdin.isatty():
            raise SettingsInvalid(
                f"{device} goes to the same place as a device before it: write it alone, with --only {device}"
            )
        input(f"put in the card for {device} and press Enter ")
