"""Hard limits on memory by the kernel's control groups, where they can be made: who needs more is killed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
)
_numbers = count()


@contextmanager
def memory_limit(limit_bytes: int) -> Iterator[Path | None]:
    """A control group with this limit; None where none can be made."""
    for root, limit in GROUPS:
        group = root / f"mas-edge-{limit_bytes}-{next(_numbers)}"
        try:
            if not (root / "cgroup.procs").exists():
                continue
            group.mkdir(exist_ok=True)
            (group / limit).write_text(str(limit_bytes))
        except OSError:
            continue
        try:
            yield group
        finally:
            group.rmdir()
        return
    yield None


def within(group: Path | None, command: Sequence[str]) -> list[str]:
    """The command that runs another one in a control group."""
    if group is None:
        return [*command]
    return ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *command]
