"""A measurement of a command, or of the idle machine, by the energy account."""

import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import msgspec

from devices.cli.run import NOT_FOUND, NOT_RUNNABLE
from devices.health import Health
from devices.meters import Found
from edge_runtime.energy.account import EnergyAccount


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """The energy of a command or of the idle machine, in joules and watts; null is a figure that was not measured.

    `idle_w` is the machine before the command, or the idle machine itself. `reasons` state why nothing measures.
    """

    source: str | None
    covers: str | None
    estimated: bool
    energy_j: float | None
    uncertainty_j: float | None
    seconds: float
    mean_w: float | None
    min_w: float | None
    max_w: float | None
    idle_w: float | None
    above_idle_j: float | None
    sample_rate_hz: float | None
    gap_s: float
    temperature_max_c: float | None
    cpu_min_hz: float | None
    throttled: tuple[str, ...] | None
    command: tuple[str, ...]
    exit_code: int | None
    reasons: tuple[str, ...]


def measure(
    command: Sequence[str], seconds: float, found: Found, health: Callable[[], Health], *, quiet: bool
) -> Measurement:
    """Measure the idle machine for `seconds`, and then the command if there is one; the meter is closed afterwards.

    With `quiet` the command's own output goes to standard error.
    """
    code = None
    key = (0, "command" if command else "idle")
    with EnergyAccount(found.meter, health=health, reasons=found.reasons) as account:
        if not command:
            account.begin(*key)
            time.sleep(seconds)
        else:
            if seconds > 0:
                account.measure_idle(seconds)
            account.begin(*key)
            with account.phase("train"):
                code = _run(command, quiet=quiet)
        energy, totals = account.report(*key), account.totals(*key)
    known = [totals[phase] for phase, each in energy.phases.items() if each.energy_j is not None]
    mean_w = None if energy.energy_j is None else energy.energy_j / energy.seconds
    return Measurement(
        source=energy.source,
        covers=energy.covers,
        estimated=energy.estimated,
        energy_j=energy.energy_j,
        uncertainty_j=energy.uncertainty_j,
        seconds=energy.seconds,
        mean_w=mean_w,
        min_w=min((each.low_w for each in known if each.low_w is not None), default=None),
        max_w=max((each.high_w for each in known if each.high_w is not None), default=None),
        idle_w=energy.idle_w if command else mean_w,
        above_idle_j=energy.above_idle_j,
        sample_rate_hz=energy.sample_rate_hz,
        gap_s=energy.gap_s,
        temperature_max_c=energy.temperature_max_c,
        cpu_min_hz=energy.cpu_min_hz,
        throttled=energy.throttled,
        command=tuple(command),
        exit_code=code,
        reasons=found.reasons,
    )


def words(found: Measurement) -> str:
    """Return a measurement for people."""
    what = shlex.join(found.command) if found.command else "the idle machine"
    if found.energy_j is None:
        why = "no usable meter here" if found.reasons else f"{found.source or 'the meter'} gave too few readings"
        lines = [f"energy not measured over {found.seconds:.2f} s of {what}: {why}"]
        return "\n".join(lines + [f"  {reason}" for reason in found.reasons])
    label = f"{found.source}, estimated" if found.estimated else f"{found.source}"
    lines = [
        f"energy {found.energy_j:.2f} J (± {found.uncertainty_j:.2f}) over {found.seconds:.2f} s of {what} ({label})",
        f"power {found.mean_w:.2f} W mean, {found.min_w:.2f} to {found.max_w:.2f} W",
        f"{found.sample_rate_hz:.1f} readings a second",
    ]
    if found.above_idle_j is not None:
        lines.append(f"idle {found.idle_w:.2f} W before it: {found.above_idle_j:.2f} J above idle")
    if found.gap_s > 0:
        lines.append(f"gaps {found.gap_s:.2f} s bridged")
    if found.temperature_max_c is not None:
        lines.append(f"processor at most {found.temperature_max_c:.1f} °C")
    if found.throttled:
        lines.append(f"held back by: {', '.join(found.throttled)}")
    return "\n".join([*lines, f"covers {found.covers}"])


def _run(command: Sequence[str], *, quiet: bool) -> int:
    """Run a command to its end; return its exit code as a shell counts it."""
    started: list[subprocess.Popen[bytes]] = []
    with _signals_for(started):
        try:
            process = subprocess.Popen(command, stdout=sys.stderr if quiet else None)
        except FileNotFoundError:
            print(f"{command[0]}: not found", file=sys.stderr)
            return NOT_FOUND
        except OSError as exc:
            print(f"{command[0]}: {exc.strerror}", file=sys.stderr)
            return NOT_RUNNABLE
        started.append(process)
        code = process.wait()
    return 128 - code if code < 0 else code


@contextmanager
def _signals_for(started: "Sequence[subprocess.Popen[bytes]]") -> Iterator[None]:
    """Pass SIGTERM on to the command, which Ctrl-C reaches by itself; its energy is reported in either case."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for process in started:
            process.send_signal(number)

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
