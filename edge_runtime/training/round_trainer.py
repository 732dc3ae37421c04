"""A round's training, run after run, and all that it leaves in the state folder for the next round.

checkpoint, momentum/, weighting/ and own/ are there, each with rules of its own; what ends in `-own` belongs to the
run of a model that is the device's own. A run that was interrupted goes on from its checkpoint; one that is complete
leaves one, too, where another follows, so that it is not done again.
"""

# coverage: every branch

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_runtime.agent.carried_state import CarriedState
from edge_runtime.agent.work import Report, never
from edge_runtime.training.checkpoint import Checkpoint, CheckpointHeader
from edge_runtime.training.own_weights import OwnWeights
from edge_runtime.training.personal import TrainingRun
from edge_runtime.training.progress import TrainingProgress
from edge_runtime.training.trainer import Trainer, TrainingOutcome
from edge_runtime.training.weighting_state import WeightingStateStore
from edge_runtime.wire.messages import Plan
from edge_runtime.wire.personal import kept_parts
from edge_runtime.wire.tensors import TensorTable, Vector

RUNS = ("", "-own")
"""The names of runs in the files that they leave: the federation's model, and the device's own beside it."""
_log = logging.getLogger(__name__)
ValLoss = dict[str, float] | None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The result of a round's runs: the weights (D,) to be sent, and what was measured on the way."""

    weights: Vector
    own: TrainingOutcome
    """Of the model that the device uses."""
    sent: TrainingOutcome
    """Of the model that is sent: the same, where there is one."""
    val_loss: ValLoss
    """Before the training."""
    wall_s: float


class RoundTrainer:
    """Does the training of rounds. `checkpoint_s` are the least seconds between two checkpoints of a run."""

    def __init__(self, state: Path, checkpoint_s: float) -> None:
        self._momenta = {name: CarriedState(state / f"momentum{name}") for name in RUNS}
        self._checkpoints = {name: Checkpoint(state / f"checkpoint{name}", checkpoint_s) for name in RUNS}
        self._own = OwnWeights(state / "own")
        self._weighting_states = WeightingStateStore(state / "weighting")

    def forget(self) -> None:
        """Delete the checkpoints. Raises OSError."""
        for checkpoint in self._checkpoints.values():
            checkpoint.delete()

    def restored(self, plan: Plan, table: TensorTable, received: Vector) -> Vector:
        """Return the received weights (D,) with what the device has of its own in their place. Raises OSError.

        In a group's first round it has nothing, whatever another federation has left.
        """
        if plan.training is not None and plan.training.first_epoch == 0:
            return received
        kept = kept_parts(table, plan.personal)
        return self._own.restore(table, received, kept, plan.bundle.digest, plan.round)

    def train(
        self,
        runs: Sequence[TrainingRun],
        plan: Plan,
        trainer: Trainer,
        *,
        key: str,
        started_s: float,
        validate: Callable[[], ValLoss],
        report: Report,
        is_stopped: Callable[[], bool] = never,
    ) -> Trained:
        """Do the runs of a plan in order; `key` names what they depend on, `started_s` is when the work began.

        `validate` measures the first run's weights before it. Once `is_stopped` is true, the run that is going on ends
        after its present step, and those that follow after one. Raises EngineError, OSError and what `report` raises.
        """
        table = trainer.model.table
        kept = kept_parts(table, plan.personal)
        clock = _Clock(started_s=started_s)
        found = []
        for run in runs:
            outcome, state = self._run(
                run, plan, trainer, key, clock, validate, report, is_stopped, stays=run is not runs[-1]
            )
            found.append(outcome)
            if run.keeps:
                self._own.save(table, trainer.model.weights, kept, plan.bundle.digest, plan.round)
        if outcome.weighting_state is not None:
            self._weighting_states.save(plan.bundle.digest, outcome.weighting_state, plan.round)
        return Trained(
            weights=runs[-1].sent(trainer.model.weights, state),
            own=found[0],
            sent=found[-1],
            val_loss=clock.val_loss,
            wall_s=clock.wall_s,
        )

    def _run(
        self,
        run: TrainingRun,
        plan: Plan,
        trainer: Trainer,
        key: str,
        clock: "_Clock",
        validate: Callable[[], ValLoss],
        report: Report,
        is_stopped: Callable[[], bool],
        *,
        stays: bool,
    ) -> tuple[TrainingOutcome, Vector]:
        """Do one run; return its outcome and the optimizer's state. With `stays` its end is a checkpoint as well."""
        model, checkpoints, momentum = trainer.model, self._checkpoints[run.name], self._momenta[run.name]
        is_first = run.settings.first_epoch == 0  # a group's first round: no state is carried over from another phase
        layout = run.optimizer.table(model.table.parameters)
        carried = momentum.load(layout, plan.round - 1) if run.carries and not is_first else None
        state = np.zeros(layout.size, np.float32) if carried is None else carried
        model.weights[:] = run.start
        checkpoint = checkpoints.load(key, model.weights, state)
        if checkpoint is not None:
            clock.before_s, clock.val_loss, clock.is_measured = checkpoint.wall_s, checkpoint.val_loss, True
        model.begin_round(checkpoint.progress.steps if checkpoint else 0)
        if not clock.is_measured:
            clock.val_loss, clock.is_measured = validate(), True
        report("train", 0, 1)
        newest: Callable[[], TrainingProgress] | None = None

        def write(progress: Callable[[], TrainingProgress]) -> None:
            header = CheckpointHeader(key=key, progress=progress(), val_loss=clock.val_loss, wall_s=clock.wall_s)
            try:
                checkpoints.save(header, model.weights, state)
                model.mark_checkpoint()
            except OSError as exc:
                _log.warning("no checkpoint of round %d could be written: %s", plan.round, exc.strerror)

        def save(progress: Callable[[], TrainingProgress]) -> None:
            nonlocal newest
            newest = progress
            if checkpoints.is_due:
                write(progress)

        outcome = trainer.train(
            run.settings,
            state,
            weighting_state=None if is_first else self._weighting_states.load(plan.bundle.digest, plan.round),
            received=run.received[: len(model.parameters)],
            held=run.held,
            optimizer=run.optimizer,
            repeat=run.steps,
            trained=run.trained,
            after=checkpoint.progress if checkpoint else None,
            save=save,
            report=lambda done, total: report("train", done, total),
            enter=lambda stage: report(stage, 0, 1),
            is_stopped=is_stopped,
        )
        model.finish_round()
        if stays and newest is not None:
            write(newest)
        momentum.save(layout, state if run.carries else None, plan.round)
        return outcome, state


@dataclass(kw_only=True)
class _Clock:
    """The seconds of a round's training, those of processes before this one too, and what was measured first."""

    started_s: float
    before_s: float = 0.0
    is_measured: bool = False
    val_loss: ValLoss = None

    @property
    def wall_s(self) -> float:
        return self.before_s + time.monotonic() - self.started_s
