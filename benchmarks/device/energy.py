"""Energy: error on synthetic traces, what a kill loses, and what sampling costs.

WorkCosts are processor time of this process, not wall time.
"""

import math
import random
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, spread
from devices.meters import open_source
from devices.meters.meter import MeterFacts
from edge_runtime.energy.account import EnergyAccount
from edge_runtime.energy.integration import between
from edge_runtime.energy.records import Reading, from_lines
from edge_runtime.energy.sampler import Sampler

TRACES, KILLS = 300, 100
SAMPLING_S = 60.0
"""Length of a run that measures what sampling costs."""
SECONDS = 20.0
RANGE_J = 60.0
LOAD = Path("/proc/loadavg")
READINGS = 10_000
CHILD = """
import os, sys, time
from pathlib import Path
from devices.meters.meter import MeterFacts
from edge_runtime.energy.account import EnergyAccount

class Meter:
    facts = MeterFacts(source="counting", covers="nothing", rate_hz=1000.0, resolution=0.0, gain_error=0.0)
    def read(self):
        os.write(1, b"%.6f\\n" % time.monotonic())
        return (5.0,)
    def close(self):
        pass

with EnergyAccount(Meter(), path=Path(sys.argv[1])) as account:
    account.begin(0, "a")
    time.sleep(60)
"""


def error(chance: random.Random, rate_hz: float, *, counts: bool) -> float:
    """Relative error on one trace: a wave and a step, readings jittered by a third of a period, three left-out spans.

    A counter wraps at RANGE_J.
    """
    level, period_s = chance.uniform(1, 10), chance.uniform(1, 20)
    swing, step_s = chance.uniform(0, 0.8) * level, chance.uniform(2, 18)
    step = chance.uniform(-0.9, 2) * (level - swing)

    def power_w(t: float) -> float:
        return level + swing * math.sin(2 * math.pi * t / period_s) + (step if t >= step_s else 0)

    def energy_j(t: float) -> float:
        wave = swing * period_s / (2 * math.pi) * (1 - math.cos(2 * math.pi * t / period_s))
        return level * t + wave + step * max(0.0, t - step_s)

    last = int(SECONDS * rate_hz)
    times = [(n + chance.uniform(-0.33, 0.33) * (0 < n < last)) / rate_hz for n in range(last + 1)]
    for start_s in (chance.uniform(1, 18) for _ in range(3)):
        length_s = chance.uniform(0, 0.3)
        times = [t for t in times if not start_s < t < start_s + length_s]
    facts = MeterFacts(
        source="synthetic",
        covers="a trace",
        rate_hz=rate_hz,
        resolution=0.0,
        gain_error=0.0,
        counter_ranges_j=(RANGE_J,) if counts else None,
    )
    readings = [Reading(t, (energy_j(t) % RANGE_J if counts else power_w(t),)) for t in times]
    spans = [between(facts, before, after, None) for before, after in pairwise(readings)]
    total_j = sum(span.energy_j(span.start_s, span.end_s) for span in spans if span is not None)
    return abs(total_j - energy_j(SECONDS)) / energy_j(SECONDS)


