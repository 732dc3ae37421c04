"""How much memory this process has used, as Linux counts it."""

import os
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def rss_bytes() -> int | None:
    """The resident set now; None where the system does not say."""
    return _status_bytes("VmRSS:")


def peak_rss_bytes() -> int | None:
    """The largest resident set since the process began, or since `restart_peak`; None where the system does not say."""
    return _status_bytes("VmHWM:")


def _status_bytes(key: str) -> int | None:
    try:
        text = _STATUS.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return None


def restart_peak() -> None:
    """Count the peak from now on, where the system allows it."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def installed_bytes() -> int | None:
    """Main memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
