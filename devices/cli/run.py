"""How a command ends: its exit code, one sentence for what went wrong, and what stop signals do.

A command returns its exit code, or raises. Each package maps its own exceptions to codes; what the command line or a
file of settings has wrong is a UsageError everywhere.
"""

# coverage: every branch

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from devices.cli.log import is_json
from devices.cli.text import MAX_SHOWN, printable

_LOG = logging.getLogger("cli")
DONE = 0
NOT_CONFIRMED = 1
"""Nothing was written, because that was not confirmed."""
USAGE = 2
"""The command line or the configuration is wrong."""
BAD_INPUT = 3
"""A file, a folder, a model or data that the command was given cannot be used."""
UNAVAILABLE = 4
"""A port, a folder, a broker or a meter is not available."""
NO_PARITY = 4
"""The exporter's graphs disagree with PyTorch."""
HALF_WRITTEN = 4
"""A target could not be written to its end."""
FAILED = 5
"""The work ended before its time."""
REFUSED = 5
"""The broker refused the device."""
NOT_RUNNABLE, NOT_FOUND = 126, 127
"""A program that the command was to start, as a shell counts it."""
STOPPED = 130
"""Ctrl-C, or SIGTERM where it is taken as that."""


class UsageError(ValueError):
    """The command line or a file of settings asks for something that cannot be; the sentence names it."""


def run(
    command: Callable[[], int], faults: Mapping[type[Exception], int] | None = None, *, stopped: str = "stopped"
) -> int:
    """Return the command's exit code; for an exception of `faults`, print one sentence and return its code.

    The nearest base of an exception decides. UsageError ends with USAGE, Ctrl-C with STOPPED and the sentence
    `stopped`.
    """
    known: dict[type[Exception], int] = {UsageError: USAGE, **(faults or {})}
    try:
        return command()
    except tuple(known) as exc:
        return fail(next(known[kind] for kind in type(exc).__mro__ if kind in known), sentence(exc))
    except KeyboardInterrupt:
        if is_json():
            _LOG.info("%s", stopped)
        else:
            print(stopped, file=sys.stderr)
        return STOPPED


def fail(code: int, problem: str) -> int:
    """Print the sentence on standard error, as JSON where the process logs so, and return the code."""
    if is_json():
        _LOG.error("%s", problem, extra={"fields": {"exit_code": code}})
    else:
        print(f"error: {printable(problem, MAX_SHOWN)}", file=sys.stderr)
    return code


def sentence(exc: Exception) -> str:
    """Return the exception's own sentence; for the system's errors, the file and what is wrong with it."""
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.filename or 'the system'}: {exc.strerror}"
    return str(exc)


def interrupt_on_terminate() -> None:
    """Let SIGTERM stop this process as Ctrl-C does: by KeyboardInterrupt in the main thread."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def stop_event() -> Iterator[threading.Event]:
    """Give an event that the first SIGTERM or SIGINT sets; a second one ends the process at once.

    Signals reach the main thread alone, so in another thread the event is never set by one.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