def traces(count: int) -> dict[str, Any]:
    """The error over many traces, in percent."""
    chance = random.Random(0)
    kinds = {"watts_10_hz": (10.0, False), "watts_50_hz": (50.0, False), "counter_10_hz": (10.0, True)}
    found: dict[str, Any] = {"traces": count}
    for name, (rate_hz, counts) in kinds.items():
        errors = sorted(100 * error(chance, rate_hz, counts=counts) for _ in range(count))
        found[name] = {"median_percent": errors[count // 2], "worst_percent": errors[-1]}
    return found


def kills(folder: Path, count: int) -> dict[str, Any]:
    """SIGKILL at random moments of a process that reads 1,000 times a second: how long it was since what was kept."""
    chance, lost = random.Random(1), []
    path = folder / "killed.journal"
    for _ in range(count):
        process = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(chance.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        lines = [first, *process.stdout.read().splitlines(keepends=True)]
        process.wait()
        taken_s = [float(line) for line in lines if line.endswith(b"\n")]
        records, _ = from_lines(path.read_bytes())
        kept = sum(isinstance(record, Reading) for record in records)
        lost.append(taken_s[-1] - taken_s[max(0, kept - 1)])
    return {"kills": count, "seconds_lost": spread(lost)}


def cost(folder: Path, seconds: float) -> dict[str, Any]:
    """Processor time, not wall time, of sampling with a journal, in percent of one core; a folder stands for a board.

    `waking` is the system's own part: a thread that only sleeps and wakes at that rate. `work` is a reading's
    own time where one follows the other: what is beyond both is the caches that others have emptied meanwhile.
    """
    chip, zone = folder / "sys/class/hwmon/hwmon0", folder / "sys/class/powercap/intel-rapl:0"
    rails = {f"in{n}_label": f"RAIL{n}" for n in (1, 2, 3)} | {f"in{n}_input": "5000" for n in (1, 2, 3)}
    currents = {f"curr{n}_input": "800" for n in (1, 2, 3)}
    for place, files in (
        (chip, {"name": "ina3221"} | rails | currents),
        (zone, {"name": "package-0", "energy_uj": "5", "max_energy_range_uj": "262143328850"}),
    ):
        place.mkdir(parents=True)
        for name, text in files.items():
            (place / name).write_text(f"{text}\n")
    found: dict[str, Any] = {}
    for source in ("hwmon:ina3221", "rapl"):
        shares, rates, waking, work = [], [], [], []
        for n in range(3):
            meter = open_source(source, root=folder).meter
            assert meter is not None
            bare = Sampler(lambda: None, meter.facts.rate_hz)
            bare.start()
            waking.append(_share(seconds))
            bare.stop()
            with EnergyAccount(meter, path=folder / f"{source}.{n}.journal") as account:
                account.begin(0, "a")
                work.append(_reading_us(account))
                account.begin(1, "a")
                shares.append(_share(seconds))
                rates.append(account.report(1, "a").sample_rate_hz or 0.0)
        found[source] = {
            "cpu_percent": spread(shares),
            "waking_percent": spread(waking),
            "work_us": spread(work),
            "sample_rate_hz": spread(rates),
        }
    return found


def _reading_us(account: EnergyAccount) -> float:
    """Processor time of one reading among many, in microseconds."""
    before_s = time.process_time()
    for _ in range(READINGS):
        account.sample()
    return (time.process_time() - before_s) / READINGS * 1e6


def _share(seconds: float) -> float:
    """Measure this process's share of a core over a while, in percent."""
    before_s, began_s = _processor_s(), time.monotonic()
    time.sleep(seconds)
    return 100 * (_processor_s() - before_s) / (time.monotonic() - began_s)


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure() -> dict[str, Any]:
    """All three."""
    with tempfile.TemporaryDirectory() as name:
        found = {
            "synthetic": traces(TRACES),
            "kill": kills(Path(name), KILLS),
            "sampling": cost(Path(name), SAMPLING_S),
        }
    with LOAD.open() as file:
        return {"load_average": [float(word) for word in file.read().split()[:3]], **found}


def document(result: dict[str, Any]) -> str:
    """The table of sampling, and two sentences."""
    load = " · ".join(f"{each:.0f}" for each in result["load_average"])
    synthetic, kill, by_source = result["synthetic"], result["kill"], result["sampling"]
    about = (
        "Processor time in percent of one core, least and most of three runs, on files that stand for a board's "
        f"sensors; the machine's load averages were {load} (1, 5 and 15 minutes). *Waking* is a thread that only "
        "wakes as often."
    )
    lines = ["## Energy: `python -m benchmarks.device energy`", "", textwrap.fill(about, 120), ""]
    lines += [
        "| | sampling, sums and journal | waking | a reading among many | readings a second |",
        "|---|---|---|---|---|",
    ]
    for source, found in by_source.items():
        share, waking, rate = (
            f"{found[name]['min']:.2f}–{found[name]['max']:.2f}"
            for name in ("cpu_percent", "waking_percent", "sample_rate_hz")
        )
        lines.append(f"| {source} | {share} % | {waking} % | {found['work_us']['median']:.1f} µs | {rate} |")
    worst = [f"{synthetic[name]['worst_percent']:.2f} %" for name in ("watts_10_hz", "watts_50_hz")]
    lost = [f"{kill['seconds_lost'][name]:.2f} s" for name in ("median", "max")]
    said = (
        f"{synthetic['traces']} synthetic traces with jitter, gaps and wrap-around: the energy was at most {worst[0]} "
        f"off at 10 Hz and {worst[1]} at 50 Hz. {kill['kills']} processes that measured were killed at random moments: "
        f"their journals lacked the last {lost[0]} in the median, {lost[1]} at most."
    )
    return "\n".join([*lines, "", textwrap.fill(said, 120)])
