"""Readers of a running kernel's files: small texts, numbers, and numbers that are read again and again."""

# coverage: every branch

import os
from pathlib import Path

MAX_NUMBER_BYTES = 64


class NumberFile:
    """An open file of the kernel with one number in it: reading it again is one system call.

    Raises OSError if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> float | None:
        """Return the number; None if the file holds none or cannot be read now."""
        try:
            return float(int(os.pread(self.descriptor, MAX_NUMBER_BYTES, 0)))
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


def read_text(path: Path) -> str | None:
    """Return a small file's text without the white space around it; None if it cannot be read."""
    try:
        return path.read_bytes()[:4096].decode("utf-8", "replace").strip()
    except OSError:
        return None


def read_number(path: Path) -> float | None:
    """Return the number in a small file; None if there is none."""
    text = read_text(path)
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def numbered(path: Path) -> tuple[str, int]:
    """Return a key that sorts hwmon2 before hwmon10."""
    digits = "".join(filter(str.isdigit, path.name))
    return path.name.rstrip("0123456789"), int(digits or 0)
