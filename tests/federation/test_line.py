"""Files over a real slow line and a real bad one: both ends' own parts, the embedded broker, and a proxy between."""

import time

import numpy as np
import pytest

pytest.importorskip("jwt")

from benchmarks.line import Line
from broker_server.mqtt.auth import Principal
from broker_server.mqtt.broker import EmbeddedBroker
from broker_server.rounds.device_uploads import DeviceUploads
from broker_server.server.outgoing import Outgoing
from broker_server.server.transfers import ServedBlobs, Uploads
from edge_runtime.agent.send_queue import SendQueue
from edge_runtime.wire.blob import Assembly, BlobStore
from edge_runtime.wire.fetch import Fetch
from edge_runtime.wire.link import Connected, Delivery
from edge_runtime.wire.messages import LossProbe, Need, decode_device, decode_server, encode
from edge_runtime.wire.mqtt import MqttLink
from edge_runtime.wire.pace import Pace
from edge_runtime.wire.topics import Topics

pytestmark = pytest.mark.workstation

TOPICS = Topics("home")
LIMIT_S = 120.0


class Everyone:
    """A broker's rules that let everybody do everything."""

    def authenticate(self, client_id, username, password, certified=None):
        return Principal(name=client_id, role="device", valid_for_s=None)

    def may_stay(self, principal):
        return True

    def may_publish(self, principal, topic):
        return True

    may_subscribe = may_publish


class Ends:
    """The server's end and the device's, with what lies between them; `step` lets both do what is due."""

    def __init__(self, root, line, server):
        self.uploads = Uploads(DeviceUploads(root / "uploads"), first_probe=1)
        self.served, self.blobs, self.server = ServedBlobs(), BlobStore(root / "blobs"), server
        self.outgoing = Outgoing(server, TOPICS, self.blobs, self.served, time.monotonic)
        server.subscribe(*TOPICS.from_devices())
        self.device = MqttLink(
            f"mqtt://127.0.0.1:{line.port}", client_id="pi", username="pi", password="", clean_session=True
        )
        self.device.subscribe(*TOPICS.to_device("pi"))
        self.weights, self.store = BlobStore(root / "weights"), BlobStore(root / "device")
        self.queue = SendQueue(
            self.device, TOPICS, "pi", self.weights, pytest.fail, uplink=Pace(), clock=time.monotonic
        )
        self.fetch, self.assembly, self.is_up = None, None, False

    def down(self, data):
        blob = self.blobs.add(data)
        self.served.offer(blob)
        self.fetch, self.assembly = Fetch(Pace(), first_probe=500), Assembly(self.store, blob)
        self.fetch.want(blob, self.assembly.missing())
        self.until(lambda: self.assembly.is_complete)
        assert self.store.read(blob.digest) == data
        self.fetch = None

    def up(self, data):
        blob, self.is_up = self.weights.add(data), False
        self.ask(self.uploads.begin("pi", blob, time.monotonic())[1])
        self.until(lambda: self.is_up)
        assert self.uploads._folders.of("pi").read(blob.digest) == data

    def until(self, is_so):
        until_s = time.monotonic() + LIMIT_S
        while not is_so():
            assert time.monotonic() < until_s
            self.step()

    def ask(self, requests):
        for request in requests:
            self.outgoing.message("pi", encode(request))

    def step(self):
        now_s = time.monotonic()
        if isinstance(event := self.server.receive(0.005), Delivery):
            address = TOPICS.parse(event.topic)
            if address.kind == "event":
                self.served.on_request("pi", decode_device(event.payload))
            else:
                self.ask(self.uploads.on_run("pi", address.digest, address.index, event.payload, now_s))
                self.is_up = any(write.is_complete for write in self.uploads.written(now_s))
        self.ask([request for _, request in self.uploads.tick(now_s)])
        self.outgoing.flush()
        event = self.device.receive(0.005)
        if isinstance(event, Connected):
            self.uploads.on_connected("pi")  # as the device's Hello says
            if self.fetch is not None:
                self.fetch.doubt()
        elif isinstance(event, Delivery):
            self.hear(event, now_s)
        if self.fetch is not None and not self.assembly.is_complete:
            for request in self.fetch.requests(now_s):
                self.queue.add_message(request)
        self.queue.flush()

    def hear(self, event, now_s):
        if event.topic == TOPICS.command("pi"):
            match decode_server(event.payload):
                case Need(digest=digest, runs=runs):
                    blob = self.uploads._uploads["pi"].assembly.blob
                    assert blob.digest == digest
                    self.queue.add_runs(blob, runs)
                case LossProbe(digest=digest, number=number):
                    self.queue.add_marker(digest, number)
        elif not event.payload:
            self.fetch.on_marker(TOPICS.parse(event.topic).index, now_s)
        else:
            index = TOPICS.parse(event.topic).index
            run = self.assembly.blob.run_at(index, len(event.payload))
            self.fetch.on_run(self.assembly.blob.digest, run, now_s)
            self.assembly.accept(index, event.payload)


@pytest.fixture
def make_ends(tmp_path):
    opened = []

    def make(**line):
        broker = EmbeddedBroker(Everyone())
        proxy = Line(broker.start(port=0), **line).__enter__()
        ends = Ends(tmp_path, proxy, broker.link())
        opened.append((ends, proxy, broker))
        return ends, proxy

    yield make
    for ends, proxy, broker in opened:
        ends.device.close(linger_s=0.0)
        proxy.__exit__()
        ends.server.close()
        broker.stop(linger_s=0.0)


def test_over_a_slow_line_everything_crosses_once(make_ends):
    ends, line = make_ends(bytes_per_s=150_000.0)
    data = np.random.default_rng(0).bytes(300_000)
    ends.down(data)
    assert line.down_bytes < 1.02 * len(data)
    ends.up(data[::-1])
    assert line.up_bytes < 1.03 * len(data)
    assert (line.connections, line.resets) == (1, 0)


def test_over_a_bad_line_everything_arrives_and_little_crosses_twice(make_ends):
    ends, line = make_ends(bytes_per_s=150_000.0, resets_per_s=0.5, seed=3)
    data = np.random.default_rng(0).bytes(300_000)
    ends.down(data)
    ends.up(data[::-1])
    assert line.resets
    window = 5 * 150_000  # what a reset may cost at the most, each way
    assert line.down_bytes + line.up_bytes < 2.1 * len(data) + line.resets * window
