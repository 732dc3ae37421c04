"""Public data sets for linear models, each a table of features for every device: read from a file that a user has.

school      MALSAR's school.mat: exam scores of 139 schools (27 features)
landmine    LandmineData.mat: mines in 29 fields of radar images (9 features)
parkinsons  parkinsons_updrs.data of UCI: the UPDRS of 42 patients by their voice (16 features)
har         an npz with X (n, d), y (n,) and subject (n,): what 30 people do, by a phone's sensors
related     made here: classes of devices whose weights are mixtures of two
values      made here in the same way: values instead of classes
"""

# coverage: every branch

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.datasets.dataset import BROKEN_HEADER, DatasetInvalid
from edge_runtime.datasets.mat_file import Value, read_mat
from edge_runtime.wire.linear import LossName
from edge_runtime.wire.metrics import MetricName

Array = NDArray[Any]
Table = tuple[Array, Array]
"""Features (n, d) and labels (n,) of one device, with a column of ones where the features have no other for a bias."""
VOICE_FROM = 6
"""The column of Parkinson's that the features begin with."""
RELATED_DEVICES, RELATED_SAMPLES, RELATED_FEATURES = 8, 120, 12


@dataclass(frozen=True, kw_only=True)
class Source:
    """A kind of data: its task, and how its file is read."""

    task: str
    loss: LossName
    metric: MetricName
    standardised: bool
    """Whether features are brought to mean 0 and deviation 1 of the training samples of all devices."""
    about: str
    read: Callable[[Path | None, int, int], Mapping[str, Table]]
    """Tables by device, of a file, the class that counts (for data of several) and a seed."""


def _named(path: Path | None) -> Path:
    if path is None:
        raise DatasetInvalid("this kind of data is read from a file: name it after the kind")
    return path


def _cells(path: Path | None, *names: str) -> list[list[Array]]:
    """Return cells of a MAT file. Raises DatasetInvalid."""
    place = _named(path)
    found = read_mat(place)
    cells: list[list[Array]] = []
    for name in names:
        value: Value | None = found.get(name)
        if not isinstance(value, list):
            raise DatasetInvalid(f"{place} has no cell {name!r}; it has {', '.join(found)}")
        cells.append(value)
    x, y = cells
    if len(x) != len(y) or any(len(one) != len(other) for one, other in zip(x, y, strict=True)):
        raise DatasetInvalid(f"{place}: {names[0]} and {names[1]} are not of the same samples")
    return cells


def _with_bias(x: Array) -> Array:
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def _school(path: Path | None, _positive: int, _seed: int) -> dict[str, Table]:
    x, y = _cells(path, "X", "Y")
    return {
        f"school-{i + 1:03}": (one.astype(float), other.ravel())
        for i, (one, other) in enumerate(zip(x, y, strict=True))
    }


def _landmine(path: Path | None, _positive: int, _seed: int) -> dict[str, Table]:
    x, y = _cells(path, "feature", "label")
    return {
        f"field-{i + 1:02}": (_with_bias(one), (other.ravel() > 0).astype(np.uint8))
        for i, (one, other) in enumerate(zip(x, y, strict=True))
    }


def _parkinsons(path: Path | None, _positive: int, _seed: int) -> dict[str, Table]:
    place = _named(path)
    try:
        with place.open(newline="", encoding="ascii") as file:
            lines = list(csv.reader(file))
        values = np.array([[float(value) for value in line] for line in lines[1:] if line])
        people, score, voice = values[:, 0].astype(int), values[:, 5], values[:, VOICE_FROM:]
    except OSError as exc:
        raise DatasetInvalid(f"{place} cannot be read: {exc.strerror}") from exc
    except (ValueError, IndexError, csv.Error) as exc:
        raise DatasetInvalid(f"{place} is not UCI's table of Parkinson's telemonitoring: {exc}") from exc
    return {
        f"patient-{one:02}": (_with_bias(voice[people == one]), score[people == one])
        for one in sorted(set(people.tolist()))
    }


def _har(path: Path | None, positive: int, _seed: int) -> dict[str, Table]:
    place = _named(path)
    try:
        with np.load(place, allow_pickle=False) as file:
            x, y, subject = file["X"], file["y"], file["subject"]
    except OSError as exc:
        raise DatasetInvalid(f"{place} cannot be read: {exc.strerror or exc}") from exc
    except (KeyError, *BROKEN_HEADER) as exc:
        raise DatasetInvalid(f"{place} is no npz with X, y and subject: {exc}") from exc
    if x.ndim != 2 or y.shape != (len(x),) or subject.shape != (len(x),):
        raise DatasetInvalid(f"{place}: X, y and subject are {x.shape}, {y.shape} and {subject.shape}")
    return {
        f"person-{one:02}": (_with_bias(x[subject == one]), (y[subject == one] == positive).astype(np.uint8))
        for one in sorted(set(subject.tolist()))
    }


def _values(_path: Path | None, _positive: int, seed: int) -> dict[str, Table]:
    """Return devices whose weights are mixtures of two vectors."""
    rng = np.random.default_rng(seed)
    basis = rng.normal(size=(2, RELATED_FEATURES))
    made = {}
    for number in range(RELATED_DEVICES):
        w = rng.normal(size=2) @ basis + 0.1 * rng.normal(size=RELATED_FEATURES)
        x = rng.normal(size=(RELATED_SAMPLES, RELATED_FEATURES))
        noise = rng.normal(size=RELATED_SAMPLES)
        made[f"device-{number + 1}"] = (_with_bias(x), x @ w + noise)
    return made


def _related(path: Path | None, positive: int, seed: int) -> dict[str, Table]:
    return {name: (x, (y > 0).astype(np.uint8)) for name, (x, y) in _values(path, positive, seed).items()}


SOURCES: Mapping[str, Source] = {
    "school": Source(
        task="score", loss="half_squared", metric="rmse", standardised=False, about="exam scores", read=_school
    ),
    "landmine": Source(
        task="mine", loss="hinge", metric="accuracy", standardised=True, about="mines in radar images", read=_landmine
    ),
    "parkinsons": Source(
        task="updrs", loss="half_squared", metric="rmse", standardised=True, about="UPDRS by voice", read=_parkinsons
    ),
    "har": Source(
        task="activity", loss="hinge", metric="accuracy", standardised=True, about="one activity or not", read=_har
    ),
    "related": Source(
        task="label", loss="hinge", metric="accuracy", standardised=False, about="classes, made here", read=_related
    ),
    "values": Source(
        task="value", loss="half_squared", metric="rmse", standardised=False, about="values, made here", read=_values
    ),
}
