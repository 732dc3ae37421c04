"""Names of the files and folders that a simulation leaves.

OUT/costs.json               CPU seconds of the work on this machine, measured once
OUT/bundles/SEED/            the compiled model
OUT/blank/DEVICE/            inputs without content, for the baseline of constant predictions
OUT/data/DEVICE/             labels of some tasks alone, as links, where `tasks_of` asks for it
OUT/courses/                 group runs that several methods share
OUT/runs/METHOD/SEED/        a run: server/ (its journal), report.json, models/, summary.json when it has finished;
                             alone/DEVICE/ has the same for each device of local training
OUT/summary.json             all summaries
OUT/experiment.json          the names of all methods, in order, and the seeds
"""

from pathlib import Path

import msgspec

from edge_runtime.wire.files import write_atomic

BLANK, BUNDLES, COSTS, DATA = "blank", "bundles", "costs.json", "data"
LOCAL, OUTLINE = "alone", "experiment.json"
RUN_CACHE, RUNS, SUMMARY = "courses", "runs", "summary.json"
SERVER, DEVICES = "server", "devices"
"""Folders of a run: the server's state folder, and one for each device."""


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON."""
    write_atomic(path, msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")
