"""The meter that a command or the agent measures with: opened by its source, with an MQTT subscription for a plug."""

import argparse
from collections.abc import Callable
from pathlib import Path

from devices.cli.run import UsageError
from devices.meters import Found, open_source
from edge_runtime.energy.listener import listen

Open = Callable[[str], Found]
"""Opens the meter that a source names. Raises UsageError for a source that names none."""


class MeterUnusable(Exception):
    """The meter that was asked for cannot be used here; the sentence states why, and what helps."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say where the board's files and a plug's broker are."""
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="FOLDER",
        help="where the sensors' /sys, /proc and /dev are, in a container that has others (default: /)",
    )
    parser.add_argument("--mqtt-user", default="energy", metavar="NAME", help="user at a plug's broker (energy)")
    parser.add_argument("--mqtt-password-file", type=Path, metavar="FILE", help="file with that user's password")
    parser.add_argument("--mqtt-ca", type=Path, metavar="FILE", help="certificate to trust, for mqtts://")


def opener(args: argparse.Namespace) -> Open:
    """Return what opens a meter with the arguments of `add_arguments`."""
    return lambda source: open_meter(
        source, root=args.root, user=args.mqtt_user, password_file=args.mqtt_password_file, ca_file=args.mqtt_ca
    )


def open_meter(source: str, *, root: Path, user: str, password_file: Path | None, ca_file: Path | None) -> Found:
    """Open the meter that `source` names: one of the board's below `root`, or a plug's topic on an MQTT broker.

    Raises UsageError for a source that names none, and for a password's file that cannot be read.
    """

    def subscribe(url: str, topic: str, take: Callable[[bytes], None]) -> Callable[[], None]:
        return listen(url, topic, take, username=user, password=read_password(password_file), ca_file=ca_file)

    try:
        return open_source(source, root=root, listen=subscribe)
    except ValueError as exc:
        raise UsageError(str(exc)) from exc


def read_password(path: Path | None) -> str:
    """Return the password in a file; empty without a file. Raises UsageError."""
    try:
        return "" if path is None else path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path}: the password cannot be read: {exc}") from exc
