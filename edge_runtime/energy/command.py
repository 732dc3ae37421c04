"""`python -m edge_runtime energy`: what a command, or the idle machine, costs in joules.

Exit codes: with a command its own, 128 + n if signal n ended it, 127 if it was not found and 126 if it could not be
run; without one 0, also where nothing measures: the energy is then null and the reasons are given. 2 for a wrong
command line, 130 after Ctrl-C while the idle machine is measured.
"""

import argparse
import math
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import msgspec

from devices.cli.run import DONE, NOT_FOUND, NOT_RUNNABLE, UsageError
from devices.cli.run import run as run_command
from devices.health import Health
from devices.meters import Meter
from edge_runtime.energy.account import EnergyAccount
from edge_runtime.energy.recording import command as recording

MAX_SECONDS = 86_400.0

OpenMeter = Callable[[argparse.Namespace], tuple[Meter | None, tuple[str, ...]]]
"""A meter as the arguments name it, or none, and why what was tried cannot be used. Raises ValueError."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What is printed: joules and watts; null is what was not measured."""

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `energy`; the command behind `--` is taken off before them (see `split`)."""
    commands = parser.add_subparsers(dest="energy_command", metavar="COMMAND")
    recording.add_arguments(
        commands.add_parser("record", help="record a board's power into a CSV file"),
        commands.add_parser("calibrate", help="hold a meter against known loads"),
    )
    parser.usage = "%(prog)s [--source SOURCE] [--seconds S] [--json] [-- COMMAND …]"
    parser.epilog = __doc__.partition("\n\n")[2]
    parser.add_argument(
        "--source",
        default="auto",
        help="auto (default), none, rapl, hwmon[:CHIP], iio, pmic, i2c:ina226@0x40,bus=1,shunt=0.1, "
        "model:IDLE_W,FULL_W (estimated), or mqtt://HOST[:PORT]/TOPIC[#JSON.PATH]",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        metavar="S",
        help="how long the idle machine is measured: alone, or before the command as its baseline (default 10)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON, and nothing else: the command's own output goes to stderr"
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="FOLDER",
        help="where the sensors' /sys, /proc and /dev are, in a container that has others",
    )
    parser.add_argument("--mqtt-user", default="energy", metavar="NAME", help="user at a plug's broker")
    parser.add_argument("--mqtt-password-file", type=Path, metavar="FILE", help="file with the password for it")
    parser.add_argument("--mqtt-ca", type=Path, metavar="FILE", help="certificate to trust, for mqtts://")


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words before the first `--`, and the command after it."""
    at = list(words).index("--") if "--" in words else len(words)
    return list(words[:at]), list(words[at + 1 :])


def read_password(path: Path | None) -> str:
    """The password in a file; empty without one. Raises ValueError."""
    try:
        return "" if path is None else path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ValueError(f"{path}: the password cannot be read: {exc}") from exc


def run(args: argparse.Namespace, command: Sequence[str], open_meter: OpenMeter, health: Callable[[], Health]) -> int:
    """Measure, print, and give the exit code."""
    return run_command(partial(_measure, args, command, open_meter, health))


def _measure(
    args: argparse.Namespace, command: Sequence[str], open_meter: OpenMeter, health: Callable[[], Health]
) -> int:
    least = 0.0 if command else 0.1
    if not (math.isfinite(args.seconds) and least <= args.seconds <= MAX_SECONDS):
        raise UsageError(f"--seconds must be between {least:g} and {MAX_SECONDS:g}")
    try:
        meter, reasons = open_meter(args)
    except ValueError as exc:
        raise UsageError(str(exc)) from exc
    code = None
    with EnergyAccount(meter, health=health, reasons=reasons) as account:
        if not command:
            account.begin(0, "idle")
            time.sleep(args.seconds)
        elif args.seconds > 0:
            account.measure_idle(args.seconds)
        if command:
            account.begin(0, "command")
            with account.phase("train"):
                code = _run(command, quiet=args.json)
        measured = _measured(account, command, code)
    if args.json:
        print(msgspec.json.encode(measured).decode(), flush=True)
    else:
        print(_words(measured), file=sys.stderr if command else sys.stdout, flush=True)
    return DONE if code is None else code


def _measured(account: EnergyAccount, command: Sequence[str], code: int | None) -> Measured:
    key = (0, "command" if command else "idle")
    found = account.report(*key)
    totals = [each for phase, each in account.totals(*key).items() if found.phases[phase].energy_j is not None]
    lows = [each.low_w for each in totals if each.low_w is not None]
    highs = [each.high_w for each in totals if each.high_w is not None]
    mean_w = None if found.energy_j is None else found.energy_j / found.seconds
    return Measured(
        source=found.source,
        covers=found.covers,
        estimated=found.estimated,
        energy_j=found.energy_j,
        uncertainty_j=found.uncertainty_j,
        seconds=found.seconds,
        mean_w=mean_w,
        min_w=min(lows, default=None),
        max_w=max(highs, default=None),
        idle_w=found.idle_w if command else mean_w,
        above_idle_j=found.above_idle_j,
        sample_rate_hz=found.sample_rate_hz,
        gap_s=found.gap_s,
        temperature_max_c=found.temperature_max_c,
        cpu_min_hz=found.cpu_min_hz,
        throttled=found.throttled,
        command=tuple(command),
        exit_code=code,
        reasons=account.reasons,
    )


def _words(found: Measured) -> str:
    """The result for people."""
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
    """Run a command to its end, as a shell would count its exit code."""
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
    """Ctrl-C reaches the command by itself; SIGTERM is handed on. Either way its energy is still reported."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hand_on(number: int, _frame: FrameType | None) -> None:
        for process in started:
            process.send_signal(number)

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, hand_on),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
