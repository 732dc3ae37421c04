"""`make bench-stragglers`: simulated time to a loss where some of ten boards are ten times slower, into docs/link.md.

Real state machines, agents and training on a simulated clock (docs/simulation.md). An epoch takes a board ten simulated
seconds, a slow one a hundred; lines take no time. Boards' numbers are drawn from different places, so that none
can be left out. Of each version of the weights the loss is measured on all boards' test data: that takes no simulated
time. The loss that is reached is that of the synchronous federation after TARGET rounds.
"""

import argparse
import contextlib
import shutil
import statistics
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.measure import ROOT, WORK, bundle, write, write_section
from benchmarks.models.stragglers import NUMBERS, TASKS
from broker_server.rounds.coordinator import Coordinator
from broker_server.rounds.journal import FederationJournal, RoundRow
from broker_server.rounds.round_state import Result
from broker_server.server.config import ServerConfig
from broker_server.server.loop import ServerLoop
from broker_server.simulation.errors import SimulationStopped
from broker_server.simulation.fleet import Fleet, WorkCosts
from broker_server.simulation.run import RunSetting, simulate
from broker_server.simulation.run_cache import RunCache
from edge_runtime.datasets.dataset import Dataset
from edge_runtime.datasets.dataset_writer import write_split
from edge_runtime.training.engine import ARENA_BYTES, Engine
from edge_runtime.training.graph_cache import GraphCache
from edge_runtime.training.model import Model
from edge_runtime.training.trainer import evaluate
from edge_runtime.wire.blob import BlobStore
from edge_runtime.wire.bundle_folder import graph_path, read_folder
from edge_runtime.wire.tensors import unpack

DOCUMENT = ROOT / "docs" / "link.md"
HEADING = "## Measured: `make bench-stragglers`"
SOURCE = ROOT / "benchmarks" / "models" / "stragglers.py"
BOARDS = 10
SAMPLES = 96
EPOCH_S = 10.0
SLOWER = 10.0
TARGET = 15
VERSIONS = 600
METHODS: dict[str, dict[str, Any]] = {
    "synchronous": {},
    "over-selected, first 8 of 10": {"clients_per_round": 8, "over_selection": 0.25},
    "buffered (FedBuff), 5": {"mode": "buffered", "buffer_size": 5},
    "buffered, 5, slow boards asked for less": {"mode": "buffered", "buffer_size": 5, "work_factor": 3.0},
    "FTTE-weighted, 5": {"mode": "buffered", "buffer_size": 5, "staleness": "ftte"},
}
FLEETS = {"one of ten": 1, "nine of ten": 9}


def data(root: Path, seed: int) -> dict[str, Path]:
    """Each board's data set: numbers around a place of its own, and two functions of all of them."""
    draw = np.random.default_rng(seed)
    across = draw.standard_normal((NUMBERS, 2)) / NUMBERS**0.5
    sets = {}
    for number in range(BOARDS):
        name = f"board-{number}"
        place = draw.standard_normal(NUMBERS) * 1.0
        for split, count in (("train", SAMPLES), ("test", 64)):
            x = (place + draw.standard_normal((count, NUMBERS))).astype(np.float32)
            lines = x @ across
            functions = {"sine": np.sin(2 * lines[:, 0]), "square": lines[:, 1] ** 2}
            labels = {task: functions[task].astype(np.float32).reshape(-1, 1, 1, 1) for task in TASKS}
            write_split(root / name / split, x.reshape(-1, NUMBERS, 1, 1), labels)
        sets[name] = root / name
    return sets


class Course:
    """The loss of each version, with its time; sets `stop` when it has come down to `target`, or after `most`."""

    def __init__(self, folder: Path, loss_of: "Loss", stop: threading.Event, target: float, most: int) -> None:
        self.points: list[tuple[float, float]] = []
        self._folder, self._loss_of, self._stop, self._target, self._most = folder, loss_of, stop, target, most

    def note(self, text: str) -> None:
        """Ignore notes: they stand in the journal."""

    def on_round_closed(self, row: RoundRow, _results: Mapping[str, Result]) -> None:
        """Measure what the round has made."""
        if row.round.work != "train" or row.closed_s is None:
            return
        journal = FederationJournal(self._folder / "server" / "federation.sqlite3")
        blob = journal.weights()[row.round.phase, row.round.group]
        journal.close()
        loss = self._loss_of(BlobStore(self._folder / "server" / "blobs").read(blob.digest))
        self.points.append((row.closed_s, loss))
        if loss <= self._target or len(self.points) == self._most:
            self._stop.set()

    def refresh(self, coordinator: Coordinator, loop: ServerLoop | None) -> None:
        """Nothing moves between rounds."""


