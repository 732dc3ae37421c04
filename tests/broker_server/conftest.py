"""A federation in one process: a tiny bundle, devices that speak the real messages, and a link between them."""

import random
import threading
import time
from collections import deque
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import samples
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker_server.rounds.coordinator import Coordinator
from broker_server.rounds.device_uploads import DeviceUploads
from broker_server.rounds.federation import Federation
from broker_server.rounds.journal import FederationJournal
from broker_server.server.config import SETTINGS, ServerConfig
from broker_server.server.dispatcher import Dispatcher
from broker_server.server.enrolments import Enrolments
from broker_server.server.keys import load_or_create
from broker_server.server.loop import ServerLoop
from devices.cli.settings import build, put
from edge_runtime.agent.identity import ServerKey
from edge_runtime.agent.signed_link import SignedDeviceLink
from edge_runtime.wire import bundle_folder, compression
from edge_runtime.wire import manifest as manifests
from edge_runtime.wire.blob import Assembly, Blob, BlobStore, describe
from edge_runtime.wire.counter import Counter
from edge_runtime.wire.energy import Energy, PhaseEnergy
from edge_runtime.wire.envelope import Scope
from edge_runtime.wire.files import write_atomic
from edge_runtime.wire.graph_names import graph_names
from edge_runtime.wire.link import Connected, Delivery
from edge_runtime.wire.messages import (
    Ack,
    Affinity,
    FinalEnergy,
    Finished,
    Hello,
    LossProbe,
    Need,
    Plan,
    RollCall,
    Status,
    Update,
    decode_server,
    encode,
)
from edge_runtime.wire.mqtt import MqttLink
from edge_runtime.wire.personal import sent_table
from edge_runtime.wire.signing import public_hex, verify
from edge_runtime.wire.tensors import TensorTable, pack, unpack
from edge_runtime.wire.topics import Topics

TASKS = ("a", "b", "c")
METRICS = {"a": "rmse", "b": "angular_error_deg"}
AFFINITY = ((0.0, 5.0, -1.0), (5.0, 0.0, -1.0), (-1.0, -1.0, 0.0))


def make_bundle(folder, tasks=TASKS, *, forward=None):
    """A bundle whose graphs are a few bytes each; with `forward` training artifacts may be made for it."""
    table = TensorTable.of({"encoder.w": (3,), **{f"head.{t}.w": (2,) for t in tasks}})
    weights = pack(table, np.arange(table.size, dtype=np.float32))
    graphs = {name: f"graph {name}".encode() for name in graph_names(tasks, 1)}
    array = manifests.Array(shape=(2,), dtype="float32")
    bundle = manifests.Manifest(
        format=2,
        name="tiny",
        tasks=tuple(manifests.Task(name=t, target=array, prediction=array, metric=METRICS.get(t)) for t in tasks),
        input=array,
        representation=(array,),
        values=(),
        stages=(manifests.Stage(reads=("x",), writes=("z.0",), parameters=("w",)),),
        tensors=table.tensors,
        graphs={name: manifests.File(digest=describe(g).digest, size_bytes=len(g)) for name, g in graphs.items()},
        weights=manifests.File(digest=describe(weights).digest, size_bytes=len(weights)),
        opset=17,
        parity=manifests.Parity(max_relative_error=0.0, worst="encoder.w", compared=1),
        versions={"torch": "0"},
    )
    if forward is not None:
        file = manifests.File(digest=describe(forward).digest, size_bytes=len(forward))
        bundle = msgspec.structs.replace(bundle, ort_training=manifests.OrtTrainingArtifacts(groups={}, forward=file))
        write_atomic(folder / bundle_folder.ORT_TRAINING / bundle_folder.FORWARD, forward)
    bundle_folder.write_folder(folder, bundle, weights, graphs)
    return bundle


