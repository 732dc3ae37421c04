"""A simulated device: a real agent, with its session and its state folder, whose work is done elsewhere.

The agent's clock and link are the simulation's. Work takes as long as a rule says, on the simulation's clock; meanwhile
a host does it, and its outcome is there when the simulated time is over.
"""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from broker_server.simulation.energy import Power, SimulatedAccount
from broker_server.simulation.split_learning import General, general
from broker_server.simulation.worker import Refused, Task, perform
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


class Board(Protocol):
    """What a rule says of the board."""

    @property
    def memory_bytes(self) -> int:
        """The budget of the memory plan."""
        ...

    @property
    def busy_w(self) -> float:
        """Watts at work."""
        ...

    @property
    def idle_w(self) -> float:
        """Watts while it waits or transfers."""
        ...


class Begun(Protocol):
    """Work on a plan that has begun."""

    @property
    def seconds(self) -> float:
        """How many simulated seconds it takes."""
        ...

    @property
    def board_s(self) -> float:
        """How many of them the board works; in the others it waits."""
        ...

    @property
    def opened(self) -> EncoderRound | None:
        """What the host of the general model is told of the round, in split training."""
        ...


class Place(Protocol):
    """What a simulation gives a device."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def data(self) -> Path:
        """Its data set."""
        ...

    @property
    def state(self) -> Path:
        """Its state folder."""
        ...

    @property
    def federation(self) -> str:
        """The federation's name."""
        ...

    @property
    def server_key(self) -> str:
        """The server's public key, hexadecimal."""
        ...

    @property
    def bundle(self) -> Path:
        """The folder of the federation's bundle, for the encoder in split training."""
        ...

    @property
    def link(self) -> Link:
        """Its link."""
        ...

    @property
    def board(self) -> Board:
        """Its board."""
        ...

    @property
    def clock(self) -> Callable[[], float]:
        """Simulated seconds."""
        ...

    @property
    def after(self) -> Callable[[float, Callable[[], None]], None]:
        """Calls something when so many simulated seconds have passed."""
        ...

    @property
    def begin_work(self) -> Callable[[Plan, Hello], Begun]:
        """Told when work begins."""
        ...

    @property
    def computed(self) -> Callable[[Plan, float], None]:
        """Told how many CPU seconds of a worker process a plan's work took."""
        ...

    @property
    def exchanged(self) -> Callable[[Plan, int, int], None]:
        """Told how many bytes went to the host of the general model for a plan, and came from it."""
        ...

    @property
    def hosts(self) -> Executor:
        """Where work is done."""
        ...

    @property
    def threads(self) -> Executor:
        """Threads of this process that wait for the hosts, one for each device at least."""
        ...


class SimulatedDevice:
    """An agent that is stepped by the simulation. Raises WorkerUnusable, StateUnusable."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._state = State(place.state)
        self._account = SimulatedAccount(Power(busy_w=place.board.busy_w, idle_w=place.board.idle_w), place.clock)
        self._worker = worker = _HostedWorker(place)
        self._hello = worker.hello()
        self._agent = Agent(
            place.link,
            self._state,
            worker,
            device=place.name,
            topics=Topics(place.federation),
            server_key=place.server_key,
            max_download_bytes=MAX_DOWNLOAD_BYTES,
            account=self._account,
            clock=place.clock,
            submit=self._submit,
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
        begun = self._place.begin_work(plan, self._hello)
        self._worker.begin(begun)
        self._account.work(plan.work, begun.board_s, begun.seconds - begun.board_s)
        real = self._place.threads.submit(work)
        outcome: Future[WorkOutcome] = Future()

        def over() -> None:
            outcome.set_result(real.result())
            if self._worker.cpu_s is not None:
                self._place.computed(plan, self._worker.cpu_s)
                self._place.exchanged(plan, *self._worker.exchanged)
            self.step()

        self._place.after(begun.seconds, over)
        return outcome


class _HostedWorker:
    """A worker whose training and evaluation is done by worker processes. It says that it took what the rule says."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._seconds = 0.0
        self._general: General | None = None
        self.cpu_s: float | None = None
        """What the last work took a worker process."""
        self.exchanged = (0, 0)
        """Bytes that went to the host of the general model for it, and came from there."""
        self._local = LocalWorker(place.data, place.state, 1, memory_budget_bytes=place.board.memory_bytes)

    def hello(self) -> Hello:
        return self._local.hello()

    def begin(self, begun: Begun) -> None:
        """The next work takes so long, and is with this host. Raises BundleInvalid."""
        self._seconds = begun.seconds
        opened = begun.opened
        self._general = None if opened is None else general(self._place.name, self._place.bundle, opened)

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
        task = Task(
            data=self._place.data,
            state=self._place.state,
            memory_budget_bytes=self._place.board.memory_bytes,
            downloaded=downloaded,
            general=self._general,
        )
        self.cpu_s = None
        done = self._place.hosts.submit(perform, task).result()
        if isinstance(done, Refused):
            raise WorkRefused(done.reason, done.detail)
        self.cpu_s, self.exchanged = done.cpu_s, done.exchanged
        return replace(done.result, wall_s=self._seconds)
