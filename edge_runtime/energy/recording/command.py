"""`python -m edge_runtime energy record` and `energy calibrate`."""

import argparse
import math
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from devices.cli.run import DONE, UsageError, stop_event
from devices.health import HealthProbe
from devices.meters import Meter
from edge_runtime.energy.meter import Open
from edge_runtime.energy.meter import add_arguments as add_meter_arguments
from edge_runtime.energy.recording import calibration, plots, sheet
from edge_runtime.energy.recording.calibrated import CalibratedMeter
from edge_runtime.energy.recording.calibration import CalibrationInvalid
from edge_runtime.energy.recording.choice import choose
from edge_runtime.energy.recording.recording import (
    IDLE,
    PowerConverter,
    PowerReading,
    RecordingSegment,
    mean_w,
    segments,
)
from edge_runtime.wire.files import check_writable

WORK = "work"
HEALTH_S = 2.0
"""Seconds between two readings of the board's health."""
MAX_SECONDS = 7 * 86_400.0
_MARK_LENGTH = 60


def add_record_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `record`."""
    parser.add_argument("--board", default="auto", metavar="BOARD", help="whose meter: a name of `list`, or auto")
    parser.add_argument("--source", metavar="SOURCE", help="this meter, as `python -m edge_runtime energy` takes it")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="how long, after the idle time (60)")
    parser.add_argument("--idle", type=float, default=10.0, metavar="S", help="the idle board before it (10; 0: not)")
    parser.add_argument("--csv", type=Path, required=True, metavar="FILE", help="where each reading goes as it comes")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it, as .png, .svg or .pdf")
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="from `calibrate`: corrects the readings")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_meter_arguments(parser)
    parser.epilog = (
        "A line on standard input begins a new segment of that name. Ctrl-C ends the recording and sums it up."
    )


def add_calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `calibrate`."""
    parser.add_argument(
        "loads", nargs="+", metavar="WATTS=FILE.csv", help="a load as another meter states it, and its recording"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the calibration to write")


def check_seconds(flag: str, value: float, least: float, most: float) -> None:
    """Raise UsageError unless a time is finite and between two bounds."""
    if not (math.isfinite(value) and least <= value <= most):
        raise UsageError(f"{flag} must be between {least:g} and {most:g}")


def record(
    meter: Meter,
    add: Callable[[PowerReading, float], None],
    *,
    idle_s: float,
    seconds: float,
    marks: "queue.SimpleQueue[str]",
    stop: threading.Event,
    clock: Callable[[], float] = time.monotonic,
) -> list[PowerReading]:
    """Read the meter for `idle_s` and then `seconds`, or until `stop` is set; pass each reading to `add` at once.

    A name in `marks` begins a segment. A reading that fails is left out.
    """
    to_watts = PowerConverter(meter.facts.counter_ranges_j)
    period_s = 1 / meter.facts.rate_hz
    readings: list[PowerReading] = []
    start_s = next_s = clock()
    mark = IDLE if idle_s > 0 else WORK
    while not stop.is_set():
        begin_s = clock()
        values = meter.read()
        at_s = (begin_s + clock()) / 2 - start_s
        if mark == IDLE and at_s >= idle_s:
            mark = WORK
        while not marks.empty():
            mark = marks.get()
        watts = None if values is None else to_watts(at_s, values)
        if watts is not None:
            reading = PowerReading(seconds=at_s, watts=watts, mark=mark)
            readings.append(reading)
            add(reading, time.time())
        if at_s >= idle_s + seconds:
            break
        next_s = max(next_s + period_s, clock())
        stop.wait(max(0.0, next_s - clock()))
    return readings


def run_record(args: argparse.Namespace, open_: Open) -> int:
    """Record a board's power and print its segments.

    Raises UsageError, ProfileInvalid, CalibrationInvalid, SheetInvalid, MeterUnusable and PlotImpossible.
    """
    check_seconds("--seconds", args.seconds, 0.1, MAX_SECONDS)
    check_seconds("--idle", args.idle, 0.0, MAX_SECONDS)
    corrections = None if args.calibration is None else calibration.read(args.calibration)
    if args.plot is not None:
        check_writable(args.plot)
    meter = choose(args.board, args.source, args.root, open_)
    try:
        if corrections is not None:
            meter = CalibratedMeter(meter, corrections)
        source = meter.facts.source
        readings = _record(args, meter)
    finally:
        meter.close()
    if len(readings) < 2:
        raise sheet.SheetInvalid(f"{source} gave {len(readings)} readings: record for longer")
    found = segments(readings)
    if args.json:
        facts = {"source": source, "covers": meter.facts.covers, "estimated": meter.facts.estimated}
        print(msgspec.json.encode({**facts, "csv": str(args.csv), "segments": found}).decode())
    else:
        kind = "estimated" if meter.facts.estimated else "measured"
        print(f"{source}, {kind}: {meter.facts.covers}")
        print("\n".join(_line(segment) for segment in found))
        print(f"{len(readings)} readings in {args.csv}")
    if args.plot is not None:
        plots.draw(readings, source, args.plot)
    return DONE


def _record(args: argparse.Namespace, meter: Meter) -> list[PowerReading]:
    probe = HealthProbe(args.root)
    out = sheet.Sheet(args.csv, meter.facts.source)
    probed_s = -math.inf
    health = None

    def add(reading: PowerReading, unix_s: float) -> None:
        nonlocal probed_s, health
        if reading.seconds - probed_s >= HEALTH_S:
            probed_s, health = reading.seconds, probe()
        out.add(reading, unix_s, health)

    marks: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read_marks, args=(marks,), name="marks", daemon=True).start()
    try:
        with stop_event() as stop:
            return record(meter, add, idle_s=args.idle, seconds=args.seconds, marks=marks, stop=stop)
    finally:
        out.close()


