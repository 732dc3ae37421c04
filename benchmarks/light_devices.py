"""Many devices in one process that speak the real protocol, and train nothing: what a server bears is measured on them.

Each has its own connection, token, key and signed events, fetches what its plan names as a device does, and sends an
update of its own: the weights that it got with another last value. One copy of each file is kept for all of them, and
of a device only what is under way.
"""

import asyncio
import contextlib
import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from broker_server.mqtt.codec import Decoder, encode
from broker_server.mqtt.packets import Connack, Connect, Packet, Pingreq, Puback, Publish, Subscribe, Will
from edge_runtime.wire import messages
from edge_runtime.wire.blob import MESSAGE_BYTES, Blob, ChunkRun
from edge_runtime.wire.envelope import BOOT_BYTES, Scope, open_command, seal_event
from edge_runtime.wire.errors import SignatureInvalid
from edge_runtime.wire.fetch import Fetch
from edge_runtime.wire.manifest import decode
from edge_runtime.wire.pace import Pace
from edge_runtime.wire.topics import Topics

KEEPALIVE_S = 60
TICK_S = 1.0
IN_FLIGHT = 20
"""Messages that a device has published and its broker has not acknowledged, at the most: as paho's window."""
STAGGER_S = 0.002
EXAMPLES = 10


@dataclass(frozen=True)
class Enrolled:
    """A device's enrolment."""

    name: str
    token: str
    code: bytes


@dataclass
class Fleet:
    """Devices that run together; what they have seen."""

    host: str
    port: int
    federation: str
    server_key: bytes
    tasks: tuple[str, ...]
    files: dict[str, bytes] = field(default_factory=dict)
    """Every file that some device has fetched, by digest."""
    down_bytes: int = 0
    needed_down_bytes: int = 0
    up_bytes: int = 0
    needed_up_bytes: int = 0
    on_plan: Callable[[messages.Plan], None] = lambda _plan: None
    """Hears of each plan that is the first of its round."""
    rounds: set[int] = field(default_factory=set)
    began_s: dict[int, float] = field(default_factory=dict)
    """When the first device got each round's plan to train."""
    first_update_s: dict[int, float] = field(default_factory=dict)
    """When the first device announced its update of a round."""
    accepted_s: dict[int, list[float]] = field(default_factory=dict)
    """When each device's update of a round was accepted."""
    counts: Counter[str] = field(default_factory=Counter)

    def updated(self, digest: str, own: int) -> tuple[Blob, bytes]:
        """Return a device's update of these weights, and its last four bytes, in which it differs from others'."""
        weights = self.files[digest]
        tail = np.float32(1e-3 * (own + 1)).tobytes()
        hashed = self._prefix(digest, weights).copy()
        hashed.update(tail)
        return Blob(digest=hashed.hexdigest(), size_bytes=len(weights)), tail

    def _prefix(self, digest: str, weights: bytes) -> "hashlib._Hash":
        if digest not in self._prefixes:
            self._prefixes = {digest: hashlib.sha256(memoryview(weights)[:-4])}
        return self._prefixes[digest]

    _prefixes: dict[str, "hashlib._Hash"] = field(default_factory=dict)


