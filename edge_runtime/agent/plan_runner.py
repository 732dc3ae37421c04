"""A plan's work on a thread of its own, so that the link is served while a device trains. One plan at a time.

`start` begins, `cancel` makes the worker's next report raise, `stop` makes training end with what was done, `poll`
returns the outcome, once.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from edge_runtime.agent.carried_state import CarriedState
from edge_runtime.agent.downloads import PlanDownloads
from edge_runtime.agent.energy_totals import EnergyTotals
from edge_runtime.agent.fragment_channel import FragmentChannel
from edge_runtime.agent.work import (
    DownloadedPlan,
    Report,
    WorkCancelled,
    Worker,
    WorkRefused,
    check_trained,
    evaluation_message,
    update_message,
)
from edge_runtime.wire import compression
from edge_runtime.wire.blob import BlobStore, describe
from edge_runtime.wire.compression import Scheme
from edge_runtime.wire.errors import MessageInvalid, TensorsInvalid
from edge_runtime.wire.linear import answer_table
from edge_runtime.wire.messages import Evaluation, Plan, RefusalReason, Update, WorkStage, encode
from edge_runtime.wire.personal import sent_table
from edge_runtime.wire.tensors import TensorTable, Vector, pack, transfer


@dataclass(frozen=True)
class WorkDone:
    """The work has a result: the message for the server, and for an update the file that it announces."""

    message: Update | Evaluation
    file: bytes | None


@dataclass(frozen=True)
class WorkFailed:
    """The worker refused the plan."""

    reason: RefusalReason
    detail: str


@dataclass(frozen=True)
class WorkStopped:
    """The work ended because it was cancelled."""


WorkOutcome = WorkDone | WorkFailed | WorkStopped


class WorkPlace(Protocol):
    """A seam: where work is done that may take long."""

    def submit(self, plan: Plan, work: Callable[[], WorkOutcome]) -> "Future[WorkOutcome]":
        """Do the work on a plan, not on the caller's thread; the future completes when its outcome is known."""
        ...

    def cancel(self) -> None:
        """Note that the work was told to end without a result."""
        ...

    def stop(self) -> None:
        """Note that the training was told to end with what is done."""
        ...

    def close(self) -> None:
        """Wait until the work has ended."""
        ...


