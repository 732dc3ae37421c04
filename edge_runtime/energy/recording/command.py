"""`python -m edge_runtime energy record` and `energy calibrate`."""

import argparse
import math
import queue
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from devices.cli.run import BAD_INPUT, DONE, USAGE, UsageError, stop_event
from devices.cli.run import run as run_command
from devices.health import HealthProbe
from devices.meters import Meter
from devices.profile import ProfileInvalid
from edge_runtime.energy.recording import calibration, plots, sheet
from edge_runtime.energy.recording.calibrated import CalibratedMeter
from edge_runtime.energy.recording.calibration import CalibrationInvalid
from edge_runtime.energy.recording.choice import NoMeter, Open, choose
from edge_runtime.energy.recording.recording import IDLE, Power, Row, Segment, mean_w, segments

WORK = "work"
HEALTH_S = 2.0
MAX_SECONDS = 7 * 86_400.0
_MARK_LENGTH = 60

_FAULTS: dict[type[Exception], int] = {
    ProfileInvalid: USAGE,
    CalibrationInvalid: USAGE,
    sheet.SheetInvalid: USAGE,
    NoMeter: BAD_INPUT,
    plots.PlotImpossible: BAD_INPUT,
    OSError: BAD_INPUT,
}


def add_arguments(
    meter: argparse.ArgumentParser,
    calibrate: argparse.ArgumentParser,
) -> None:
    """The arguments of the two commands."""
    meter.add_argument("--board", default="auto", metavar="BOARD", help="whose meter: a name of `list`, or auto")
    meter.add_argument("--source", metavar="SOURCE", help="this meter, as `python -m edge_runtime energy` takes it")
    meter.add_argument("--seconds", type=float, default=60.0, metavar="S", help="how long, after the idle time (60)")
    meter.add_argument("--idle", type=float, default=10.0, metavar="S", help="the idle board before it (10; 0: not)")
    meter.add_argument("--csv", type=Path, required=True, metavar="FILE", help="where each reading goes as it comes")
    meter.add_argument("--plot", type=Path, metavar="FILE", help="draw it, as .png, .svg or .pdf")
    meter.add_argument("--calibration", type=Path, metavar="FILE", help="from `calibrate`: makes readings true")
    meter.add_argument("--root", type=Path, default=Path("/"), metavar="FOLDER", help="another system's root folder")
    meter.add_argument("--mqtt-user", default="energy", metavar="NAME", help="user at a plug's broker")
    meter.add_argument("--mqtt-password-file", type=Path, metavar="FILE", help="file with the password for it")
    meter.add_argument("--mqtt-ca", type=Path, metavar="FILE", help="certificate to trust, for mqtts://")
    meter.add_argument("--json", action="store_true", help="print JSON")
    meter.epilog = (
        "A line on standard input begins a new segment of that name. Ctrl-C ends the recording and sums it up."
    )
    meter.set_defaults(run=_meter)
    calibrate.add_argument(
        "loads", nargs="+", metavar="WATTS=FILE.csv", help="a load as another meter states it, and its recording"
    )
    calibrate.add_argument("--out", type=Path, required=True, metavar="FILE", help="the calibration to write")
    calibrate.set_defaults(run=lambda args, _open: _calibrate(args))


def run(args: argparse.Namespace, open_: Open) -> int:
    """Do what `add_arguments` parsed, and give the exit code. `open_` opens a source by its name."""
    return run_command(partial(args.run, args, open_), _FAULTS)


