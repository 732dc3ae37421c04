"""`python -m devices update|uninstall|logs`: boards that are set up already, by SSH, one or a fleet's.

A fleet is updated board by board; the first one that does not live with the new version goes back to the one before,
and those after it are left as they are.
"""

import argparse
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from devices.cli.run import DONE, HALF_WRITTEN, NOT_CONFIRMED, UsageError
from devices.firstboot.bundle import Files, sums
from devices.firstboot.settings import host_name
from devices.flashing.card import Card, read_fleet
from devices.provisioning.ssh import HostUnusable, RemoteBoard, SshHost, discard, look, output_of, run_script, send
from devices.wheelhouse import Wheelhouse
from devices.wheelhouse import read as read_wheels

HEALTH_S = 60
MAX_LINES = 10_000
MAX_LOG_BYTES = 1 << 20
_JOURNAL = (
    "journalctl --no-pager --output short-iso --lines {lines} --unit mas-edge --unit mas-edge-install | tail -c {bytes}"
)
_SECRET = re.compile(
    r"""eyJ[\w-]+(?:\.[\w-]+){1,2}|"[0-9a-f]{32}"|(?i:(?<=password)|(?<=psk)|(?<=token))(["']?\s*[=:]\s*)\S+"""
)
"""Tokens, a device's code, and what is written after such a name."""


def add_arguments(
    update: argparse.ArgumentParser, uninstall: argparse.ArgumentParser, logs: argparse.ArgumentParser
) -> None:
    """Add the arguments of the three commands."""
    for parser, run in ((update, _update), (uninstall, _uninstall), (logs, _logs)):
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--ssh", metavar="HOST", help="the board, as ssh takes it: me@pi-01.local")
        which.add_argument("--fleet", type=Path, metavar="fleet.toml", help="the boards of a fleet, one after another")
        parser.add_argument(
            "--only", action="append", metavar="NAME", help="of the fleet, this device; may be repeated"
        )
        parser.add_argument("--port", type=int, metavar="N", help="the port of their SSH servers (default: ssh's)")
        parser.add_argument(
            "--ssh-config", type=Path, metavar="FILE", help="a configuration for ssh, in place of yours"
        )
        parser.set_defaults(run=run)
    update.add_argument(
        "--wheels", type=Path, metavar="FOLDER", help="the new version, from `python -m devices wheelhouse`"
    )
    update.add_argument(
        "--health", type=int, default=HEALTH_S, metavar="S", help=f"how long a new version has to live ({HEALTH_S})"
    )
    uninstall.add_argument("--purge", action="store_true", help="delete its data set, key and results, too")
    logs.add_argument("--lines", type=int, default=200, metavar="N", help=f"the last lines (200; {MAX_LINES} at most)")
    for parser in (update, uninstall):
        parser.add_argument("--yes", action="store_true", help="do it")


def redact(text: str) -> str:
    """Return a log without tokens, codes and passwords."""
    return _SECRET.sub(lambda match: f"{match[1] or ''}***", text)


def _hosts(args: argparse.Namespace) -> Iterator[tuple[SshHost, Card]]:
    """Yield each board that is meant, with its card. Raises UsageError and HostUnusable."""
    cards = (Card(),) if args.fleet is None else read_fleet(args.fleet)
    names = set(args.only or ())
    if unknown := sorted(names - {str(card.device) for card in cards}):
        raise UsageError(f"there is no device {', '.join(unknown)} in {args.fleet or 'no fleet'}")
    for card in cards:
        if not names or card.device in names:
            name = args.ssh or card.ssh or f"{card.user or 'mas'}@{host_name(str(card.device))}.local"
            yield SshHost(name=name, port=args.port, config=args.ssh_config), card


def _update(args: argparse.Namespace) -> int:
    """Return 0 if all were updated, 1 if not confirmed, 4 if one went back or could not be reached after others."""
    if not 0 < args.health <= 3600:
        raise UsageError("--health must be between 1 and 3600 seconds")
    boards = [(host, _wheels(args, card)) for host, card in _hosts(args)]
    for host, wheels in boards:
        print(f"{host.name}: {len(wheels.files)} wheels for Python {wheels.python}, {wheels.size_bytes / 1e6:.1f} MB")
    if not args.yes:
        print("nothing was changed there: the same command with --yes updates")
        return NOT_CONFIRMED
    for number, (host, wheels) in enumerate(boards):
        try:
            print(f"{host.name}: {_update_one(host, wheels, args.health)}", flush=True)
        except HostUnusable as exc:  # noqa: PERF203 - minutes each
            if len(boards) == 1:
                raise
            print(f"{exc}", flush=True)
            print(f"stopped: {number} updated, {len(boards) - number - 1} left as they are")
            return HALF_WRITTEN
    return DONE


def _wheels(args: argparse.Namespace, card: Card) -> Wheelhouse:
    folder = args.wheels or card.wheels
    if folder is None:
        raise UsageError("give --wheels with the new version: python -m devices wheelhouse")
    return read_wheels(Path(folder))


def _update_one(host: SshHost, wheels: Wheelhouse, health_s: int) -> str:
    files: Files = {
        "update.sh": _script("update.sh"),
        "settings": f"WHEELS_DIGEST={wheels.digest}\nHEALTH_S={health_s}\n".encode(),
        **{f"wheels/{path.name}": path for path in wheels.files},
    }
    files["SHA256SUMS"] = sums(files)
    seen = look(host, wheels.python, None)
    try:
        _check(host, seen, wheels)
        send(host, seen.folder, files)
        return run_script(host, seen.folder, "update.sh")
    finally:
        discard(host, seen.folder)


def _check(host: SshHost, seen: RemoteBoard, wheels: Wheelhouse) -> None:
    if seen.machine != wheels.architecture:
        raise HostUnusable(f"{host.name} has {seen.machine}, and the wheels are for {wheels.architecture}")


def _uninstall(args: argparse.Namespace) -> int:
    """Return 0 if it is off all boards, 1 if not confirmed."""
    hosts = [host for host, _card in _hosts(args)]
    if not args.yes:
        print(
            f"nothing was changed: the same command with --yes takes the agent off {', '.join(h.name for h in hosts)}"
        )
        return NOT_CONFIRMED
    for host in hosts:
        seen = look(host, "3", None)
        try:
            send(host, seen.folder, {"uninstall.sh": _script("uninstall.sh")})
            print(f"{host.name}: {run_script(host, seen.folder, 'uninstall.sh', 'purge' if args.purge else '')}")
        finally:
            discard(host, seen.folder)
    return DONE


def _logs(args: argparse.Namespace) -> int:
    """Print the last lines of each board's log."""
    if not 0 < args.lines <= MAX_LINES:
        raise UsageError(f"--lines must be between 1 and {MAX_LINES}")
    for host, _card in _hosts(args):
        print(redact(output_of(host, _JOURNAL.format(lines=args.lines, bytes=MAX_LOG_BYTES))), end="")
    return DONE


def _script(name: str) -> bytes:
    return resources.files("devices.provisioning").joinpath(name).read_bytes()
