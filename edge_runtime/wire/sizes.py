"""Amounts of memory as people write them."""

# coverage: every branch

import re

UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_size(text: str) -> int:
    """Bytes of a size such as 220MiB, 512KiB, 1GiB or 230686720. Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,15}) ?(KiB|MiB|GiB|)", text)
    if found is None or int(found[1]) == 0:
        raise ValueError(f"{text!r} is not a size: write 220MiB, 512KiB, 1GiB or a number of bytes")
    return int(found[1]) * UNITS[found[2]]
