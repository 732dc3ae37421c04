"""A device's work on a linear model: what a plan asks for, on the data set's features.

Dual variables never leave the device: state/dual/<round>.f64 has those that a round ended with. The plan says
which round the server's weights are made of, so a round that a power cut interrupted begins from the same variables and
gives the same bytes; and a device that has lost them says so by answering with 0, from which both go on.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edge_runtime.agent.work import DownloadedPlan, EvaluationResult, Report, TrainResult, WorkRefused
from edge_runtime.datasets.dataset import Dataset, Split, convert
from edge_runtime.datasets.fit import check_fits
from edge_runtime.linear.dual import Indices, ascend, local_gap, order_of, sum_of
from edge_runtime.linear.gradient import gradient, smoothness
from edge_runtime.linear.losses import LOSSES, Array, Loss
from edge_runtime.linear.mixed_effect import MixedEffect
from edge_runtime.training.metrics import metric_of
from edge_runtime.training.process_memory import peak_rss_bytes, restart_peak
from edge_runtime.wire.files import write_atomic
from edge_runtime.wire.linear import (
    FEATURES,
    OF_CLASSES,
    DualSteps,
    ForwardStep,
    GradientStep,
    LinearFacts,
    MixedEffectPart,
    StreamStep,
)
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import Plan

STEPS_BETWEEN_REPORTS = 256


class LinearWorker:
    """Answers plans of linear models. `state` is the device's folder."""

    def __init__(self, dataset: Dataset, state: Path) -> None:
        self._dataset = dataset
        self._folder = state / "dual"

    def train(self, downloaded: DownloadedPlan, report: Report) -> TrainResult:
        """Do what the plan asks for. Raises WorkRefused, DatasetInvalid."""
        started_s = time.monotonic()
        restart_peak()
        plan, manifest = downloaded.plan, downloaded.manifest
        x, y = samples(manifest, self._dataset.train)
        loss, w = _loss(manifest), downloaded.weights.astype(np.float64)
        report("train", 0, 1)
        if isinstance(plan.linear, StreamStep):
            seen = np.arange(plan.linear.first, plan.linear.first + plan.linear.count) % len(x)
            x, y = x[seen], y[seen]
        match plan.linear:
            case DualSteps() as asked:
                answer, facts = self._dual(plan, asked, x, y, w, report, loss)
            case GradientStep() | ForwardStep() as asked:
                slope, bend = gradient(x, y, w, loss), smoothness(x, loss)
                answer = slope if isinstance(asked, GradientStep) else w - asked.step * slope
                facts = LinearFacts(steps=len(x), smoothness=bend if np.isfinite(bend) else None)
            case StreamStep():
                answer, facts = gradient(x, y, w, loss), LinearFacts(steps=len(x))
            case MixedEffectPart() as part:
                a, b = _mixed_effect(part).statistics(x, x, y)
                answer, facts = np.concatenate([a[np.tril_indices(len(a))], b]), LinearFacts(steps=len(x))
            case _:
                raise WorkRefused(
                    "bundle", "the bundle's model is linear, and the plan does not say what to do with it"
                )
        report("train", 1, 1)
        return TrainResult(
            weights=answer.astype(np.float32),
            examples={manifest.task_names[0]: len(x)},
            train_loss={manifest.task_names[0]: float(np.mean(loss.value(x @ w, y)))},
            val_loss=None,
            affinity=None,
            wall_s=time.monotonic() - started_s,
            peak_rss_bytes=peak_rss_bytes(),
            linear=facts,
        )

    def evaluate(self, downloaded: DownloadedPlan, report: Report) -> EvaluationResult:
        """Measure loss and metric of the plan's weights. Raises WorkRefused, DatasetInvalid."""
        started_s = time.monotonic()
        restart_peak()
        plan, manifest = downloaded.plan, downloaded.manifest
        assert plan.data_split is not None
        split = self._dataset.splits[plan.data_split]
        if split is None:
            raise WorkRefused("no_data", f"this device has no {plan.data_split} set")
        x, y = samples(manifest, split)
        report("evaluate", 0, len(x))
        task, w = manifest.tasks[0], downloaded.weights.astype(np.float64)
        z = x @ w
        if isinstance(plan.linear, MixedEffectPart):
            known, labels = samples(manifest, self._dataset.train)
            model = _mixed_effect(plan.linear)
            z = model.predict(x, x, w, known, model.coefficients(known, known, labels, w))
        metrics = {}
        if (metric := metric_of(task)) is not None:
            metric.add(z, y)
            if (value := metric.result()) is not None:
                metrics[task.name] = value
        return EvaluationResult(
            loss={task.name: float(np.mean(_loss(manifest).value(z, y)))},
            metrics=metrics or None,
            examples={task.name: len(x)},
            wall_s=time.monotonic() - started_s,
            peak_rss_bytes=peak_rss_bytes(),
        )

    def _dual(
        self, plan: Plan, asked: DualSteps, x: Array, y: Array, w: Array, report: Report, loss: Loss
    ) -> tuple[Array, LinearFacts]:
        """Return b (d,) after the plan's steps, and what was measured before them."""
        assert plan.training is not None
        alpha = self._variables(len(x), asked.since)
        gap, passes = None, 0.0
        if alpha is None:  # the weights are made of what is lost: with 0 the server takes that out
            alpha = np.zeros(len(x))
        else:
            gap, passes = local_gap(x, y, alpha, w, loss), asked.passes
        order = order_of(len(x), passes, (plan.training.seed, plan.round))
        alpha = ascend(x, y, alpha, w, loss, asked.curvature, _reported(order, report))
        self._keep(alpha, plan.round, asked.since)
        return sum_of(x, alpha), LinearFacts(steps=len(order), gap=gap)

    def _variables(self, n: int, since: int | None) -> Array | None:
        """Return the dual variables (n,) that a round ended with; None if they are lost, or of other data."""
        if since is None:
            return np.zeros(n)
        try:
            alpha = np.frombuffer(self._path(since).read_bytes(), np.float64)
        except (FileNotFoundError, ValueError):
            return None
        return alpha if alpha.shape == (n,) and np.isfinite(alpha).all() else None

    def _keep(self, alpha: Array, of_round: int, since: int | None) -> None:
        """Save what the round ends with, beside what it began with: the server may not have got the answer."""
        kept = {self._path(number) for number in (of_round, since) if number is not None}
        try:
            write_atomic(self._path(of_round), alpha.tobytes())
            for path in self._folder.glob("*.f64"):
                if path not in kept:
                    path.unlink()
        except OSError as exc:
            raise WorkRefused("error", f"the state folder cannot be used: {exc.strerror}") from exc

    def _path(self, of_round: int) -> Path:
        return self._folder / f"{of_round}.f64"


