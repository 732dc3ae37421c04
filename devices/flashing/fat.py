"""Files on a FAT file system that lies in a file of its own, by mtools.

mtools is a package of every distribution (and Homebrew), works on a file without root or mount, keeps the free-cluster
count, and is far older than any FAT library for Python. pyfatfs 1.1.0, the only candidate, leaves that count wrong and
needs pkg_resources, which setuptools no longer has.
"""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path, PurePosixPath

_TIMEOUT_S = 300.0
_FREE = re.compile(r"^\s*([\d ]+) bytes free\s*$", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,199}\Z")
_SLACK_BYTES = 1 << 20
"""Room for folders, and for the unused part of each file's last cluster."""


class FatUnusable(Exception):
    """The partition cannot be read or written; the sentence states why."""


class Fat:
    """A FAT partition in a file. Names are relative, with slashes. Raises FatUnusable, at once without mtools."""

    def __init__(self, path: Path) -> None:
        if shutil.which("mcopy") is None:
            raise FatUnusable("mtools is needed to put files on the boot partition: install the package mtools")
        self._path = path
        self._run("mdir", "-b", "::/")  # is there a file system at all

    def exists(self, name: str) -> bool:
        """Return whether there is a file or folder of that name."""
        try:
            self._run("mdir", "-b", _place(name))
        except FatUnusable:
            return False
        return True

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        return self._run("mtype", _place(name))

    def write(self, files: dict[str, bytes | Path]) -> None:
        """Write files, which are content or a path, and their folders; then read them back.

        Raises FatUnusable before anything is written if they do not fit.
        """
        need_bytes = sum(len(data) if isinstance(data, bytes) else data.stat().st_size for data in files.values())
        free_bytes = self.free_bytes()
        if need_bytes + _SLACK_BYTES > free_bytes:
            raise FatUnusable(
                f"the boot partition has {free_bytes >> 20} MiB free, and the files need {(need_bytes >> 20) + 1} MiB: "
                "take an image with a larger one"
            )
        made: set[str] = set()
        for name in files:
            for folder in reversed(PurePosixPath(name).parents[:-1]):
                if str(folder) not in made and not self.exists(str(folder)):
                    self._run("mmd", _place(str(folder)))
                made.add(str(folder))
        with tempfile.TemporaryDirectory() as scratch:
            for name, data in files.items():
                source = data
                if isinstance(source, bytes):
                    source = Path(scratch) / "content"
                    source.write_bytes(data if isinstance(data, bytes) else b"")
                self._run("mcopy", "-o", str(source), _place(name))
        for name, data in files.items():
            if self.read(name) != (data if isinstance(data, bytes) else data.read_bytes()):
                raise FatUnusable(f"{name} was written to the boot partition and reads back differently")

    def free_bytes(self) -> int:
        """Return the free bytes of the partition."""
        match = _FREE.search(self._run("mdir", "::/").decode("utf-8", "replace"))
        if match is None:
            raise FatUnusable("mtools does not say how much room the boot partition has left")
        return int(match[1].replace(" ", ""))

    def _run(self, program: str, *words: str) -> bytes:
        # Without the user's configuration, where a drive letter may be another disk, and without questions.
        environment = {**os.environ, "MTOOLSRC": os.devnull, "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C"}
        command = [program, "-i", str(self._path), *words]
        try:
            done = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise FatUnusable(f"{program} cannot be run: {exc}") from exc
        if done.returncode != 0:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise FatUnusable(f"the boot partition cannot be used: {program}: {lines[-1][:200] if lines else 'failed'}")
        return done.stdout


def _place(name: str) -> str:
    """Return a name as mtools writes it. Raises FatUnusable for a pattern, and a name outside of the folder."""
    parts = name.split("/")
    if not all(_NAME.match(part) for part in parts):
        raise FatUnusable(f"{name!r} is no name for a file on the boot partition")
    return f"::/{name}"
