"""Values as people write them: sizes of memory, lists of names, groups of tasks, a number for each task.

Each function here is a `type=` of argparse: its ValueError becomes the sentence of a wrong command line.
"""

# coverage: every branch

import argparse
import re
from collections.abc import Callable

UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
SIZE_PATTERN = r"^([1-9][0-9]{0,14}) ?(KiB|MiB|GiB|)\Z"


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 220MiB, 512KiB, 1GiB or 230686720. Raises ValueError."""
    found = re.match(SIZE_PATTERN, text)
    if found is None:
        raise ValueError(f"{text!r} is not a size: write 220MiB, 512KiB, 1GiB or a number of bytes")
    return int(found[1]) * UNITS[found[2]]


def size(text: str) -> int:
    """Return the bytes of a size on the command line."""
    try:
        return parse_size(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def names(text: str) -> tuple[str, ...]:
    """Return the names of a list such as a,b,c."""
    return tuple(name.strip() for name in text.split(","))


def numbers(text: str) -> tuple[int, ...]:
    """Return the whole numbers of a list such as 0,1,2. Raises ValueError."""
    return tuple(int(number) for number in text.split(","))


def groups(text: str) -> tuple[tuple[str, ...], ...]:
    """Return groups of tasks written as a,b;c."""
    return tuple(names(group) for group in text.split(";"))


def by_task(text: str) -> dict[str, float]:
    """Return a number for each task, written as a=2,b=0.5. Raises ValueError."""
    return {task.strip(): float(number) for task, _, number in (part.partition("=") for part in text.split(","))}


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a type for whole numbers within bounds."""
    upto = "or more" if most is None else f"to {most}"

    def read(text: str) -> int:
        found = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
        if found is None or found < least or (most is not None and found > most):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} {upto}")
        return found

    return read
