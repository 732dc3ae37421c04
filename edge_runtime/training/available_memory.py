"""How much memory this process may still take, as Linux says: what the system has left, and its control groups."""

from pathlib import Path

RESERVE_SHARE = 0.1
RESERVE_BYTES = 64 * 1024**2
"""What is left to the rest of the board: this much, or a tenth of what is installed if that is more."""

V1_UNLIMITED = 2**62


def available_bytes(root: Path = Path("/")) -> int | None:
    """The least of what the system could give without swapping and what each control group of the process leaves.

    `root` is where /proc and /sys are. None where the system does not say.
    """
    found = [_meminfo(root, "MemAvailable"), *_groups(root)]
    return min((value for value in found if value is not None), default=None)


def default_budget(rss_bytes: int, root: Path = Path("/")) -> int | None:
    """What a process of this size may grow to: what is available to it, less a reserve. None where nobody says."""
    available, installed = available_bytes(root), _meminfo(root, "MemTotal")
    if available is None:
        return None
    reserve = max(RESERVE_BYTES, int(RESERVE_SHARE * (installed or 0)))
    return rss_bytes + max(available - reserve, 0)


def _meminfo(root: Path, key: str) -> int | None:
    try:
        lines = (root / "proc" / "meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


def _groups(root: Path) -> list[int]:
    """What each group from the process's own up to the highest leaves, of version 2 and of version 1."""
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, used = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            top, limit, used = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = top / path.strip("/")
        places = (place for place in (folder, *folder.parents) if place.is_relative_to(top))
        found += [left for place in places if (left := _left(place / limit, place / used)) is not None]
    return found


def _left(limit: Path, used: Path) -> int | None:
    try:
        most, now = limit.read_text().strip(), used.read_text().strip()
    except OSError:
        return None
    if not most.isdecimal() or int(most) >= V1_UNLIMITED:  # "max"
        return None
    return max(int(most) - int(now), 0)