def _read_marks(marks: "queue.SimpleQueue[str]") -> None:
    """Put each line of standard input into `marks`, until it ends."""
    for line in sys.stdin:
        name = "".join(char for char in line.strip() if char.isprintable())[:_MARK_LENGTH]
        if name:
            marks.put(name)


def _line(segment: RecordingSegment) -> str:
    mean = "not measured" if segment.mean_w is None else f"{segment.mean_w:.3f} W"
    above = "" if segment.above_idle_j is None else f", {segment.above_idle_j:.1f} J above idle"
    span = f"{segment.min_w:.2f} to {segment.max_w:.2f} W"
    return f"  {segment.mark}: {segment.measured_s:.1f} s, {mean} ({span}), {segment.energy_j:.1f} J{above}"


def run_calibrate(args: argparse.Namespace) -> int:
    """Fit a calibration to recordings of known loads and write it. Raises CalibrationInvalid and SheetInvalid."""
    loads = []
    sources = set()
    for text in args.loads:
        watts, _, path = text.partition("=")
        try:
            true_w = float(watts)
        except ValueError as exc:
            raise CalibrationInvalid(f"{text!r} is no load: write WATTS=FILE.csv, as in 2.70=idle.csv") from exc
        source, readings = sheet.read(Path(path))
        read_w = mean_w(readings)
        if not path or read_w is None or not (math.isfinite(true_w) and true_w >= 0):
            raise CalibrationInvalid(f"{text!r} is no load: write WATTS=FILE.csv, as in 2.70=idle.csv")
        loads.append((true_w, read_w))
        sources.add(source)
    if len(sources) != 1:
        raise CalibrationInvalid(f"these recordings are of different meters: {', '.join(sorted(sources))}")
    made = calibration.fit(sources.pop(), loads)
    args.out.write_bytes(calibration.encode(made))
    print(
        f"{made.source}: true watts = {made.gain:.4f} × reading {made.offset_w:+.3f} W, within {made.residual_w:.3f} W"
    )
    if made.source.startswith("i2c:"):
        print(f"  or, where the offset is small, divide the shunt that you state by {made.gain:.4f}")
    print(
        f"{args.out}: for `python -m edge_runtime energy record --calibration`, and for the agent's meter_calibration"
    )
    return DONE
