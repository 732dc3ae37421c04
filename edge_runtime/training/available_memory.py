"""The memory that this process may still take on Linux, by the system's free memory and the control groups."""

from pathlib import Path

from edge_runtime.training.process_memory import read_proc_bytes

RESERVE_SHARE = 0.1
RESERVE_BYTES = 64 * 1024**2
"""Left to the rest of the board: this much, or a tenth of the installed memory if that is more."""

V1_UNLIMITED = 2**62


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the least of the memory free without swapping and the room in each control group of the process.

    `root` holds /proc and /sys. None where the system does not report it.
    """
    left = [max(most - now, 0) for most, now in _groups(root)]
    found = [read_proc_bytes(root / "proc" / "meminfo", "MemAvailable"), *left]
    return min((value for value in found if value is not None), default=None)


def group_limit_bytes(root: Path = Path("/")) -> int | None:
    """Return the least limit of the control groups of the process; None where the kernel holds it to none."""
    return min((most for most, _now in _groups(root)), default=None)


def default_budget(rss_bytes: int, root: Path = Path("/")) -> int | None:
    """Return the size to which a process of `rss_bytes` may grow, less a reserve; None where it is not known."""
    available, installed = available_bytes(root), read_proc_bytes(root / "proc" / "meminfo", "MemTotal")
    if available is None:
        return None
    reserve = max(RESERVE_BYTES, int(RESERVE_SHARE * (installed or 0)))
    return rss_bytes + max(available - reserve, 0)


def _groups(root: Path) -> list[tuple[int, int]]:
    """Return limit and use of each group that has a limit, from the process's own to the highest (versions 2 and 1)."""
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
        found += [pair for place in places if (pair := _pair(place / limit, place / used)) is not None]
    return found


def _pair(limit: Path, used: Path) -> tuple[int, int] | None:
    try:
        most, now = limit.read_text().strip(), used.read_text().strip()
    except OSError:
        return None
    if not most.isdecimal() or int(most) >= V1_UNLIMITED:  # "max"
        return None
    return int(most), int(now)