def record(
    meter: Meter,
    add: Callable[[Row, float], None],
    *,
    idle_s: float,
    seconds: float,
    marks: "queue.SimpleQueue[str]",
    stop: threading.Event,
    clock: Callable[[], float] = time.monotonic,
) -> list[Row]:
    """Read the meter for `idle_s` and then `seconds`, or until `stop` is set; every row is handed to `add` at once.

    `marks` has names of segments that begin now. A reading that fails is left out.
    """
    power = Power(meter.facts.counter_ranges_j)
    period_s = 1 / meter.facts.rate_hz
    rows: list[Row] = []
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
        watts = None if values is None else power(at_s, values)
        if watts is not None:
            row = Row(seconds=at_s, watts=watts, mark=mark)
            rows.append(row)
            add(row, time.time())
        if at_s >= idle_s + seconds:
            break
        next_s = max(next_s + period_s, clock())
        stop.wait(max(0.0, next_s - clock()))
    return rows


def _meter(args: argparse.Namespace, open_: Open) -> int:
    for name, least in (("seconds", 0.1), ("idle", 0.0)):
        value = getattr(args, name)
        if not (math.isfinite(value) and least <= value <= MAX_SECONDS):
            raise UsageError(f"--{name} must be between {least:g} and {MAX_SECONDS:g}")
    made_true = None if args.calibration is None else calibration.read(args.calibration)
    meter: Meter
    try:
        meter = choose(args.board, args.source, args.root, open_)
    except ValueError as exc:
        raise UsageError(str(exc)) from exc
    try:
        if made_true is not None:
            meter = CalibratedMeter(meter, made_true)
        source = meter.facts.source
        rows = _record(args, meter)
    finally:
        meter.close()
    if len(rows) < 2:
        raise sheet.SheetInvalid(f"{source} gave {len(rows)} readings: record for longer")
    found = segments(rows)
    if args.json:
        facts = {"source": source, "covers": meter.facts.covers, "estimated": meter.facts.estimated}
        print(msgspec.json.encode({**facts, "csv": str(args.csv), "segments": found}).decode())
    else:
        kind = "estimated" if meter.facts.estimated else "measured"
        print(f"{source}, {kind}: {meter.facts.covers}")
        print("\n".join(_line(segment) for segment in found))
        print(f"{len(rows)} readings in {args.csv}")
    if args.plot is not None:
        plots.recording(rows, source, args.plot)
    return DONE


def _record(args: argparse.Namespace, meter: Meter) -> list[Row]:
    probe = HealthProbe(args.root)
    out = sheet.Sheet(args.csv, meter.facts.source)
    looked_s = -math.inf
    health = None

    def add(row: Row, unix_s: float) -> None:
        nonlocal looked_s, health
        if row.seconds - looked_s >= HEALTH_S:
            looked_s, health = row.seconds, probe()
        out.add(row, unix_s, health)

    marks: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(marks,), name="marks", daemon=True).start()
    try:
        with stop_event() as stop:
            return record(meter, add, idle_s=args.idle, seconds=args.seconds, marks=marks, stop=stop)
    finally:
        out.close()


def _listen(marks: "queue.SimpleQueue[str]") -> None:
    """Lines of standard input as marks, until it ends."""
    for line in sys.stdin:
        name = "".join(char for char in line.strip() if char.isprintable())[:_MARK_LENGTH]
        if name:
            marks.put(name)


def _line(segment: Segment) -> str:
    mean = "not measured" if segment.mean_w is None else f"{segment.mean_w:.3f} W"
    above = "" if segment.above_idle_j is None else f", {segment.above_idle_j:.1f} J above idle"
    span = f"{segment.min_w:.2f} to {segment.max_w:.2f} W"
    return f"  {segment.mark}: {segment.measured_s:.1f} s, {mean} ({span}), {segment.energy_j:.1f} J{above}"


def _calibrate(args: argparse.Namespace) -> int:
    loads = []
    sources = set()
    for text in args.loads:
        watts, _, path = text.partition("=")
        try:
            true_w = float(watts)
        except ValueError as exc:
            raise CalibrationInvalid(f"{text!r} is no load: write WATTS=FILE.csv, as in 2.70=idle.csv") from exc
        source, rows = sheet.read(Path(path))
        read_w = mean_w(rows)
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