class Device:
    """A scripted device: trains by adding `step` to every weight it was given. `say` publishes (topic, payload)."""

    def __init__(
        self,
        name,
        root,
        say,
        server_key,
        *,
        step=1.0,
        examples=10,
        chunk_bytes=1024,
        federation="home",
        energy=None,
        ort_training="off",
        metrics=None,
    ):
        self.name, self.say, self.server_key = name, say, server_key
        self.step, self.examples, self.chunk_bytes = step, examples, chunk_bytes
        self.topics, self.ort_training = Topics(federation), ort_training
        self.blobs = BlobStore(root / name)
        self.plans, self.acks, self.finished = [], [], None
        self.plan = self.answer = self.residual = None
        self.silent = False
        self.energy, self.spent, self.metrics = energy, None, metrics
        self.wanted = {}

    def start(self):
        self.say(self.topics.status(self.name), encode(Status(state="online")), retain=True)
        hello = Hello(
            software="0",
            engine="fake",
            platform="test",
            examples={"train": self.examples},
            tasks=TASKS,
            memory_bytes=None,
            ort_training=self.ort_training,
        )
        self.tell(hello)

    def stop(self):
        self.say(self.topics.status(self.name), encode(Status(state="offline")), retain=True)

    def tell(self, message):
        self.say(self.topics.event(self.name), encode(message))

    def hear(self, topic, payload):
        if self.silent:
            return
        if topic != self.topics.command(self.name):
            address = self.topics.parse(topic)
            if address.kind == "download" and address.digest in self.wanted:
                self.wanted[address.digest].accept(address.index, payload)
                self.go_on()
            return
        match decode_server(payload):
            case Plan() as plan:
                self.plans.append(plan)
                if self.answer is not None and self.plan.round == plan.round:
                    self.tell(self.answer)
                    return
                self.plan, self.answer = plan, None
                self.wanted = {}
                for blob in plan.files:
                    self.want(blob)
                self.go_on()
            case Need() as need:
                blob = self.answer.weights
                assert blob.digest == need.digest
                for run in need.runs:
                    self.say(self.topics.upload(self.name, blob.digest, run.first), self.blobs.run(blob, run))
            case RollCall():
                self.start()
            case LossProbe() as probe:
                self.say(self.topics.upload(self.name, probe.digest, probe.number), b"")
            case Ack() as ack:
                self.acks.append(ack)
                if self.spent is not None and isinstance(self.answer, Update):
                    self.tell(FinalEnergy(round=ack.round, group=ack.group, energy=self.spent))
                if self.plan is not None and ack.round == self.plan.round:
                    self.answer = self.plan = None
            case Finished() as finished:
                self.finished = finished

    def want(self, blob):
        if blob.digest not in self.wanted:
            self.wanted[blob.digest] = Assembly(self.blobs, blob)
            self.ask(blob.digest)

    def ask(self, digest):
        if missing := self.wanted[digest].missing():
            self.tell(Need(digest=digest, runs=missing[:64]))

    def go_on(self):
        """Go on when everything that was asked for is here."""
        plan = self.plan
        if plan is None or self.answer is not None or plan.bundle.digest not in self.blobs:
            return
        data = self.blobs.read(plan.bundle.digest)
        verify(self.server_key, data, plan.signature)
        bundle = manifests.decode(data)
        assert bundle.task_names == tuple(sorted(plan.tasks))
        for digest, size in bundle.needs(ort_training=self.ort_training != "off").items():
            self.want(Blob(digest=digest, size_bytes=size))
        if all(assembly.is_complete for assembly in self.wanted.values()):
            self.answer = self.train(plan, bundle) if plan.work == "train" else self.evaluate(plan)
            self.tell(self.answer)

    def train(self, plan, bundle):
        table = sent_table(bundle.table, plan.personal)
        vector = unpack(table, self.blobs.read(plan.weights.digest))
        scheme = compression.choose(plan.updates, None)
        data, self.residual = compression.encode(
            table,
            received=vector,
            trained=vector + np.float32(self.step),
            residual=self.residual if self.residual is not None and len(self.residual) == table.size else None,
            scheme=scheme,
            topk_fraction=plan.updates.topk_fraction,
        )
        blob = self.blobs.add(data, chunk_bytes=self.chunk_bytes)
        affinity = None
        if plan.training.probe_every:
            where = [TASKS.index(t) for t in plan.tasks]
            mean = tuple(tuple(AFFINITY[i][j] for j in where) for i in where)
            affinity = Affinity(
                tasks=plan.tasks, count=3, mean=mean, variance=mean and tuple((1.0,) * 3 for _ in where)
            )
        return samples.update(
            plan.round,
            group=plan.group,
            weights=blob,
            scheme=scheme,
            base=None if scheme == "fp32" else plan.weights.digest,
            examples=dict.fromkeys(plan.tasks, self.examples),
            train_loss=dict.fromkeys(plan.tasks, 1.0),
            val_loss=dict.fromkeys(plan.tasks, 1.5),
            affinity=affinity,
            wall_s=0.1,
            peak_rss_bytes=1000,
            bytes_down=100,
            energy=self.energy,
        )

    def evaluate(self, plan):
        return samples.evaluation(
            plan.round,
            group=plan.group,
            loss=dict.fromkeys(plan.tasks, 2.0),
            examples=dict.fromkeys(plan.tasks, self.examples),
            wall_s=0.1,
            bytes_down=50,
            energy=self.energy,
            metrics=self.metrics and {task: value for task, value in self.metrics.items() if task in plan.tasks},
        )