class LightDevice(asyncio.Protocol):
    """One device, from its CONNECT until the server has said that the federation has ended."""

    def __init__(self, fleet: Fleet, enrolled: Enrolled, number: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._fleet, self._enrolled, self._number = fleet, enrolled, number
        self._topics = Topics(fleet.federation)
        self._scope = Scope(federation=fleet.federation, device=enrolled.name)
        self._key = Ed25519PrivateKey.generate()
        self._server_key = Ed25519PublicKey.from_public_bytes(fleet.server_key)
        self._boot = hashlib.sha256(enrolled.code).digest()[:BOOT_BYTES]
        self._counter = count(1)
        self._decoder = Decoder()
        self._ids = count(1)
        self._in_flight = 0
        self._messages: deque[Publish] = deque()
        self._runs: deque[Iterator[Publish]] = deque()
        self._pace = Pace()
        self._fetch = Fetch(self._pace)
        self._parts: dict[str, dict[int, bytes]] = {}
        self._wanted: dict[str, Blob] = {}
        self._have: set[str] = set()
        self._plan: messages.Plan | None = None
        self._answer: messages.Message | None = None
        self._update: tuple[Blob, str, bytes] | None = None

    # The connection
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Introduce the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        name = self._enrolled.name
        gone = messages.encode(messages.Status(state="offline"))
        self._send(
            Connect(
                client_id=name,
                keepalive_s=KEEPALIVE_S,
                will=Will(self._topics.status(name), gone, qos=1, retain=True),
                username=name,
                password=self._enrolled.token.encode(),
            )
        )

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        self._decoder.push(data)
        while (packet := self._decoder.pull()) is not None:
            self._on_packet(packet)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up: a device that loses its connection is a failure here."""
        if not self.done.done():
            self._fleet.counts["connections lost"] += 1
            self.done.set_exception(ConnectionError(f"{self._enrolled.name} lost its connection: {exc}"))

    def ping(self) -> None:
        """Say that the connection lives."""
        self._send(Pingreq())

    def tick(self) -> None:
        """Ask again for what is proved lost."""
        self._ask()

    def _send(self, packet: Packet) -> None:
        self._transport.write(encode(packet))

    def _flush(self) -> None:
        """Publish what waits while the broker acknowledges it: messages first, and runs are made in their turn."""
        while self._in_flight < IN_FLIGHT:
            if self._messages:
                self._put(self._messages.popleft())
            elif not self._runs:
                return
            elif (following := next(self._runs[0], None)) is not None:
                self._put(following)
            else:
                self._runs.popleft()

    def _put(self, packet: Publish) -> None:
        self._in_flight += 1
        packet_id = next(self._ids) % 65_535 + 1
        self._send(Publish(topic=packet.topic, payload=packet.payload, qos=1, packet_id=packet_id))

    def _on_packet(self, packet: Packet) -> None:
        match packet:
            case Connack(code=0):
                filters = tuple((each, 1) for each in self._topics.to_device(self._enrolled.name))
                self._send(Subscribe(next(self._ids), filters))
                self._say_hello()
            case Connack(code=code):
                self._fleet.counts[f"refused {code}"] += 1
            case Publish():
                if packet.qos:
                    self._send(Puback(packet.packet_id))
                self._on_message(packet.topic, packet.payload)
            case Puback():
                self._in_flight -= 1
                self._flush()
            case _:
                pass

    # The protocol
    def _say(self, message: messages.Message) -> None:
        body = messages.encode(message)
        sealed = seal_event(
            self._key, self._scope, code=self._enrolled.code, boot=self._boot, counter=next(self._counter), body=body
        )
        self._messages.append(Publish(topic=self._topics.event(self._enrolled.name), payload=sealed, qos=1))
        self._flush()

    def _say_hello(self) -> None:
        self._say(
            messages.Hello(
                software="light",
                engine="portable",
                platform="linux",
                examples={"train": EXAMPLES, "val": 2, "test": 2},
                tasks=self._fleet.tasks,
                memory_bytes=None,
            )
        )

    def _on_message(self, topic: str, payload: bytes) -> None:
        address = self._topics.parse(topic)
        if address.kind == "download":
            assert address.digest is not None
            assert address.index is not None
            self._on_run(address.digest, address.index, payload)
            return
        try:
            command = open_command(self._server_key, self._scope, payload)
        except SignatureInvalid:
            open_command(
                self._server_key, self._scope, payload, b"token"
            )  # for the next connection, which there is not
            return
        match messages.decode_server(command.body):
            case messages.RollCall():
                self._say_hello()
            case messages.Plan() as plan:
                self._on_plan(plan)
            case messages.Need() as need if self._update is not None and need.digest == self._update[0].digest:
                self._runs.append(self._answers(need))
                self._flush()
            case messages.LossProbe() as probe:
                topic = self._topics.upload(self._enrolled.name, probe.digest, probe.number)
                self._runs.append(iter([Publish(topic=topic, payload=b"", qos=1)]))
                self._flush()
            case messages.Ack() as ack:
                self._on_ack(ack)
            case messages.Finished():
                if not self.done.done():
                    self.done.set_result(None)
                self._transport.close()
            case _:
                self._fleet.counts["unexpected message"] += 1

    def _on_plan(self, plan: messages.Plan) -> None:
        if self._plan == plan:
            if self._answer is not None:
                self._say(self._answer)
            return
        self._plan, self._answer = plan, None
        if plan.round not in self._fleet.rounds:
            self._fleet.rounds.add(plan.round)
            self._fleet.on_plan(plan)
            if plan.work == "train":
                self._fleet.began_s[plan.round] = time.monotonic()
        self._want(plan.bundle)
        self._want(plan.weights)
        self._go_on()

    def _want(self, blob: Blob) -> None:
        if blob.digest in self._have or blob.digest in self._wanted:
            return
        self._wanted[blob.digest] = blob
        self._fleet.needed_down_bytes += blob.size_bytes
        if blob.digest not in self._fleet.files:
            self._parts[blob.digest] = {}
        self._fetch.want(blob, [ChunkRun(0, blob.chunks)])

    def _on_run(self, digest: str, index: int, data: bytes) -> None:
        self._fleet.down_bytes += len(data)
        now_s = time.monotonic()
        if not data:
            self._fetch.on_marker(index, now_s)
        elif (blob := self._wanted.get(digest)) is None:
            self._fleet.counts["run that was not wanted"] += 1
        else:
            if digest in self._parts:
                self._parts[digest][index] = data
            if not self._fetch.on_run(digest, blob.run_at(index, len(data)), now_s):
                self._fleet.counts["run that was not asked for"] += 1
            if not self._fetch.lacks(digest):
                self._complete(digest)
        self._ask()

    def _complete(self, digest: str) -> None:
        parts = self._parts.pop(digest, None)
        if parts is not None and digest not in self._fleet.files:
            content = b"".join(parts[index] for index in sorted(parts))
            assert hashlib.sha256(content).hexdigest() == digest
            self._fleet.files[digest] = content
        del self._wanted[digest]
        self._have.add(digest)
        if self._plan is not None and digest == self._plan.bundle.digest:
            for graph in decode(self._fleet.files[digest]).files.values():
                self._want(Blob(digest=graph.digest, size_bytes=graph.size_bytes))
        self._go_on()

    def _go_on(self) -> None:
        """Ask for what is missing, or answer the plan."""
        if self._wanted:
            self._ask()
            return
        plan = self._plan
        assert plan is not None
        if plan.work == "evaluate":
            self._answer = messages.Evaluation(
                round=plan.round,
                group=plan.group,
                loss=dict.fromkeys(plan.tasks, 1.0),
                examples=dict.fromkeys(plan.tasks, 2),
                wall_s=0.1,
                peak_rss_bytes=None,
                bytes_down=0,
                energy=None,
            )
        else:
            blob, tail = self._fleet.updated(plan.weights.digest, self._number)
            self._update = (blob, plan.weights.digest, tail)
            self._fleet.needed_up_bytes += blob.size_bytes
            self._fleet.first_update_s.setdefault(plan.round, time.monotonic())
            self._answer = messages.Update(
                round=plan.round,
                group=plan.group,
                weights=blob,
                examples=dict.fromkeys(plan.tasks, EXAMPLES),
                train_loss=dict.fromkeys(plan.tasks, 1.0),
                val_loss=None,
                affinity=None,
                wall_s=0.1,
                peak_rss_bytes=None,
                bytes_down=0,
                energy=None,
            )
        self._say(self._answer)

    def _ask(self) -> None:
        for request in self._fetch.requests(time.monotonic()):
            self._say(request)

    def _answers(self, need: messages.Need) -> Iterator[Publish]:
        """Yield the messages that answer a request."""
        assert self._update is not None
        blob, base, tail = self._update
        weights = memoryview(self._fleet.files[base])
        step = MESSAGE_BYTES // blob.chunk_bytes
        for run in need.runs:
            for first in range(run.first, run.end, step):
                end = min(run.end, first + step)
                data = bytes(weights[first * blob.chunk_bytes : min(end * blob.chunk_bytes, blob.size_bytes)])
                if end == blob.chunks:
                    data = data[:-4] + tail
                self._fleet.up_bytes += len(data)
                topic = self._topics.upload(self._enrolled.name, blob.digest, first)
                yield Publish(topic=topic, payload=data, qos=1)

    def _on_ack(self, ack: messages.Ack) -> None:
        if not ack.accepted:
            self._fleet.counts[f"declined: {ack.detail}"] += 1
        elif isinstance(self._answer, messages.Update) and ack.round == self._answer.round:
            self._fleet.accepted_s.setdefault(ack.round, []).append(time.monotonic())


async def run(fleet: Fleet, devices: Sequence[Enrolled]) -> None:
    """Run devices until the server has said to each that the federation has ended. Raises ConnectionError."""
    loop = asyncio.get_running_loop()
    connected: list[LightDevice] = []

    async def beat() -> None:
        for beats in count():
            await asyncio.sleep(TICK_S)
            for device in connected:
                if not device.done.done():
                    device.tick()
                    if beats % (KEEPALIVE_S // 2) == 0:
                        device.ping()

    beating = loop.create_task(beat())
    try:
        for number, enrolled in enumerate(devices):
            device = LightDevice(fleet, enrolled, number)
            await loop.create_connection(lambda device=device: device, fleet.host, fleet.port)  # type: ignore[misc]
            connected.append(device)
            await asyncio.sleep(STAGGER_S)
        await asyncio.gather(*(device.done for device in connected))
    finally:
        beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beating
