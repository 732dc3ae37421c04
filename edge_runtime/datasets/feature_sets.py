"""Data sets of features, one for each device, and the bundle of the linear model that goes with them."""

# coverage: every branch

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.datasets.dataset import SPLITS, DatasetInvalid, Description, SplitName
from edge_runtime.datasets.dataset_writer import remove_split, write_description
from edge_runtime.datasets.feature_sources import Source, Table
from edge_runtime.datasets.partition import Fractions
from edge_runtime.wire.blob import describe
from edge_runtime.wire.bundle_folder import write_folder
from edge_runtime.wire.files import write_atomic
from edge_runtime.wire.labels import LabelContract
from edge_runtime.wire.linear import FEATURES, OF_CLASSES, LinearModel, LossName
from edge_runtime.wire.manifest import Array as Shape
from edge_runtime.wire.manifest import File, Input, Manifest, Parity, Stage, Task
from edge_runtime.wire.tensors import TensorTable, pack

Array = NDArray[Any]
Sets = dict[SplitName, Table]
DEVICES, BUNDLE = "devices", "bundle"


def divided(tables: Mapping[str, Table], fractions: Fractions, seed: int) -> dict[str, Sets]:
    """Return each device's samples in sets, by a seeded permutation of its own. Raises PartitionImpossible."""
    found = {}
    for name, (x, y) in tables.items():
        order = np.random.default_rng((seed, *name.encode())).permutation(len(x))
        bounds = np.cumsum(fractions.counts(len(x), f"the samples of {name}"))
        parts = np.split(order, bounds[:-1])
        found[name] = {split: (x[part], y[part]) for split, part in zip(SPLITS, parts, strict=True) if len(part)}
    return found


def standardised(devices: Mapping[str, Sets]) -> dict[str, Sets]:
    """Return the sets with features of mean 0 and deviation 1 over all training samples; constants stay."""
    whole = np.concatenate([sets["train"][0] for sets in devices.values()]).astype(np.float64)
    mean, deviation = whole.mean(0), whole.std(0)
    varies = deviation > 0
    mean, deviation = np.where(varies, mean, 0.0), np.where(varies, deviation, 1.0)
    return {
        name: {split: ((x - mean) / deviation, y) for split, (x, y) in sets.items()} for name, sets in devices.items()
    }


def pooled(devices: Mapping[str, Sets]) -> dict[str, Sets]:
    """Return the training samples of all devices as one device's, and its test sets: the model without devices."""
    names = sorted({split for sets in devices.values() for split in sets})
    return {
        "all": {
            split: (
                np.concatenate([sets[split][0] for sets in devices.values() if split in sets]),
                np.concatenate([sets[split][1] for sets in devices.values() if split in sets]),
            )
            for split in names
        }
    }


def write(out: Path, kind: str, source: Source, devices: Mapping[str, Sets], loss: LossName) -> None:
    """Write OUT/devices/NAME for each device and OUT/bundle. Raises DatasetInvalid for values that are not finite."""
    for name, sets in devices.items():
        folder = out / DEVICES / name
        for split in SPLITS:
            remove_split(folder / split)
        for split, (x, y) in sets.items():
            if not np.isfinite(x).all() or not np.isfinite(y).all():
                raise DatasetInvalid(f"{kind}: {name} has a value that is not finite")
            labels = y.astype(np.uint8 if source.loss in OF_CLASSES else np.float32)
            for file, values in ((source.task, labels), (FEATURES, x.astype(np.float32))):
                buffer = io.BytesIO()
                np.save(buffer, values)
                write_atomic(folder / split / f"{file}.npy", buffer.getvalue())
        counts = {split: len(x) for split, (x, _) in sets.items()}
        write_description(folder, Description(name=name, source=source.about, inputs=(FEATURES,), counts=counts))
    size = next(iter(devices.values()))["train"][0].shape[1]
    manifest, weights = linear_bundle(kind, source, size, loss)
    write_folder(out / BUNDLE, manifest, weights, {})


def linear_bundle(name: str, source: Source, size: int, loss: LossName) -> tuple[Manifest, bytes]:
    """Return the manifest of a linear model of `size` features, and the file of its weights, which are 0."""
    table = TensorTable.of({f"head.{source.task}.weight": (size,)})
    weights = pack(table, np.zeros(size, np.float32))
    blob = describe(weights)
    scalar = Shape(shape=(), dtype="float32")
    bounds = (0.0, 1.0) if loss in OF_CLASSES else None
    task = Task(
        name=source.task, target=scalar, prediction=scalar, metric=source.metric, labels=LabelContract(bounds=bounds)
    )
    manifest = Manifest(
        format=2,
        name=name,
        tasks=(task,),
        other_inputs={FEATURES: Input(shape=(size,), dtype="float32")},
        representation=(Shape(shape=(size,), dtype="float32"),),
        values=(),
        stages=(Stage(reads=(f"x.{FEATURES}",), writes=("z.0",), parameters=()),),
        tensors=table.tensors,
        graphs={},
        weights=File(digest=blob.digest, size_bytes=blob.size_bytes),
        opset=1,
        parity=Parity(max_relative_error=0.0, worst="", compared=0),
        versions={},
        linear=LinearModel(loss=loss),
    )
    return manifest, weights
