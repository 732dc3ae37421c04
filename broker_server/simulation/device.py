"""A simulated device: a real agent, with its session and its state folder, whose work is done elsewhere.

The agent's clock and link are the simulation's. Work takes its modelled time on the simulation's clock; meanwhile a
worker process does it, and its outcome is there when the simulated time is over.
"""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec

from broker_server.simulation.energy import BoardPower, SimulatedAccount
from broker_server.simulation.fleet import Board
from broker_server.simulation.split_learning import EncoderState, encoder_state
from broker_server.simulation.worker import DeviceTask, TaskRefused, perform
from edge_runtime.agent.loop import Agent
from edge_runtime.agent.plan_runner import WorkOutcome, WorkStopped
from edge_runtime.agent.state import State
from edge_runtime.agent.work import (
    DownloadedPlan,
    EvaluationResult,
    Report,
    SplitLearningChannel,
    TrainResult,
    WorkRefused,
    never,
)
from edge_runtime.wire.encoder_pipe import EncoderRound
from edge_runtime.wire.link import Link
from edge_runtime.wire.messages import Hello, Plan
from edge_runtime.wire.topics import Topics
from edge_runtime.worker import LocalWorker

MAX_DOWNLOAD_BYTES = 1 << 40


@dataclass(frozen=True, kw_only=True)
class ModelledWork:
    """Work on a plan that has begun, in simulated seconds: `seconds` in all, `board_s` of the board."""

    seconds: float
    board_s: float
    opened: EncoderRound | None
    """The round for the encoder server; None for a plan without split learning, or one that came too late."""


@dataclass(frozen=True, kw_only=True)
class DeviceContext:
    """Everything that a simulation gives a device."""

    name: str
    data: Path
    state: Path
    federation: str
    server_key: str
    bundle: Path
    """Of the federation, for the encoder in split learning."""
    link: Link
    board: Board
    clock: Callable[[], float]
    after: Callable[[float, Callable[[], None]], None]
    """Calls a function after simulated seconds."""
    begin_work: Callable[[Plan, Hello], ModelledWork]
    """Called when work on a plan begins."""
    computed: Callable[[Plan, float], None]
    """Called with the CPU seconds of a worker process that a plan took."""
    exchanged: Callable[[Plan, int, int], None]
    """Called with the bytes to the encoder server and from it for a plan."""
    workers: Executor
    threads: Executor
    """Threads of this process that wait for the workers, at least one for each device."""


class SimulatedDevice:
    """An agent that is stepped by the simulation. Raises WorkerUnusable, StateUnusable."""

    def __init__(self, context: DeviceContext) -> None:
        self._context = context
        self._state = State(context.state)
        self._account = SimulatedAccount(
            BoardPower(busy_w=context.board.busy_w, idle_w=context.board.idle_w), context.clock
        )
        worker = _WorkerProxy(context)
        self._hello = worker.hello()
        self._agent = Agent(
            context.link,
            self._state,
            worker,
            device=context.name,
            topics=Topics(context.federation),
            server_key=context.server_key,
            max_download_bytes=MAX_DOWNLOAD_BYTES,
            account=self._account,
            clock=context.clock,
            place=_WorkPlace(context, worker, self._hello, self._account, self.step),
            draw=lambda _: 0,
        )
        self._agent.begin()

    @property
    def ended(self) -> bool:
        """Whether the federation is over for this device."""
        return self._agent.ending is not None

    def step(self) -> None:
        """Take what has come, and see what time it is."""
        if not self.ended:
            self._agent.step(0.0)

    def close(self) -> None:
        """Let go of the state folder. Work that is going on is not waited for."""
        self._state.close()


@dataclass(kw_only=True)
class _Begun:
    """Work that is going on."""

    plan: Plan
    work: Callable[[], WorkOutcome]
    modelled: ModelledWork
    since_s: float
    real: "Future[WorkOutcome]"
    outcome: "Future[WorkOutcome]"


