"""The flags of a board's setup, the same for a card, a Jetson and SSH."""

import argparse
import re
from collections.abc import Iterable

from devices.cli.run import UsageError
from devices.flashing.card import Card
from devices.flashing.kind import WAYS

HELP = {
    "device": ("--device-id", "NAME", "the device's name, as it was enrolled"),
    "board": ("--board", "BOARD", "the kind of board: a name that `list` prints"),
    "image": ("--image", "FILE", "the system's image, plain or as .xz, .gz, .bz2 or .zip"),
    "sha256": ("--sha256", "HEX", "the image's SHA-256 as its maker states it, packed or unpacked"),
    "to": ("--to", "TARGET", "a disk such as /dev/sdX, or a file to write"),
    "server": ("--server", "URL", "the broker's address on the board: mqtts://host:8883"),
    "agent": ("--agent", "FILE", "agent.toml from `python -m broker_server enrol`"),
    "enrol": ("--enrol", "FOLDER", "the server's state folder: the device is enrolled now"),
    "ca": ("--ca", "FILE", "with --enrol: certificates to trust for mqtts://"),
    "wheels": ("--wheels", "FOLDER", "from `python -m devices wheelhouse`"),
    "data": ("--data", "FOLDER", "a data set to include, if it is small"),
    "user": ("--user", "NAME", "the person's user on the board (default: mas)"),
    "ssh_key": ("--ssh-key", "FILE", "public keys that log that user in"),
    "password_hash_file": ("--password-hash-file", "FILE", "a hash from `openssl passwd -6`, for a password"),
    "wifi": ("--wifi", "SSID", "a Wi-Fi network"),
    "wifi_password_file": ("--wifi-password-file", "FILE", "its password; asked for in a terminal"),
    "wifi_country": ("--wifi-country", "CC", "the country whose radio rules apply: DE, GB, US …"),
    "wifi_hidden": ("--wifi-hidden", "", "the network does not announce itself"),
    "wifi_derive_key": ("--wifi-derive-key", "", "put its key on the card, not the password: for WPA2 alone"),
    "timezone": ("--timezone", "ZONE", "as in Europe/Berlin"),
    "ntp": ("--ntp", "HOST", "a time server, for a network without the internet's"),
    "memory_budget": ("--memory-budget", "SIZE", "what the agent plans its training for, such as 220MiB"),
    "memory_max_mib": (
        "--memory-max-mib",
        "MIB",
        "what the service may use (default: the budget and 32 MiB, or all but the board's reserve)",
    ),
    "python_path": ("--python-path", "FILE", "on the board: a Python beside the system's, which the wheels are for"),
    "first_boot": ("--first-boot", "WAY", "the mechanism of the image's first boot, where its system has both"),
}
"""For each entry of a Card: its flag, the placeholder of its value, and its help."""
ONLY_A_CARD = ("image", "sha256", "to", "first_boot")


def add(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add the flags of these entries."""
    for name in names:
        flag, metavar, text = HELP[name]
        if name in {"wifi_hidden", "wifi_derive_key"}:
            parser.add_argument(flag, dest=name, action="store_true", default=None, help=text)
        elif name == "first_boot":
            parser.add_argument(flag, dest=name, choices=WAYS, help=text)
        else:
            kind = int if name == "memory_max_mib" else str
            parser.add_argument(flag, dest=name, metavar=metavar, type=kind, help=text)


def card(args: argparse.Namespace) -> Card:
    """Return the card that the flags give. Raises UsageError."""
    stated = getattr(args, "sha256", None)
    if stated is not None and re.fullmatch(r"[0-9a-fA-F]{64}", stated) is None:
        raise UsageError(f"--sha256 is 64 hexadecimal digits, and {stated[:70]!r} is not")
    return Card(**{name: getattr(args, name, None) for name in HELP})
