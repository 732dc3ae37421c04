"""The memory that the service may take, and whether the kernel holds it to that.

A Raspberry Pi's firmware switches memory control groups off: systemd then takes MemoryMax and does nothing with it. The
service states its limit a second time, in MAS_EDGE_MEMORY_MAX, for the agent to compare.
"""

# coverage: every branch

import os
from collections.abc import Mapping
from pathlib import Path

from devices.cli.values import parse_size
from edge_runtime.training.available_memory import group_limit_bytes

VARIABLE = "MAS_EDGE_MEMORY_MAX"
SPARE_BYTES = 32 * 1024**2
"""What a service has beyond the agent's budget, as `python -m devices` sets it up."""
PAGE_BYTES = 64 * 1024
"""A group's limit is rounded to whole pages, of 64 KiB at the most."""


def unheld_limit_bytes(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> int | None:
    """Return the service's limit if the kernel does not hold the process to it; None if it does, or there is none."""
    try:
        stated_bytes = parse_size(environment.get(VARIABLE, ""))
    except ValueError:
        return None
    held_bytes = group_limit_bytes(root)
    return None if held_bytes is not None and held_bytes <= stated_bytes + PAGE_BYTES else stated_bytes
