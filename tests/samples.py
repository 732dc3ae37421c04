"""Samples of messages for all tests. A test gives the fields that it is about; the others have plain values."""

from typing import Any

import msgspec

from edge_runtime.wire.blob import Blob
from edge_runtime.wire.messages import Evaluation, Hello, Plan, Training, Update

NOT_MEASURED = {"peak_rss_bytes": None, "energy": None}
TRAINING = Training(epochs=1, first_epoch=0, batch=4, lr=0.1, momentum=0.9, weight_decay=0.0, seed=0, probe_every=0)


def blob(letter: str = "0", chunks: int = 3) -> Blob:
    """Return the description of content that is nowhere, its digest one letter throughout, in chunks of 1 KiB."""
    return Blob(digest=letter * 64, size_bytes=chunks * 1024, chunk_bytes=1024)


def training(**changes: Any) -> Training:
    """Return training settings: an epoch of SGD with momentum, in batches of 4."""
    return msgspec.structs.replace(TRAINING, **changes)


def hello(**changes: Any) -> Hello:
    """Return the hello of a device with eight examples of task a."""
    fields = {"examples": {"train": 8}, "tasks": ("a",), "memory_bytes": None}
    return Hello(**{"software": "s", "engine": "e", "platform": "p", **fields, **changes})


def plan(number: int = 0, *, tasks: tuple[str, ...] = ("a",), **changes: Any) -> Plan:
    """Return a plan of round `number`: to train, or to evaluate on the test set with work="evaluate"."""
    evaluates = changes.get("work") == "evaluate"
    work = {"work": "evaluate", "data_split": "test"} if evaluates else {"work": "train", "training": TRAINING}
    about = {"round": number, "phase": "merged", "group": "+".join(tasks), "tasks": tasks, "deadline_s": 100.0}
    files = {"bundle": blob("a"), "weights": blob("b"), "signature": "0" * 128}
    return Plan(**{**about, **files, **work, **changes})


def update(number: int = 0, **changes: Any) -> Update:
    """Return the update of round `number` on group a, which nothing was measured of."""
    about = {"round": number, "group": "a", "weights": blob("c"), "examples": {"a": 8}, "wall_s": 1.0, "bytes_down": 0}
    found = {"train_loss": {"a": 0.5}, "val_loss": None, "affinity": None}
    return Update(**{**about, **found, **NOT_MEASURED, **changes})


def evaluation(number: int = 0, **changes: Any) -> Evaluation:
    """Return the evaluation of round `number` on group a, which nothing was measured of but the loss."""
    about = {"round": number, "group": "a", "loss": {"a": 0.5}, "examples": {"a": 8}, "wall_s": 1.0, "bytes_down": 0}
    return Evaluation(**{**about, **NOT_MEASURED, **changes})
