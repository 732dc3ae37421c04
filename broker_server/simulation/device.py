"""A simulated device: a real agent, with its session and its state folder, whose work is done elsewhere.

The agent's clock and link are the simulation's. Work takes its modelled time on the simulation's clock; meanwhile a
worker process does it, and its outcome is there when the simulated time is over.
"""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path

from broker_server.simulation.energy import BoardPower, SimulatedAccount
from broker_server.simulation.fleet import Board
from broker_server.simulation.split_learning import EncoderState, encoder_state
from broker_server.simulation.worker import DeviceTask, TaskRefused, perform
from edge_runtime.agent.loop import Agent
from edge_runtime.agent.plan_runner import WorkOutcome
from edge_runtime.agent.state import State
from edge_runtime.agent.work import (
    DownloadedPlan,
    EvaluationResult,
    Report,
    SplitLearningChannel,
    TrainResult,
    WorkRefused,
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
        self._worker = worker = _WorkerProxy(context)
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
            submit=self._submit,
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

    def _submit(self, plan: Plan, work: Callable[[], WorkOutcome]) -> "Future[WorkOutcome]":
        begun = self._context.begin_work(plan, self._hello)
        self._worker.begin(begun)
        self._account.work(plan.work, begun.board_s, begun.seconds - begun.board_s)
        real = self._context.threads.submit(work)
        outcome: Future[WorkOutcome] = Future()

        def over() -> None:
            outcome.set_result(real.result())
            if self._worker.cpu_s is not None:
                self._context.computed(plan, self._worker.cpu_s)
                self._context.exchanged(plan, *self._worker.exchanged)
            self.step()

        self._context.after(begun.seconds, over)
        return outcome


class _WorkerProxy:
    """A worker that has worker processes train and evaluate. It reports the modelled time."""

    def __init__(self, context: DeviceContext) -> None:
        self._context = context
        self._seconds = 0.0
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
        self._seconds = begun.seconds
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
            downloaded=downloaded,
            encoder_state=self._general,
        )
        self.cpu_s = None
        done = self._context.workers.submit(perform, task).result()
        if isinstance(done, TaskRefused):
            raise WorkRefused(done.reason, done.detail)
        self.cpu_s, self.exchanged = done.cpu_s, done.exchanged
        return replace(done.result, wall_s=self._seconds)
