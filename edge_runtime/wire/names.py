r"""Names in messages: the patterns of tasks, devices, federations, groups and digests.

The patterns are the whole defence against names that would reach a path or a topic: no slash, no dot at the
start, no wildcard, bounded length. They end in \Z, because $ would let a line feed through.
"""

# coverage: every branch

import hashlib
import re
from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta

MAX_TASKS = 32
TASK_PATTERN = r"^[a-z][a-z0-9_]{0,31}\Z"
DEVICE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z"
GROUP_PATTERN = r"^[a-z][a-z0-9_+]{0,199}\Z"

TaskName = Annotated[str, Meta(pattern=TASK_PATTERN)]
DeviceId = Annotated[str, Meta(pattern=DEVICE_PATTERN)]
FederationName = Annotated[str, Meta(pattern=DEVICE_PATTERN)]
GroupId = Annotated[str, Meta(pattern=GROUP_PATTERN)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
TensorName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.]{1,200}\Z")]
Tasks = Annotated[tuple[TaskName, ...], Meta(min_length=1, max_length=MAX_TASKS)]

GROUP_LENGTH = 200


def is_device_id(text: str) -> bool:
    """Return whether `text` may name a device or a federation."""
    return re.match(DEVICE_PATTERN, text) is not None


def group_id(tasks: Iterable[str]) -> str:
    """Return the id of the group that trains `tasks`: their names in order, joined by a plus sign.

    An id that would be too long is cut, and ends in two plus signs and a digest of the full id, which keep it unique.
    """
    name = "+".join(sorted(tasks))
    if len(name) <= GROUP_LENGTH:
        return name
    suffix = "++" + hashlib.sha256(name.encode()).hexdigest()[:32]
    return name[: GROUP_LENGTH - len(suffix)] + suffix