def _reported(order: Indices, report: Report) -> Iterator[int]:
    """Give the samples of an order one after another, and say now and then how many are done."""
    for done, index in enumerate(order):
        if done % STEPS_BETWEEN_REPORTS == 0:
            report("train", done, len(order))
        yield int(index)


def _loss(manifest: Manifest) -> Loss:
    assert manifest.linear is not None
    return LOSSES[manifest.linear.loss]


def _mixed_effect(part: MixedEffectPart) -> MixedEffect:
    return MixedEffect(shared=part.shared, ridge=part.ridge, width=part.width)


def samples(manifest: Manifest, split: Split) -> tuple[Array, Array]:
    """Return all features (n, d) and labels (n,) of a set's labelled samples; classes are -1 and 1.

    Raises WorkRefused where there are none, DatasetInvalid for what does not fit the bundle.
    """
    task = manifest.tasks[0]
    indices = np.flatnonzero(split.labelled(task.name))
    if not len(indices):
        raise WorkRefused("no_data", f"this device has no labels for {task.name}; it has {', '.join(split.tasks)}")
    check_fits(manifest, split)
    inputs, labels = split.batch(indices, [task.name], [FEATURES])
    y = convert(labels[task.name], "float32", split.factors.get(task.name)).astype(np.float64)
    assert manifest.linear is not None
    if manifest.linear.loss in OF_CLASSES:
        y = np.where(y > 0.5, 1.0, -1.0)
    return inputs[FEATURES].astype(np.float64), y