class _WorkPlace:
    """The simulation's place of work: what begins now is over after its modelled time, unless it is told to end."""

    def __init__(
        self,
        context: DeviceContext,
        worker: "_WorkerProxy",
        hello: Hello,
        account: SimulatedAccount,
        step: Callable[[], None],
    ) -> None:
        self._context = context
        self._worker = worker
        self._hello = hello
        self._account = account
        self._step = step
        self._begun: _Begun | None = None

    def submit(self, plan: Plan, work: Callable[[], WorkOutcome]) -> "Future[WorkOutcome]":
        """Begin the work."""
        modelled = self._context.begin_work(plan, self._hello)
        self._worker.begin(modelled)
        self._account.work(plan.work, modelled.board_s, modelled.seconds - modelled.board_s)
        begun = self._begun = _Begun(
            plan=plan,
            work=work,
            modelled=modelled,
            since_s=self._context.clock(),
            real=self._context.threads.submit(work),
            outcome=Future(),
        )
        self._context.after(modelled.seconds, partial(self._over, begun))
        return begun.outcome

    def cancel(self) -> None:
        """End the work now: nobody wants what it would come to."""
        if (begun := self._begun) is not None:
            self._end_now(begun)
            begun.outcome.set_result(WorkStopped())

    def stop(self) -> None:
        """End the training now, with the steps that are done. In split learning it goes on to its end."""
        begun = self._begun
        if begun is None or begun.modelled.opened is not None:
            return
        self._worker.share = self._end_now(begun)
        begun.real = self._context.threads.submit(begun.work)
        self._begun = begun
        self._context.after(0.0, partial(self._over, begun))

    def close(self) -> None:
        """Let work that is going on be."""

    def _end_now(self, begun: _Begun) -> float:
        """Take the time that is left from the work's; return the part that is done."""
        begun.real.result()  # its files are in the device's folder
        self._begun = None
        modelled, spent_s = begun.modelled, self._context.clock() - begun.since_s
        done = min(1.0, spent_s / modelled.seconds) if modelled.seconds else 1.0
        self._account.work(
            begun.plan.work, (done - 1) * modelled.board_s, (done - 1) * (modelled.seconds - modelled.board_s)
        )
        self._worker.seconds = spent_s
        return done

    def _over(self, begun: _Begun) -> None:
        if self._begun is not begun or begun.outcome.done():
            return
        self._begun = None
        begun.outcome.set_result(begun.real.result())
        if self._worker.cpu_s is not None:
            self._context.computed(begun.plan, self._worker.cpu_s)
            self._context.exchanged(begun.plan, *self._worker.exchanged)
        self._step()


class _WorkerProxy:
    """A worker that has worker processes train and evaluate. It reports the modelled time."""

    def __init__(self, context: DeviceContext) -> None:
        self._context = context
        self.seconds = 0.0
        """The simulated seconds of the last work."""
        self.share = 1.0
        """The part of a plan's steps that are done before it is stopped."""
        self._general: EncoderState | None = None
        self.cpu_s: float | None = None
        """CPU seconds of a worker process for the last work."""
        self.exchanged = (0, 0)
        """Bytes to the encoder server for it, and from there."""
        self._local = LocalWorker(context.data, context.state, 1, memory_budget_bytes=context.board.memory_bytes)

    def hello(self) -> Hello:
        return self._local.hello()

    def begin(self, begun: ModelledWork) -> None:
        """Prepare for the next work: its modelled seconds, and the encoder's state. Raises BundleInvalid."""
        self.seconds, self.share = begun.seconds, 1.0
        opened = begun.opened
        self._general = None if opened is None else encoder_state(self._context.name, self._context.bundle, opened)

    def train(
        self, downloaded: DownloadedPlan, _report: Report, _channel: SplitLearningChannel | None = None
    ) -> TrainResult:
        result = self._perform(downloaded)
        assert isinstance(result, TrainResult)
        return result

    def evaluate(
        self, downloaded: DownloadedPlan, _report: Report, _channel: SplitLearningChannel | None = None
    ) -> EvaluationResult:
        result = self._perform(downloaded)
        assert isinstance(result, EvaluationResult)
        return result

    def _perform(self, downloaded: DownloadedPlan) -> TrainResult | EvaluationResult:
        task = DeviceTask(
            data=self._context.data,
            state=self._context.state,
            memory_budget_bytes=self._context.board.memory_bytes,
            downloaded=replace(downloaded, plan=_part_of(downloaded.plan, self.share), is_stopped=never),
            encoder_state=self._general,
        )
        self.cpu_s = None
        done = self._context.workers.submit(perform, task).result()
        if isinstance(done, TaskRefused):
            raise WorkRefused(done.reason, done.detail)
        self.cpu_s, self.exchanged = done.cpu_s, done.exchanged
        return replace(done.result, wall_s=self.seconds)


def _part_of(plan: Plan, share: float) -> Plan:
    """Return a plan of the part of its steps that are done."""
    if plan.training is None or share == 1.0:
        return plan
    return msgspec.structs.replace(
        plan, training=msgspec.structs.replace(plan.training, share=share * plan.training.share)
    )
