"""A Jetson's first boot, put into the root file system that NVIDIA's tools flash, and the commands that flash it.

A Jetson has no FAT partition for its first boot: the folder of install.sh goes into `rootfs/`, with a service that runs
it until it has succeeded. Flashing needs the board in recovery mode on a USB cable; the commands are written to a
script and not run.
(NVIDIA Jetson Linux Developer Guide, quick start and flashing support)
"""

import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from devices.firstboot.bundle import Files, sums
from devices.firstboot.firstrun import CONNECTION, connection
from devices.firstboot.install_unit import UNIT, WANTED, unit
from devices.firstboot.settings import BoardSettings
from devices.profile import Profile

SEED = "opt/mas-edge-seed"
SCRIPT = "flash-mas-edge.sh"
_RELEASE = re.compile(r"# R(\d+) \(release\)")
_SECRET, _PLAIN, _RUN = 0o600, 0o644, 0o755


class RootfsUnusable(Exception):
    """The folder is no Jetson Linux with a root file system, or not the board's; the sentence states what to do."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Files with their modes by path below the root file system, and the script of commands."""

    rootfs: Path
    files: dict[str, tuple[bytes | Path, int]]
    script: str


def check(folder: Path, profile: Profile, settings: BoardSettings) -> Path:
    """Return the root file system in a `Linux_for_Tegra` folder. Raises RootfsUnusable."""
    rootfs = folder / "rootfs"
    if not (folder / "apply_binaries.sh").is_file():
        raise RootfsUnusable(f"{folder} is no Linux_for_Tegra folder: unpack Jetson Linux's driver package and name it")
    if not (rootfs / "usr/bin").is_dir() or not (rootfs / "etc").is_dir():
        raise RootfsUnusable(f"{rootfs} is empty: unpack the sample root file system into it, with sudo tar xpf")
    try:
        words = _RELEASE.search((rootfs / "etc/nv_tegra_release").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        words = None  # before apply_binaries.sh it is not there
    known = [release for system in profile.systems for release in system.releases]
    if words is not None and int(words[1]) not in known:
        needed = " or ".join(f"R{release}" for release in known)
        raise RootfsUnusable(f"{folder} is Jetson Linux R{words[1]}, and {profile.title} needs {needed}")
    places = [settings.python_path or f"/usr/bin/python{settings.python}", f"/usr/local/bin/python{settings.python}"]
    if not any((rootfs / place.lstrip("/")).exists() for place in places):
        raise RootfsUnusable(
            f"{rootfs} has no python{settings.python}, which the wheels are for: make them for the Python there, or "
            "give its path with --python-path"
        )
    return rootfs


def placement(folder: Path, rootfs: Path, profile: Profile, settings: BoardSettings, files: Files) -> Placement:
    """Return the placement of the bundle's `files`."""
    seed = dict(files)
    if settings.ssh_keys:
        seed["authorized_keys"] = ("\n".join(settings.ssh_keys) + "\n").encode()
        token = seed.pop("agent.toml")
        seed.pop("SHA256SUMS")
        seed["SHA256SUMS"] = sums(seed)
        seed["agent.toml"] = token
    placed: dict[str, tuple[bytes | Path, int]] = {
        f"{SEED}/{name}": (data, _SECRET if name == "agent.toml" else _PLAIN) for name, data in seed.items()
    }
    if settings.wifi is not None:
        placed[CONNECTION.lstrip("/")] = ((connection(settings.wifi) + "\n").encode(), _SECRET)
        country = f"options cfg80211 ieee80211_regdom={settings.wifi.country}\n"
        placed["etc/modprobe.d/mas-edge.conf"] = (country.encode(), _PLAIN)
    placed[UNIT] = (unit(f"/{SEED}").encode(), _PLAIN)
    return Placement(rootfs=rootfs, files=placed, script=script(folder, profile, settings))


def script(folder: Path, profile: Profile, settings: BoardSettings) -> str:
    """Return the commands, for a person to read and run."""
    command = () if profile.flash is None else profile.flash.command
    user = f'-u {settings.user} -p "$PASSWORD" -n {settings.hostname} --accept-license'
    return "\n".join(
        [
            "#!/bin/sh",
            f"# Flashes {settings.device} ({profile.title}); written by `python -m devices jetson`.",
            "# Connect the recovery port by USB and switch the board on in recovery mode: lsusb shows 0955:7….",
            "set -eu",
            f': "${{PASSWORD:?the password of the user {settings.user} on the board: PASSWORD=… sh {SCRIPT}}}"',
            f"cd {shlex.quote(str(folder.resolve()))}",
            "sudo ./apply_binaries.sh",
            f"sudo ./tools/l4t_create_default_user.sh {user}",
            "lsusb -d 0955: || { echo 'no Jetson in recovery mode is connected' >&2; exit 1; }",
            f"sudo {shlex.join(command)}",
            "",
        ]
    )


def place(found: Placement) -> None:
    """Write the files, and the link that runs them last, so that half a placement does nothing.

    Raises RootfsUnusable.
    """
    try:
        shutil.rmtree(found.rootfs / SEED, ignore_errors=True)
        for name, (data, mode) in found.files.items():
            path = found.rootfs / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data if isinstance(data, bytes) else data.read_bytes())
        link = found.rootfs / WANTED
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(f"/{UNIT}")
        script_path = found.rootfs.parent / SCRIPT
        script_path.write_text(found.script, encoding="utf-8")
        script_path.chmod(_RUN)
    except PermissionError as exc:
        raise RootfsUnusable(f"{exc.filename} belongs to root: run the command with sudo") from exc
    except OSError as exc:
        raise RootfsUnusable(
            f"{exc.filename or found.rootfs}: {exc.strerror}; the files there are not complete: run the command again"
        ) from exc
