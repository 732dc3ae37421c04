"""`python -m devices jetson` and `python -m devices provision`. Without --yes both only show what they would do."""

import argparse
import getpass
import sys
import tempfile
from pathlib import Path

from devices.cli.run import DONE, NOT_CONFIRMED, UsageError
from devices.firstboot.bundle import bundle
from devices.flashing import flags
from devices.flashing.card import BoardSetup, Enrol, board_setup
from devices.provisioning.jetson import SCRIPT, check, place, placement
from devices.provisioning.ssh import HostUnusable, SshHost, discard, look, run_script, send

_NEEDED = ("device", "board", "wheels")
_BOARD = [name for name in flags.HELP if name not in flags.ONLY_A_CARD]
_OF_A_PERSON = ("user", "ssh_key", "password_hash_file", "timezone", "wifi", "wifi_password_file", "wifi_country")
"""The entries that a running board already has."""


def add_arguments(jetson: argparse.ArgumentParser, provision: argparse.ArgumentParser, enrol: Enrol) -> None:
    """Add the arguments of both commands."""
    flags.add(jetson, [name for name in _BOARD if name != "password_hash_file"])
    jetson.add_argument(
        "--l4t", type=Path, required=True, metavar="FOLDER", help="Linux_for_Tegra, with the sample root file system"
    )
    flags.add(provision, [name for name in _BOARD if name not in {*_OF_A_PERSON, "wifi_hidden", "wifi_derive_key"}])
    provision.add_argument("--ssh", required=True, metavar="HOST", help="the board, as ssh takes it: me@pi-01.local")
    provision.add_argument("--port", type=int, metavar="N", help="the port of its SSH server (default: ssh's)")
    provision.add_argument("--ssh-config", type=Path, metavar="FILE", help="a configuration for ssh, in place of yours")
    for parser, run in ((jetson, _jetson), (provision, _provision)):
        parser.add_argument("--yes", action="store_true", help="do it")
        parser.set_defaults(run=lambda args, run=run: run(args, enrol))


def _jetson(args: argparse.Namespace, enrol: Enrol) -> int:
    """0 placed, 1 not confirmed."""
    with tempfile.TemporaryDirectory(prefix="mas-edge-jetson-") as name:
        setup = _setup(args, Path(name), enrol)
        if setup.profile.family != "jetson":
            raise UsageError(f"{setup.profile.title} is no Jetson: use `python -m devices flash`")
        rootfs = check(args.l4t, setup.profile, setup.settings)
        files = bundle(setup.settings, setup.agent, setup.wheels, setup.data)
        found = placement(args.l4t, rootfs, setup.profile, setup.settings, files)
        size_bytes = sum(len(d) if isinstance(d, bytes) else d.stat().st_size for d, _mode in found.files.values())
        print(f"{setup.settings.device}: {setup.profile.title}")
        print(f"  into     {rootfs}: {len(found.files)} files, {size_bytes / 1e6:.1f} MB")
        print(f"  agent    {setup.agent.device} of {setup.agent.federation} at {setup.agent.url}")
        print(f"  commands in {args.l4t / SCRIPT}, which were not tried on a board:")
        print("".join(f"    {line}\n" for line in found.script.splitlines() if not line.startswith("#")), end="")
        if not args.yes:
            print("nothing was written: the same command with --yes writes the files; the commands you run yourself")
            return NOT_CONFIRMED
        place(found)
    print(f"written: now run PASSWORD=… sh {args.l4t / SCRIPT}")
    return DONE


def _provision(args: argparse.Namespace, enrol: Enrol) -> int:
    """Set up a board over SSH; return 0 if it was set up, 1 if not confirmed."""
    host = SshHost(name=args.ssh, port=args.port, config=args.ssh_config)
    with tempfile.TemporaryDirectory(prefix="mas-edge-provision-") as name:
        setup = _setup(args, Path(name), enrol)
        settings, wheels = setup.settings, setup.wheels
        files = bundle(settings, setup.agent, wheels, setup.data)
        seen = look(host, settings.python, settings.python_path)
        try:
            if seen.machine != wheels.architecture or seen.python != settings.python:
                raise HostUnusable(
                    f"{host.name} has {seen.machine} and Python {seen.python}, and the wheels are for "
                    f"{wheels.architecture} and Python {settings.python}: make them for it with "
                    "`python -m devices wheelhouse`"
                )
            print(f"{settings.device}: {setup.profile.title} at {host.name}, {seen.machine}, Python {seen.python}")
            print(f"  agent    {setup.agent.device} of {setup.agent.federation} at {setup.agent.url}")
            print(f"  wheels   {len(wheels.files)}, {wheels.size_bytes / 1e6:.1f} MB")
            if not args.yes:
                print("nothing was changed there: the same command with --yes sets it up")
                return NOT_CONFIRMED
            send(host, seen.folder, files)
            print(run_script(host, seen.folder, "install.sh"))
        finally:
            discard(host, seen.folder)
    return DONE


def _setup(args: argparse.Namespace, scratch: Path, enrol: Enrol) -> BoardSetup:
    return board_setup(flags.card(args), scratch, enrol, getpass.getpass if sys.stdin.isatty() else None, _NEEDED)