class WorkThread:
    """A thread of its own, which reads what it is told in flags, at each step."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "work")  # has no thread before it is used

    def submit(self, _plan: Plan, work: Callable[[], WorkOutcome]) -> "Future[WorkOutcome]":
        """Do the work."""
        return self._executor.submit(work)

    def cancel(self) -> None:
        """Leave it to the flag."""

    def stop(self) -> None:
        """Leave it to the flag."""

    def close(self) -> None:
        """Wait until the thread has ended."""
        self._executor.shutdown(wait=True)


class PlanRunner:
    """Runs a worker's calls. `graphs` has the graph files of a plan's manifest.

    `residuals` has what updates left out, for the next one; `channel` leads to the encoder server. The work is done in
    `place`. Training that takes longer than `limit_s` is stopped, other work refused.
    """

    def __init__(
        self,
        worker: Worker,
        downloads: PlanDownloads,
        graphs: BlobStore,
        residuals: CarriedState,
        totals: EnergyTotals,
        channel: FragmentChannel,
        place: WorkPlace | None = None,
        limit_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = worker
        self._downloads = downloads
        self._graphs = graphs
        self._residuals = residuals
        self._totals = totals
        self._channel = channel
        self._limit_s, self._clock = limit_s, clock
        self._place = place or WorkThread()
        self._future: Future[WorkOutcome] | None = None
        self._cancelled, self._stopped = threading.Event(), threading.Event()
        self._progress: tuple[WorkStage, int, int] | None = None

    def start(self, plan: Plan, bytes_down: int, upload_bytes_per_s: float | None = None) -> None:
        """Begin the work on a plan all of whose files are here. `bytes_down` is how many bytes they took on the link.

        `upload_bytes_per_s` is the link's upload speed, None where it was not measured.
        """
        self._cancelled, self._stopped, self._progress = threading.Event(), threading.Event(), None
        self._channel.begin()
        # What a linear model answers is no change of weights, so nothing of it is left for later.
        scheme = "fp32" if plan.linear else compression.choose(plan.updates, upload_bytes_per_s)
        work = partial(self._work, plan, scheme, bytes_down, self._cancelled, self._stopped)
        self._future = self._place.submit(plan, work)

    def cancel(self) -> None:
        """Make the work end at its next report or message."""
        self._cancelled.set()
        self._channel.cancel()
        self._place.cancel()

    def stop(self) -> None:
        """Make training end after its present step, with what was done."""
        self._stopped.set()
        self._place.stop()

    def progress(self) -> tuple[WorkStage, int, int] | None:
        """Return the latest report, once: stage, steps done, steps in all."""
        progress, self._progress = self._progress, None
        return progress

    def poll(self) -> WorkOutcome | None:
        """Return the outcome of the work, once; None while there is none. Raises a worker's unexpected exceptions."""
        if self._future is None or not self._future.done():
            return None
        future, self._future = self._future, None
        return future.result()

    def close(self) -> None:
        """Cancel, and wait until the thread has ended."""
        self.cancel()
        self._place.close()

    def _work(
        self, plan: Plan, scheme: Scheme, bytes_down: int, cancelled: threading.Event, stopped: threading.Event
    ) -> WorkOutcome:
        begun_s = self._clock()

        def report(stage: WorkStage, done: int, total: int) -> None:
            self._progress = (stage, done, total)
            if cancelled.is_set():
                raise WorkCancelled
            if self._limit_s is not None and self._clock() - begun_s > self._limit_s:
                if stage != "train" or not done:
                    why = f"the work took longer than this device's {self._limit_s:g} s (max_work_s)"
                    raise WorkRefused("limits", why)
                stopped.set()
            self._totals.switch(stage)

        try:
            self._totals.switch(plan.work)
            return self._result(plan, scheme, bytes_down, report, stopped.is_set)
        except WorkCancelled:
            return (
                WorkStopped()
                if cancelled.is_set()
                else WorkFailed("error", "the work stopped although it was not cancelled")
            )
        except WorkRefused as refusal:
            return WorkFailed(refusal.reason, refusal.detail)
        except MemoryError:
            return WorkFailed("memory", "there was not enough memory while working")
        except MessageInvalid as exc:
            return WorkFailed("error", f"the result cannot be sent: {exc}")

    def _result(
        self, plan: Plan, scheme: Scheme, bytes_down: int, report: Report, is_stopped: Callable[[], bool]
    ) -> WorkDone:
        manifest, vector = self._downloads.load(plan)
        downloaded = DownloadedPlan(
            plan=plan,
            manifest=manifest,
            weights=vector,
            graphs=self._graphs,
            centre=self._downloads.centre(plan, manifest.table, vector),
            is_stopped=is_stopped,
        )
        if plan.work == "evaluate":
            evaluation = self._worker.evaluate(downloaded, report, self._channel)
            message = evaluation_message(plan, evaluation, bytes_down=bytes_down, energy=self._totals.energy(plan))
            encode(message)
            return WorkDone(message, None)
        result = self._worker.train(downloaded, report, self._channel)
        self._totals.switch("upload")
        check_trained(result)
        table = manifest.table
        sent = sent_table(table, plan.personal)
        received, trained = (
            each if sent.size == table.size else transfer(table, each, sent) for each in (vector, result.weights)
        )
        file = self._write(plan, scheme, sent, received, trained)
        blob = describe(file, chunk_bytes=plan.weights.chunk_bytes)
        update = update_message(plan, result, blob, scheme, bytes_down=bytes_down, energy=self._totals.energy(plan))
        encode(update)
        return WorkDone(update, file)

    def _write(self, plan: Plan, scheme: Scheme, table: TensorTable, received: Vector, trained: Vector) -> bytes:
        """Return the update's file, and save what it leaves out for the round after. Raises WorkRefused."""
        if plan.linear is not None:
            return pack(answer_table(table, plan.linear), trained)
        begins = plan.training is not None and plan.training.first_epoch == 0
        try:
            file, residual = compression.encode(
                table,
                received=received,
                trained=trained,
                residual=None if begins else self._residuals.load(table.parameters, plan.round - 1),
                scheme=scheme,
                topk_fraction=plan.updates.topk_fraction,
            )
            self._residuals.save(table.parameters, residual, plan.round)
        except TensorsInvalid as exc:
            raise WorkRefused("diverged", f"{exc}: a lower learning rate may help") from exc
        except OSError as exc:
            raise WorkRefused("error", f"the state folder cannot be used: {exc.strerror}") from exc
        return file
