"""The seam between the agent and training: requests to a worker, and its results.

The agent owns the link and the state folder; a worker owns the data set and the engine. A worker is called on a
thread of its own, one call at a time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edge_runtime.wire.blob import Blob, BlobStore
from edge_runtime.wire.compression import Scheme
from edge_runtime.wire.energy import Energy
from edge_runtime.wire.linear import LinearFacts
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import Affinity, Evaluation, Hello, MemoryUse, Plan, RefusalReason, Update, WorkStage
from edge_runtime.wire.split_learning import MessageChannel
from edge_runtime.wire.tensors import Vector

MAX_LOSS = 1e18
"""The largest loss that a message may have; beyond it training has diverged."""
Report = Callable[[WorkStage, int, int], None]
"""A callback with a stage, steps done and steps in all, when the stage begins and after each of its steps.

Raises WorkCancelled when the work is no longer wanted.
"""


class WorkCancelled(Exception):
    """The plan that is being worked on is no longer wanted. A worker lets it pass through."""


class WorkerUnusable(Exception):
    """A worker cannot be made: its data set or its engine cannot be used, for the reason in the message."""


class NoData(WorkerUnusable):
    """A worker cannot be made yet: its data set is not there."""


class WorkRefused(Exception):
    """A plan cannot, or should not, be worked on: `reason` and `detail` go to the server as a Refusal."""

    def __init__(self, reason: RefusalReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: RefusalReason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The result of local training: the new weights in the layout of the manifest's table, and measurements.

    `val_loss` is of the weights before training. None is for what was not measured.
    """

    weights: Vector
    examples: dict[str, int]
    train_loss: dict[str, float]
    val_loss: dict[str, float] | None
    affinity: Affinity | None
    wall_s: float
    peak_rss_bytes: int | None
    memory: MemoryUse | None = None
    linear: LinearFacts | None = None
    """Of a linear model, whose `weights` are what the plan asks for, in the layout of `answer_table`."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """The losses of the plan's weights, by task, over `examples`, and the metrics of those tasks that have one."""

    loss: dict[str, float]
    examples: dict[str, int]
    wall_s: float
    peak_rss_bytes: int | None
    metrics: dict[str, float] | None = None


def never() -> bool:
    """Return that work is not to end early."""
    return False


@dataclass(frozen=True, kw_only=True)
class DownloadedPlan:
    """A plan with its files, downloaded and checked."""

    plan: Plan
    manifest: Manifest
    """In split learning without the encoder."""
    weights: Vector
    """In the layout of the manifest's table; not to be changed."""
    graphs: BlobStore
    """The store with the manifest's graphs."""
    centre: Vector | None = None
    """What a plan holds parts to, in the layout of the weights."""
    is_stopped: Callable[[], bool] = never
    """Whether training is to end after its present step, its result being what was done until then."""


class SplitLearningChannel(MessageChannel, Protocol):
    """A seam: a round's messages to and from the encoder server. `receive` raises WorkCancelled."""

    def open(self, max_message_bytes: int) -> None:
        """Begin a round, in which no message is longer than this."""
        ...


class Worker(Protocol):
    """Trains and evaluates as a plan asks, on this device's data.

    In split learning `channel` leads to the encoder server; otherwise it may be left out. Both calls may raise
    WorkRefused, and let WorkCancelled, which `report` and `channel` raise, pass.
    """

    def hello(self) -> Hello:
        """Return the device's Hello: its software, data and memory."""
        ...

    def train(
        self, downloaded: DownloadedPlan, report: Report, channel: SplitLearningChannel | None = None
    ) -> TrainResult:
        """Train locally by `plan.training`."""
        ...

    def evaluate(
        self, downloaded: DownloadedPlan, report: Report, channel: SplitLearningChannel | None = None
    ) -> EvaluationResult:
        """Measure the losses, and metrics, over `plan.data_split`."""
        ...


def check_trained(result: TrainResult) -> None:
    """Raise WorkRefused if trained weights, losses or affinities are not finite."""
    if not np.isfinite(result.weights).all():
        raise WorkRefused("diverged", "after training, weights were not finite: a lower learning rate may help")
    _check_finite("training loss", result.train_loss)
    _check_finite("validation loss", result.val_loss or {})
    if result.affinity is not None and not _all_finite(result.affinity):
        raise WorkRefused("diverged", "an affinity was not finite: a lower learning rate may help")


def update_message(
    plan: Plan, result: TrainResult, file: Blob, scheme: Scheme, *, bytes_down: int, energy: Energy | None
) -> Update:
    """Return the message that announces an update, whose `file` was written by `scheme`."""
    return Update(
        round=plan.round,
        group=plan.group,
        weights=file,
        scheme=scheme,
        base=None if scheme == "fp32" else plan.weights.digest,
        examples=result.examples,
        train_loss=result.train_loss,
        val_loss=result.val_loss,
        affinity=result.affinity,
        wall_s=result.wall_s,
        peak_rss_bytes=result.peak_rss_bytes,
        bytes_down=bytes_down,
        energy=energy,
        memory=result.memory,
        linear=result.linear,
    )


def evaluation_message(plan: Plan, result: EvaluationResult, *, bytes_down: int, energy: Energy | None) -> Evaluation:
    """Return the message with an evaluation's losses and metrics. Raises WorkRefused if one is not finite."""
    _check_finite("evaluation loss", result.loss)
    _check_finite("metric", result.metrics or {})
    return Evaluation(
        round=plan.round,
        group=plan.group,
        loss=result.loss,
        metrics=result.metrics,
        examples=result.examples,
        wall_s=result.wall_s,
        peak_rss_bytes=result.peak_rss_bytes,
        bytes_down=bytes_down,
        energy=energy,
    )


def _all_finite(affinity: Affinity) -> bool:
    matrices = (affinity.mean, affinity.variance or ())
    return all(abs(value) <= MAX_LOSS for matrix in matrices for row in matrix for value in row)


def _check_finite(name: str, by_task: Mapping[str, float]) -> None:
    for task, value in sorted(by_task.items()):
        if not abs(value) <= MAX_LOSS:
            raise WorkRefused("diverged", f"the {name} of {task} is {value}: a lower learning rate may help")
