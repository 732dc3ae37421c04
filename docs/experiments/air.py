"""Beijing's air: twelve stations as natural devices, and nine forecasts of the next day's means.

    python docs/experiments/air.py prsa_csv.tar.xz --out runs/air
    python -m broker_server simulate docs/experiments/air.toml --out runs/air-compare

The files are those of the Beijing Multi-Site Air-Quality data (Zhang et al., Proc. R. Soc. A 473, 2017; UCI): one CSV
file for each station, hourly from 2013-03 to 2017-02, in a folder or in an archive. What goes in are two days of eleven
readings, standardised by all stations' training years (gases, particles and rain by their logarithm); the tasks are
the means of nine of them over the next day. A mean of fewer than twelve readings is no label, and a sample that lacks
over a fifth of its readings is left out. The first two and a half years are training data, half a year is for
validation, the rest for tests.
"""

import argparse
import csv
import io
import math
import tarfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edge_runtime.datasets.dataset import Description
from edge_runtime.datasets.dataset_writer import write_description
from export.losses import masked_l2
from export.model import MultiTaskModel

READINGS = ("PM2.5", "PM10", "SO2", "NO2", "CO", "O3", "TEMP", "PRES", "DEWP", "RAIN", "WSPM")
TASKS = {"pm25": 0, "pm10": 1, "so2": 2, "no2": 3, "co": 4, "o3": 5, "temp": 6, "pres": 7, "wspm": 10}
"""By task, the reading that it forecasts."""
SKEWED = [0, 1, 2, 3, 4, 5, 9]
BEFORE_H, AHEAD_H, YEAR_H = 48, 24, 365 * 24
STEPS_H = {"train": 24, "val": 24, "test": 12}
HIDDEN, WIDTH = 32, 8


class Encoder(nn.Module):
    """A narrow encoder, 88 to 32 to 8, over six-hour means: readings (B, 11, 48) to (B, 8)."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.AvgPool1d(6),
            nn.Flatten(),
            nn.Linear(len(READINGS) * BEFORE_H // 6, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, WIDTH),
            nn.LayerNorm(WIDTH),
            nn.ReLU(),
        )

    def forward(self, readings):
        """Return the representation."""
        return self.layers(readings)


def build():
    """Return the narrow encoder and nine forecasts."""
    return MultiTaskModel(
        encoder=Encoder(),
        heads={task: nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 1)) for task in TASKS},
        losses=dict.fromkeys(TASKS, masked_l2),
        example_input={"readings": torch.rand(4, len(READINGS), BEFORE_H)},
        example_targets={task: torch.rand(4, 1) for task in TASKS},
    )


def prepare(source, out):
    """Write a data set for each station."""
    stations = {_station(name): _read(text) for name, text in _files(source)}
    if not stations:
        raise SystemExit(f"{source} has no PRSA_Data_STATION_….csv")
    cut = 5 * YEAR_H // 2
    known = np.concatenate([readings[:cut] for readings in stations.values()])
    mean, spread = np.nanmean(known, axis=0), np.nanstd(known, axis=0)
    for station, readings in sorted(stations.items()):
        scaled = ((readings - mean) / np.where(spread > 0, spread, 1)).astype(np.float32)
        ends = {"train": (0, cut), "val": (cut, 3 * YEAR_H), "test": (3 * YEAR_H, len(scaled))}
        counts = {
            split: _write(out / station / split, scaled, range(first + BEFORE_H, end - AHEAD_H, STEPS_H[split]))
            for split, (first, end) in ends.items()
        }
        write_description(
            out / station, Description(name=station, source=source.name, inputs=("readings",), counts=counts)
        )
        print(out / station, counts)


def _files(source):
    """Yield the names and texts of the CSV files in a folder or an archive."""
    if source.is_dir():
        for path in sorted(source.rglob("PRSA_Data_*.csv")):
            yield path.name, path.read_text()
        return
    with tarfile.open(source) as archive:
        for member in archive:
            if member.isfile() and Path(member.name).match("PRSA_Data_*.csv"):
                yield Path(member.name).name, archive.extractfile(member).read().decode()


def _station(name):
    return name.split("_")[2].lower()


def _read(text):
    """Return a station's readings, (hours, 11), NaN where there is none."""
    rows = np.array([[_number(row[name]) for name in READINGS] for row in csv.DictReader(io.StringIO(text))])
    rows[:, SKEWED] = np.log1p(rows[:, SKEWED])
    return rows


def _number(text):
    try:
        return float(text)
    except ValueError:  # NA, or nothing
        return math.nan


def _write(folder, scaled, ends):
    """Write one set; return the number of its samples."""
    whole = [at for at in ends if np.isnan(scaled[at - BEFORE_H : at]).mean() <= 0.2]
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "readings.npy", np.stack([np.nan_to_num(scaled[at - BEFORE_H : at].T) for at in whole]))
    for task, channel in TASKS.items():
        means = [_mean(scaled[at : at + AHEAD_H, channel]) for at in whole]
        np.save(folder / f"{task}.npy", np.array(means, np.float32)[:, None])
    return len(whole)


def _mean(readings):
    known = readings[np.isfinite(readings)]
    return known.mean() if 2 * len(known) >= len(readings) else math.nan


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the data sets of the stations.")
    parser.add_argument("source", type=Path, help="the folder of the stations' CSV files, or an archive of them")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    prepare(args.source, args.out)