class Loss:
    """The sum of the tasks' mean losses on all boards' test data."""

    def __init__(self, folder: Path, sets: Mapping[str, Path]) -> None:
        manifest = read_folder(folder)
        graphs = GraphCache(Engine(1, ARENA_BYTES)).of(manifest, lambda name, _: graph_path(folder, name))
        self._table = manifest.table
        self._model = Model(manifest, graphs, np.zeros(manifest.table.size, np.float32))
        self._tests = [test for path in sets.values() if (test := Dataset.open(path).test) is not None]

    def __call__(self, file: bytes) -> float:
        self._model.weights[:] = unpack(self._table, file)
        return statistics.fmean(sum(evaluate(self._model, test, len(test)).values()) for test in self._tests)


def run(
    name: str,
    folder: Path,
    sets: Mapping[str, Path],
    slow: int,
    rounds: Mapping[str, Any],
    seed: int,
    target: float = -1.0,
    most: int = VERSIONS,
) -> list[tuple[float, float]]:
    """Simulate one federation until it has reached a loss; return (seconds, loss) of each version."""
    root = WORK / "stragglers" / "runs" / name
    shutil.rmtree(root, ignore_errors=True)
    settings = {
        "seed": seed,
        "federation": "simulation",
        "rounds": {"min_devices": BOARDS, "deadline_s": 1e6, **rounds},
        "grouping": {"strategy": "all_in_one", "merged_rounds": VERSIONS - 1, "split_rounds": 1},
        "training": {"batch": 16, "lr": 0.05, "momentum": 0.0, "weight_decay": 0.0},
    }
    config = msgspec.convert(settings, ServerConfig)
    boards = {board: {"speed": 1 / SLOWER} for board in sorted(sets)[:slow]}
    costs = WorkCosts(
        train_s=EPOCH_S / SAMPLES,
        train_head_s=dict.fromkeys(TASKS, 0.0),
        evaluate_s=0.0,
        evaluate_head_s=dict.fromkeys(TASKS, 0.0),
        probe_s=0.0,
    )
    stop = threading.Event()
    course = Course(root, Loss(folder, sets), stop, target, most)
    with ThreadPoolExecutor(1) as workers:
        setting = RunSetting(
            data=sets,
            fleet=msgspec.convert({"boards": boards}, Fleet),
            costs=costs,
            cache=RunCache(root / "cache"),
            workers=workers,
            stop=stop,
        )
        with contextlib.suppress(SimulationStopped):
            simulate(root, config, folder, setting, course)
    return course.points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="federations of each kind")
    seeds = range(parser.parse_args().seeds)
    folder, _ = bundle(f"{SOURCE}:build")
    found: list[dict[str, Any]] = []
    for seed in seeds:
        sets = data(WORK / "stragglers" / f"data-{seed}", seed)
        # All boards alike: what a synchronous federation comes to in TARGET rounds, whatever its boards' speed.
        target = run("target", folder, sets, 0, {}, seed, most=TARGET)[-1][1]
        for fleet, slow in FLEETS.items():
            for method, rounds in METHODS.items():
                points = run(f"{slow}-{seed}", folder, sets, slow, rounds, seed, target)
                result = {
                    "fleet": fleet,
                    "method": method,
                    "seed": seed,
                    "target": target,
                    "seconds": points[-1][0] if points[-1][1] <= target else None,
                    "versions": len(points),
                }
                found.append(result)
                print(result, file=sys.stderr, flush=True)
        write("stragglers", f"python -m benchmarks.stragglers --seeds {seed + 1}", {"runs": found})
        write_section(DOCUMENT, HEADING, text(found))


def text(found: list[dict[str, Any]]) -> str:
    """The section of the document."""
    seeds = len({each["seed"] for each in found})
    slow_s = EPOCH_S * SLOWER
    lines = [
        f"Simulated seconds until the loss on all boards' test data is that of {TARGET} synchronous rounds, where",
        f"some of ten boards take {slow_s:.0f} s for an epoch instead of {EPOCH_S:.0f}; in brackets the versions.",
        f"Means over seeds, of which there are {seeds}. A small model of two made-up functions, of which each board",
        "has its own part, on lines that take no time: it says how long is waited, and nothing of other models.",
        "",
        "| | " + " | ".join(f"{fleet} slow" for fleet in FLEETS) + " |",
        "|---|" + "---|" * len(FLEETS),
    ]
    for method in METHODS:
        cells = []
        for fleet in FLEETS:
            mine = [each for each in found if (each["method"], each["fleet"]) == (method, fleet)]
            reached = [each["seconds"] for each in mine if each["seconds"] is not None]
            versions = statistics.fmean(each["versions"] for each in mine)
            cells.append(
                f"{statistics.fmean(reached):,.0f} s ({versions:.0f})" if len(reached) == len(mine) else "not reached"
            )
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
