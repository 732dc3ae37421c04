"""A scripted server on the other end of a fake link, speaking the real messages, and a fake worker."""

import queue
import threading
import time
from collections import Counter, deque
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
import samples
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from devices.meters.meter import MeterFacts
from edge_runtime.agent.limits import NO_LIMITS
from edge_runtime.agent.loop import Agent
from edge_runtime.agent.state import State
from edge_runtime.agent.work import EvaluationResult, TrainResult, WorkRefused
from edge_runtime.wire import manifest as manifests
from edge_runtime.wire import messages, signing
from edge_runtime.wire.blob import Assembly, Blob, BlobStore, describe
from edge_runtime.wire.graph_names import graph_names
from edge_runtime.wire.link import Connected, Delivery, Disconnected, LinkFull
from edge_runtime.wire.manifest import Array, File, Manifest, Parity, Task
from edge_runtime.wire.messages import Ack, Evaluation, Finished, Hello, LossProbe, Need, Plan, Refusal, Update
from edge_runtime.wire.tensors import TensorTable, pack, unpack
from edge_runtime.wire.topics import Topics

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
DEVICE = "kitchen"
CHUNK = 1024


class Bundle:
    """A signed manifest, its graphs and how to make plans of it."""

    def __init__(self, *, tasks: tuple[str, ...] = ("a", "b"), graph_bytes: int = 3000, key: Ed25519PrivateKey = KEY):
        self.blobs: dict[str, bytes] = {}
        self.table = TensorTable.of({"encoder.w": (600,)} | {f"head.{task}.w": (2, 3) for task in tasks})
        graphs = {}
        for name in graph_names(tasks, 1):
            content = (name.encode() + b" ") * (graph_bytes // (len(name) + 1))
            graphs[name] = self._add(content)
        zeros = pack(self.table, np.zeros(self.table.size, np.float32))
        array = Array(shape=(3,), dtype="float32")
        self.manifest = Manifest(
            format=2,
            name="test",
            tasks=tuple(Task(name=task, target=array, prediction=array) for task in tasks),
            input=array,
            representation=(array,),
            values=(),
            stages=(manifests.Stage(reads=("x",), writes=("z.0",), parameters=("w",)),),
            tensors=self.table.tensors,
            graphs=graphs,
            weights=self._add(zeros),
            opset=17,
            parity=Parity(max_relative_error=0.0, worst="", compared=1),
            versions={},
        )
        self.encoded = manifests.encode(self.manifest)
        self.signature = signing.sign(key, self.encoded)
        self.bundle = describe(self.encoded, chunk_bytes=CHUNK)
        self.blobs[self.bundle.digest] = self.encoded
        self.tasks = tasks

    def _add(self, content: bytes) -> File:
        blob = describe(content)
        self.blobs[blob.digest] = content
        return File(digest=blob.digest, size_bytes=blob.size_bytes)

    def weights(self, value: float) -> Blob:
        data = pack(self.table, np.full(self.table.size, value, np.float32))
        blob = describe(data, chunk_bytes=CHUNK)
        self.blobs[blob.digest] = data
        return blob

    def plan(self, round_number: int, *, value: float | None = None, **changes) -> Plan:
        plan = samples.plan(
            round_number,
            tasks=self.tasks,
            bundle=self.bundle,
            signature=self.signature,
            weights=self.weights(float(round_number) if value is None else value),
            training=samples.training(first_epoch=round_number),
        )
        return msgspec.structs.replace(plan, **changes)

    def evaluation(self, round_number: int) -> Plan:
        return self.plan(round_number, work="evaluate", training=None, data_split="test")


class FakeLink:
    """The device's end; whatever it publishes goes straight to `on_publish`."""

    def __init__(self) -> None:
        self.bytes_in = self.bytes_out = self.bytes_acknowledged = 0
        self.inbox: queue.SimpleQueue = queue.SimpleQueue()
        self.filters: set[str] = set()
        self.retained: dict[str, bytes] = {}
        self.on_publish: Callable[[str, bytes], None] = lambda _topic, _payload: None
        self.full = 0
        self.closed = False

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        assert not self.closed
        if self.full:
            self.full -= 1
            raise LinkFull("no room")
        if retain:
            self.retained[topic] = payload
        self.bytes_out += len(payload)
        self.bytes_acknowledged = self.bytes_out
        self.on_publish(topic, payload)

    def subscribe(self, *filters: str) -> None:
        self.filters |= set(filters)

    def receive(self, timeout_s):
        try:
            event = self.inbox.get(timeout=min(timeout_s, 0.01))
        except queue.Empty:
            return None
        if isinstance(event, Delivery):
            self.bytes_in += len(event.payload)
        return event

    def interrupt(self) -> None:
        self.inbox.put(None)

    def close(self) -> None:
        self.closed = True

    def deliver(self, topic: str, payload: bytes) -> None:
        """From the server, if the device has subscribed."""
        if topic in self.filters or topic.rsplit("/", 2)[0] + "/+/+" in self.filters:
            self.inbox.put(Delivery(topic, payload))


class Server:
    """Sends `plans` one after another, Finished after the last, and keeps all that it hears."""

    def __init__(self, link: FakeLink, bundles: list[Bundle], folder: Path) -> None:
        self.link, self.topics = link, Topics("rooms")
        self.blobs = {digest: data for bundle in bundles for digest, data in bundle.blobs.items()}
        self.bundles = bundles
        self.plans: deque[Plan] = deque()
        self.store = BlobStore(folder)
        self.heard: list = []
        self.sent: Counter[str] = Counter()
        self.results: list[Update | Evaluation] = []
        self.mangle: Callable[[str, int, bytes], bytes | None] = lambda _digest, _index, data: data
        self.on_message: Callable[[object], bool] = lambda _message: False
        self.acks = True
        self.assembly: Assembly | None = None
        link.on_publish = self._published

    def say(self, message) -> None:
        self.link.deliver(self.topics.command(DEVICE), messages.encode(message))

    def raw(self, payload: bytes) -> None:
        self.link.deliver(self.topics.command(DEVICE), payload)

    def connect(self) -> None:
        self.link.inbox.put(Connected())

    def reconnect(self) -> None:
        self.link.inbox.put(Disconnected("cut", refused=False))
        self.link.inbox.put(Connected())

    def said(self, kind) -> list:
        return [message for message in self.heard if isinstance(message, kind)]

    def next(self) -> None:
        """What the device is asked to do now."""
        self.say(self.plans[0] if self.plans else Finished(detail="done"))

    def _published(self, topic: str, payload: bytes) -> None:
        address = self.topics.parse(topic)
        assert address.device == DEVICE
        if address.kind == "upload":
            self._chunk(address.digest, address.index, payload)
        elif address.kind == "event":
            message = messages.decode_device(payload)
            self.heard.append(message)
            if not self.on_message(message):
                self._answer(message)

    def _answer(self, message) -> None:
        match message:
            case Hello():
                self.next()
            case Need(digest=digest, runs=runs):
                for index in (index for run in runs for index in range(run.first, run.end)):
                    data = self.blobs_now()[digest][index * CHUNK : (index + 1) * CHUNK]
                    data = self.mangle(digest, index, data)
                    if data is not None:
                        self.sent[digest] += 1
                        self.link.deliver(self.topics.download(DEVICE, digest, index), data)
            case LossProbe(digest=digest, number=number):
                self.link.deliver(self.topics.download(DEVICE, digest, number), b"")
            case Update(weights=blob):
                self.assembly = Assembly(self.store, blob)
                self.update = message
                if self.assembly.is_complete:
                    self._accepted(message)
                else:
                    self.say(Need(digest=blob.digest, runs=self.assembly.missing()))
            case Evaluation():
                self._accepted(message)
            case Refusal():
                self.plans.popleft()
                self.next()

    def blobs_now(self) -> dict[str, bytes]:
        for bundle in self.bundles:
            self.blobs.update(bundle.blobs)
        return self.blobs

    def _chunk(self, digest: str, index: int, payload: bytes) -> None:
        assert self.assembly is not None
        assert self.assembly.blob.digest == digest
        if self.assembly.accept(index, payload):
            self._accepted(self.update)

    def _accepted(self, message) -> None:
        if not self.acks:
            return
        self.results.append(message)
        if self.plans and self.plans[0].round == message.round:
            self.plans.popleft()
        self.say(Ack(round=message.round, group=message.group, accepted=True))
        self.next()

    def weights(self, update: Update) -> np.ndarray:
        """The vector that an update brought."""
        for bundle in self.bundles:
            if update.group == "+".join(bundle.tasks):
                return unpack(bundle.table, self.store.read(update.weights.digest))
        raise AssertionError


class FakeWorker:
    """Adds one to every weight. `before` is called with the plan first; it may refuse, report or wait."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.before: Callable = lambda _plan, _report: None
        self.running = 0
        self.most_running = 0
        self.loss = 0.5
        self.step = 1.0

    def hello(self) -> Hello:
        return Hello(software="s", engine="e", platform="p", examples={"train": 8}, tasks=("a", "b"), memory_bytes=None)

    def _begin(self, downloaded, report) -> None:
        assert all(file.digest in downloaded.graphs for file in downloaded.manifest.graphs.values())
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            self.before(downloaded.plan, report)
        finally:
            self.running -= 1
        self.calls.append((downloaded.plan.work, downloaded.plan.round))

    def train(self, downloaded, report, channel=None) -> TrainResult:
        self._begin(downloaded, report)
        return TrainResult(
            weights=downloaded.weights + np.float32(self.step),
            examples=dict.fromkeys(downloaded.plan.tasks, 8),
            train_loss=dict.fromkeys(downloaded.plan.tasks, self.loss),
            val_loss=None,
            affinity=None,
            wall_s=1.0,
            peak_rss_bytes=None,
        )

    def evaluate(self, downloaded, report, channel=None) -> EvaluationResult:
        self._begin(downloaded, report)
        return EvaluationResult(
            loss=dict.fromkeys(downloaded.plan.tasks, self.loss),
            examples=dict.fromkeys(downloaded.plan.tasks, 8),
            wall_s=1.0,
            peak_rss_bytes=None,
        )


class FakeMeter:
    """Five watts, always."""

    facts = MeterFacts(source="fake", covers="all of it", rate_hz=50.0, resolution=0.0, gain_error=0.0)

    def read(self):
        return (5.0,)

    def close(self):
        pass


class Guard(threading.Event):
    """A stop that comes by itself when the agent has hung for very long."""

    def __init__(self) -> None:
        super().__init__()
        self._timer = threading.Timer(60, self.set)
        self._timer.daemon = True
        self._timer.start()


@pytest.fixture
def world(tmp_path):
    """A device and its server: `world.run()` runs the agent to its end in this thread."""
    link, bundle, worker = FakeLink(), Bundle(), FakeWorker()
    server = Server(link, [bundle], tmp_path / "server")
    state_folder = tmp_path / "state"
    it = SimpleNamespace(
        link=link,
        bundle=bundle,
        worker=worker,
        server=server,
        state_folder=state_folder,
        stop=Guard(),
        max_bytes=10**7,
        make_bundle=Bundle,
        refuse=WorkRefused,
        agent=None,
        account=None,
        beat=lambda: None,
        clock=time.monotonic,
        limits=NO_LIMITS,
    )

    def run(*, plans=(), connect=True):
        link.closed = False
        link.inbox = queue.SimpleQueue()
        server.plans.extend(plans)
        state = State(state_folder)
        it.agent = Agent(
            link,
            state,
            worker,
            device=DEVICE,
            topics=server.topics,
            server_key=signing.public_hex(KEY),
            max_download_bytes=it.max_bytes,
            account=it.account,
            beat=it.beat,
            clock=it.clock,
            limits=it.limits,
        )
        if connect:
            server.connect()
        try:
            return it.agent.run(it.stop)
        finally:
            state.close()

    it.run = run
    return it


@pytest.fixture
def make_meter():
    return FakeMeter


@pytest.fixture
def make_bundle():
    return Bundle


@pytest.fixture
def public_key():
    return signing.public_hex(KEY)


@pytest.fixture
def make_server():
    return Server


@pytest.fixture
def worker():
    return FakeWorker()


@pytest.fixture
def server_key():
    return KEY