class Runner(threading.Thread):
    """A scripted device on a link of its own."""

    def __init__(self, device, link):
        super().__init__(daemon=True)
        self.device, self.link = device, link
        self.stop = threading.Event()
        link.subscribe(*device.topics.to_device(device.name))

    def run(self):
        asked_s = time.monotonic()
        while not self.stop.is_set():
            match self.link.receive(0.2):
                case Connected():
                    self.device.start()
                case Delivery(topic=topic, payload=payload):
                    self.device.hear(topic, payload)
            if time.monotonic() - asked_s > 1.0:
                asked_s = time.monotonic()
                for digest in self.device.wanted:
                    self.device.ask(digest)
        self.link.close()


class FakeLink:
    """The server's end of a link in memory. Time passes only when nothing is left to deliver."""

    def __init__(self, clock):
        self.clock = clock
        self.events = deque([Connected()])
        self.devices = {}
        self.bytes_in = self.bytes_out = self.bytes_acknowledged = 0
        self.full = lambda: False

    def say(self, topic, payload, *, retain=False):
        self.events.append(Delivery(topic, payload))

    def publish(self, topic, payload, *, retain=False):
        if self.full():
            from edge_runtime.wire.link import LinkFull

            raise LinkFull
        address = Topics("home").parse(topic)
        for device in list(self.devices.values()):
            if address.device == device.name:
                device.hear(topic, payload)

    def subscribe(self, *filters):
        pass

    def receive(self, timeout_s):
        if self.events:
            return self.events.popleft()
        self.clock.now_s += timeout_s
        return None

    def close(self):
        pass


class Watcher:
    def __init__(self):
        self.notes, self.rows = [], []

    def note(self, text):
        self.notes.append(text)

    def on_round_closed(self, row, results):
        self.rows.append(row)

    def refresh(self, coordinator, loop):
        pass


def config_of(**settings):
    """A configuration by the names of its flags."""
    paths = {each.flag.removeprefix("--").replace("-", "_"): each.path for each in SETTINGS}
    tree = {}
    for name, value in settings.items():
        put(tree, paths[name], value)
    return build(ServerConfig, [("test", tree)]).value


@pytest.fixture
def make_config():
    return config_of


class World:
    """A server and its devices. `boot` starts the server anew over whatever state there is, as after a crash."""

    def __init__(self, root, *, maker=None, **settings):
        self.root, self.maker = root, maker
        self.clock = SimpleNamespace(now_s=0.0)
        settings = {
            "merged_rounds": 2,
            "probe_rounds": 1,
            "split_rounds": 2,
            "groups": 2,
            "round_deadline_s": 60.0,
            "state": root / "state",
        } | settings
        self.config = config_of(**settings)
        self.bundle = make_bundle(root / "bundle", forward=b"forward graph" if maker else None)
        self.key = load_or_create(self.config.state)
        self.link = FakeLink(self.clock)
        self.watcher = Watcher()
        self.random = random.Random(0)
        self.boot()

    def boot(self):
        config = self.config
        self.journal = FederationJournal(config.state / "federation.sqlite3")
        self.blobs = BlobStore(config.state / "blobs")
        self.uploads = DeviceUploads(config.state / "uploads")
        builder = self.maker(self) if self.maker else None
        self.dispatcher = Dispatcher(
            link=self.link,
            topics=Topics(config.federation),
            journal=self.journal,
            blobs=self.blobs,
            uploads=self.uploads,
            coordinator=Coordinator(
                config.rounds, self.journal.hellos(), seed=config.seed, learnt=self.journal.learnt()
            ),
            show=self.watcher.note,
            builds_artifacts=builder is not None,
            clock=lambda: self.clock.now_s,
        )
        self.federation = Federation(
            journal=self.journal,
            blobs=self.blobs,
            uploads=self.uploads,
            bundle=self.bundle,
            folder=self.root / "bundle",
            key=self.key,
            terms=config.terms(self.bundle),
        )
        self.loop = ServerLoop(self.federation, self.dispatcher, self.watcher, builder=builder)
        self.loop.start()
        return self.loop

    def crash(self):
        """The process is gone: what was in its memory and on its wires is lost; devices connect again."""
        self.link.events.clear()
        self.journal.close()
        self.boot()
        for device in self.link.devices.values():
            device.start()

    def device(self, name, **settings):
        device = Device(name, self.root / "devices", self.link.say, public_hex(self.key), **settings)
        self.link.devices[name] = device
        return device

    def until(self, condition, steps=5000):
        for _ in range(steps):
            if condition():
                return
            self.loop.step(0.25)
            if self.loop.building:  # by a process, whose time is not the fake one
                time.sleep(0.01)
        raise AssertionError(f"never happened; notes: {self.watcher.notes[-5:]}, counts: {self.dispatcher.counts}")

    def until_finished(self):
        self.until(lambda: self.loop.finished is not None and self.dispatcher.outgoing.is_empty)


