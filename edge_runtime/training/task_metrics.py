"""The metrics of a model's tasks, batch by batch, from the predictions of its heads."""

import math

from edge_runtime.training.encoder import Representation
from edge_runtime.training.metrics import metric_of
from edge_runtime.training.model import Labelled, Model, Targets

PREDICTIONS_BYTES = 1024**2
"""The most bytes of predictions in memory at once, or those of one sample."""


class TaskMetrics:
    """The metrics of all tasks that have one, over labelled samples in evaluation mode."""

    def __init__(self, model: Model) -> None:
        found = {task.name: metric_of(task) for task in model.manifest.tasks}
        self._model = model
        self._metrics = {task: metric for task, metric in found.items() if metric is not None}

    def add(self, z: Representation, targets: Targets) -> None:
        """Take a batch by its representation in evaluation mode. Raises EngineError."""
        for task, metric in self._metrics.items():
            target, arrays = targets[task], z
            if isinstance(target, Labelled):
                arrays, target = tuple(array[target.rows] for array in z), target.target
            about = self._model.manifest.task(task)
            step = max(1, PREDICTIONS_BYTES // (4 * sum(math.prod(output.shape) for output in about.outputs.values())))
            for start in range(0, len(target), step):
                some = slice(start, start + step)
                found = self._model.predict(task, tuple(array[some] for array in arrays))
                metric.add(found[about.measured_output], target[some])

    def result(self) -> dict[str, float]:
        """Return the metrics by task, without tasks that have no metric or no label."""
        found = {task: metric.result() for task, metric in self._metrics.items()}
        return {task: value for task, value in found.items() if value is not None}
