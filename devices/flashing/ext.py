"""Files of an ext4 file system that lies in a file of its own, by debugfs: without root, and without a mount.

debugfs is part of e2fsprogs, which every Debian has, and is by the file system's own authors.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path, PurePosixPath

_TIMEOUT_S = 60.0
_MAGIC_AT, _MAGIC = 1080, b"\x53\xef"
_NAME = re.compile(r"[A-Za-z0-9_.+-]+(?:/[A-Za-z0-9_.+-]+)*\Z")
_KIND = re.compile(r"Type: (\w+)")
_SHORT_LINK = re.compile(r'Fast link dest: "([^"]*)"')
_MAX_LINKS = 8
_SBIN = ":/usr/sbin:/sbin"


class ExtUnusable(Exception):
    """The file system cannot be read; the sentence states why."""


class Ext:
    """An ext2, ext3 or ext4 file system in a file. Names are relative to its root. Raises ExtUnusable."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            file.seek(_MAGIC_AT)
            if file.read(2) != _MAGIC:
                raise ExtUnusable("its root partition has no ext4 file system")
        program = shutil.which("debugfs", path=os.environ.get("PATH", "") + _SBIN)
        if program is None:
            raise ExtUnusable("debugfs is needed to read the image's root partition: install the package e2fsprogs")
        self._command = [program, "-c", "-R"]
        self._path = path

    def link(self, name: str) -> str | None:
        """Return where a symbolic link points to; None if there is no link of that name."""
        match = _SHORT_LINK.search(self._run("stat", name))
        return None if match is None else match[1]

    def exists(self, name: str) -> bool:
        """Return whether there is anything of that name."""
        return _KIND.search(self._run("stat", name)) is not None

    def read(self, name: str) -> bytes | None:
        """Return a file's content, through symbolic links; None if there is no such file."""
        for _ in range(_MAX_LINKS):
            match = _KIND.search(self._run("stat", name))
            if match is None or match[1] not in {"regular", "symlink"}:
                return None
            if match[1] == "regular":
                return self._bytes("cat", name)
            name = os.path.normpath(PurePosixPath("/", name).parent / (self.link(name) or "")).lstrip("/")
        return None

    def _run(self, command: str, name: str) -> str:
        return self._bytes(command, name).decode("utf-8", "replace")

    def _bytes(self, command: str, name: str) -> bytes:
        if _NAME.match(name) is None:
            return b""
        try:
            done = subprocess.run(
                [*self._command, f"{command} /{name}", str(self._path)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise ExtUnusable(f"the image's root partition cannot be read: debugfs: {exc}") from exc
        if b"Filesystem not open" in done.stderr + done.stdout or done.returncode != 0:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise ExtUnusable(f"the image's root partition is damaged: {said[-1][:200] if said else 'debugfs failed'}")
        return done.stdout
