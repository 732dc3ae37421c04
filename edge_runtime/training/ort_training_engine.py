"""The second engine: a group's training model, run by onnxruntime-training 1.19.2 where that is installed.

One graph computes all losses and all gradients of a step. It reads the parameters, and writes the gradients, in the
caller's flat vectors: the training model takes a buffer for each gradient, which this engine binds to its place in
the vector, so nothing is copied and neither torch nor onnxruntime.training.api (which imports it) is needed. The
optimizer's step is ours (training.optimizer), because 1.19.2 has SGD without momentum alone. Probes, evaluation and
prediction run on the portable graphs, which onnxruntime-training runs like any onnxruntime.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.training.engine import Engine, Graph, engine_version, is_training_build
from edge_runtime.wire.graph_cost import graph_cost
from edge_runtime.wire.manifest import TRAINING, Artifacts, Manifest
from edge_runtime.wire.names import group_id
from edge_runtime.wire.operators import ORT_TRAINING, check_graph_file
from edge_runtime.wire.tensors import STATE, Vector

RELEASE = "1.19.2"


class OrtTrainingUnavailable(RuntimeError):
    """The engine for ONNX Runtime training artifacts cannot be used here, or has nothing to run for this group."""


def check_installed() -> None:
    """Raise OrtTrainingUnavailable unless what is installed as onnxruntime is onnxruntime-training."""
    if not is_training_build():
        raise OrtTrainingUnavailable(
            f"the engine 'ort_training' needs onnxruntime-training {RELEASE}, and {engine_version()} is here: install "
            "onnxruntime-training-cpu in an environment of its own (x86-64, Python up to 3.12), or use 'portable'"
        )


def artifacts_of(manifest: Manifest) -> Artifacts:
    """Return the artifacts of a group's manifest. Raises OrtTrainingUnavailable."""
    group = group_id(manifest.task_names)
    found = manifest.ort_training.groups.get(group) if manifest.ort_training else None
    if found is None:
        raise OrtTrainingUnavailable(
            f"the bundle has no ONNX Runtime training artifacts for {group}: make them with `python -m export split "
            f"BUNDLE --groups {','.join(manifest.task_names)}`, or use the engine 'portable'"
        )
    return found


class OrtTrainingStep:
    """All losses and gradients of a group in one run."""

    def __init__(self, graph: Graph, manifest: Manifest) -> None:
        self._graph = graph
        self._table = manifest.table
        self._tasks = manifest.task_names
        names = [tensor.name for tensor in self._table.parameters.tensors]
        self._done = {f"{name}_grad.accumulation.out": np.empty(1, np.bool_) for name in names}
        self._untrained = [name for name in names if _buffer(name) not in graph.inputs]

    def __call__(
        self,
        x: Mapping[str, NDArray[Any]],
        targets: Mapping[str, NDArray[Any]],
        *,
        weights: Vector,
        gradient: Vector,
        next_state: Vector,
        seeds: Mapping[str, NDArray[Any]],
        loss_weights: NDArray[np.float64] | None = None,
    ) -> dict[str, float]:
        """Return the loss of each task for the inputs x (B, …), and write the gradients over `gradient` (P,).

        The next state of `weights` (D,) goes into `next_state` (D,); `seeds` are by part. The encoder's gradient is
        of Σ w_i · ∂L_i/∂z · 1/√T, which the artifact has in it; w are the `loss_weights` (T,), or 1. Where no loss
        depends on a parameter its gradient is zero. Raises EngineError.
        """
        count = np.ones(len(self._tasks)) if loss_weights is None else loss_weights
        losses = {f"loss.{task}": np.empty((), np.float32) for task in self._tasks}
        gradients = self._table.parameters.views(gradient)
        for name in self._untrained:
            gradients[name].fill(0)
        inputs = {
            **x,
            **{f"target.{task}": targets[task] for task in self._tasks},
            "loss_weights": count.astype(np.float32),
            "lazy_reset_grad": np.ones(1, np.bool_),
            **{f"seed.{part}": seed for part, seed in seeds.items()},
            **self._table.views(weights),
            **{_buffer(name): view for name, view in gradients.items()},
        }
        state = ((name, view) for name, view in self._table.views(next_state).items() if name.startswith(STATE))
        following = {f"next.{name.removeprefix(STATE)}": view for name, view in state}
        self._graph.run(inputs, {"loss": np.empty((), np.float32), **losses, **following, **self._done})
        return {task: float(losses[f"loss.{task}"]) for task in self._tasks}


def _buffer(parameter: str) -> str:
    """Return the training model's input that it writes a parameter's gradient to."""
    return f"{parameter}_grad.accumulation.buffer"


class OrtTrainingCache:
    """The step of the group that is being trained, loaded once for all its rounds."""

    def __init__(self, engine: Engine) -> None:
        """Raise OrtTrainingUnavailable where onnxruntime-training is not installed."""
        check_installed()
        self._engine = engine
        self._loaded: tuple[str, Graph] | None = None

    def step(self, manifest: Manifest, locate: Callable[[str, str], Path]) -> OrtTrainingStep:
        """Return a group's step. `locate` gives the file of the group's training model by the group and its digest.

        Raises EngineError, BundleInvalid for a model with operators that none may have, or OrtTrainingUnavailable where
        the bundle has no artifacts for the group.
        """
        digest = artifacts_of(manifest).training_model.digest
        if self._loaded is None or self._loaded[0] != digest:
            self._loaded = None  # the one before is freed first
            group = group_id(manifest.task_names)
            path, name = locate(group, digest), f"{TRAINING} of {group}"
            graph_cost(check_graph_file(path, name, ORT_TRAINING), name)
            self._loaded = (digest, self._engine.load(path))
        return OrtTrainingStep(self._loaded[1], manifest)
