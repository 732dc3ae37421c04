"""Air quality: what six gases and particles at a station will be in six hours, from a day of readings and a calendar.

    python docs/examples/air_quality.py PRSA_Data_Aotizhongxin_20130301-20170228.csv --out data/aotizhongxin
    python -m export compile docs/examples/air_quality.py:build --out bundle
    python -m edge_runtime train --bundle bundle --data data/aotizhongxin --epochs 3

The files are those of the Beijing Multi-Site Air-Quality data (Zhang et al., Proc. R. Soc. A 473, 2017; UCI), one for
each of twelve stations, which are natural devices. Readings are standardised by the station's first 70 %, which are the
training set; the last 15 % are the test set. A sample that lacks a reading is left out.
"""

import argparse
import csv
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edge_runtime.datasets.dataset import Description
from edge_runtime.datasets.dataset_writer import write_description
from export.losses import l1
from export.model import MultiTaskModel

TASKS = {"pm2_5": "PM2.5", "pm10": "PM10", "so2": "SO2", "no2": "NO2", "co": "CO", "o3": "O3"}
READINGS = (*TASKS.values(), "TEMP", "PRES", "DEWP", "RAIN", "WSPM")
HOURS, AHEAD, STRIDE, WIDTH = 24, 6, 6, 32
SHARES = {"train": 0.7, "val": 0.85, "test": 1.0}


class Forecaster(nn.Module):
    """Readings (B, 11, 24) and a calendar (B, 4) to (B, 64)."""

    def __init__(self):
        super().__init__()
        self.signal = nn.Sequential(
            nn.Conv1d(len(READINGS), WIDTH, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(WIDTH, WIDTH, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv1d(WIDTH, WIDTH, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.calendar = nn.Linear(4, WIDTH)
        self.join = nn.Linear(WIDTH * HOURS // 4 + WIDTH, 64)

    def forward(self, readings, calendar):
        joined = torch.cat([self.signal(readings), torch.relu(self.calendar(calendar))], dim=1)
        return torch.relu(self.join(joined))


def build():
    """Six forecasts."""
    return MultiTaskModel(
        encoder=Forecaster(),
        heads={task: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)) for task in TASKS},
        losses=dict.fromkeys(TASKS, l1),
        example_input={"readings": torch.rand(4, len(READINGS), HOURS), "calendar": torch.rand(4, 4)},
        example_targets={task: torch.rand(4, 1) for task in TASKS},
    )


def prepare(source, out):
    """Write a station's data set."""
    with source.open(newline="") as file:
        rows = list(csv.DictReader(file))
    readings = np.array([[_number(row[name]) for name in READINGS] for row in rows], np.float32)
    turns = np.array([[int(row["hour"]) / 24, (int(row["month"]) - 1) / 12] for row in rows]) * 2 * math.pi
    calendar = np.concatenate([np.sin(turns), np.cos(turns)], axis=1).astype(np.float32)
    known = readings[: int(SHARES["train"] * len(rows))]
    spread = np.nanstd(known, axis=0)
    readings = (readings - np.nanmean(known, axis=0)) / np.where(spread > 0, spread, 1)

    start = 0
    for name, share in SHARES.items():
        end = int(share * len(rows))
        ends = [at for at in range(start + HOURS, end - AHEAD, STRIDE) if _is_whole(readings, at)]
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "readings.npy", np.stack([readings[at - HOURS : at].T for at in ends]))
        np.save(folder / "calendar.npy", calendar[[at + AHEAD - 1 for at in ends]])
        for i, task in enumerate(TASKS):
            np.save(folder / f"{task}.npy", readings[[at + AHEAD - 1 for at in ends], i : i + 1])
        print(f"{folder}: {len(ends)} samples")
        start = end
    write_description(out, Description(name=source.stem, source=source.name, inputs=("calendar", "readings")))


def _number(text):
    try:
        return float(text)
    except ValueError:  # NA, or nothing
        return math.nan


def _is_whole(readings, at):
    return np.isfinite(readings[at - HOURS : at]).all() and np.isfinite(readings[at + AHEAD - 1, : len(TASKS)]).all()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the data set of one station.")
    parser.add_argument("source", type=Path, metavar="CSV")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    prepare(args.source, args.out)