@pytest.fixture
def make_energy():
    """What a plan has cost by a meter; None joules: nothing measures."""

    def make(joules=10.0, phases=None, **changes):
        values = {
            "source": None if joules is None else "rapl",
            "covers": None,
            "estimated": False,
            "energy_j": joules,
            "uncertainty_j": None if joules is None else 0.1 * joules,
            "idle_w": None if joules is None else 1.0,
            "sample_rate_hz": None if joules is None else 10.0,
            "seconds": 4.0,
            "measured_s": 0.0 if joules is None else 4.0,
            "gap_s": 0.0,
            "phases": {
                name: PhaseEnergy(seconds=2.0, energy_j=part, uncertainty_j=None)
                for name, part in (phases or {"train": joules}).items()
            },
            "temperature_max_c": None,
            "cpu_min_hz": None,
            "throttled": None,
        }
        return Energy(**(values | changes))

    return make


@pytest.fixture
def world(tmp_path):
    def make(**settings):
        return World(tmp_path, **settings)

    return make


@pytest.fixture
def make_link():
    return FakeLink


@pytest.fixture
def make_device(tmp_path):
    """A scripted device on a link in memory."""

    def make(name, link, **settings):
        link.devices[name] = Device(name, tmp_path / "devices", link.say, "0" * 64, **settings)
        return link.devices[name]

    return make


@pytest.fixture
def make_tiny_bundle():
    return make_bundle


@pytest.fixture
def tiny_bundle(tmp_path):
    folder = tmp_path / "tiny"
    return folder, make_bundle(folder)


@pytest.fixture
def join(tmp_path):
    """Let a device join over a socket, enrolled in a server's state folder; all are stopped at the end."""
    pytest.importorskip("jwt")
    from edge_runtime.wire import tokens

    runners = []

    def start(name, key, port, state, *, pause_s=0.0, **settings):
        enrolment = Enrolments(state).enrol(name)
        plain = MqttLink(
            f"mqtt://127.0.0.1:{port}",
            client_id=name,
            username=name,
            # As one that was given for its key: a scripted device asks for no other when the server comes back.
            password=tokens.issue(
                key, name=name, federation="home", role="device", lifetime_s=3600, generation=1, renewed=True
            ),
            will=(Topics("home").status(name), encode(Status(state="offline"))),
            retry_max_s=1,
        )
        link = SignedDeviceLink(
            plain,
            Scope(federation="home", device=name),
            key=Ed25519PrivateKey.generate(),
            code=bytes.fromhex(enrolment.code),
            server_key=ServerKey(tmp_path / f"{name}.trusted", public_hex(key)),
            counter=Counter(tmp_path / f"{name}.counter"),
        )
        device = Device(name, tmp_path / "devices", link.publish, public_hex(key), **settings)
        train = device.train
        device.train = lambda plan, manifest: (time.sleep(pause_s), train(plan, manifest))[1]
        runners.append(Runner(device, link))
        runners[-1].start()
        return device

    yield start
    for runner in runners:
        runner.stop.set()
    for runner in runners:
        runner.join()
