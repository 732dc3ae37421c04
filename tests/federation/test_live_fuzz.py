"""A live server among hostile clients, for as long as `make fuzz MINUTES=…` says.

One federation after another, over TLS: two honest devices as processes, and meanwhile whoever comes without a token,
with a stolen one and no key, and an enrolled device that signs whatever it draws. However it goes, the server ends well
and says nothing of a traceback, and each honest device has finished.
"""

import contextlib
import os
import random
import socket
import ssl
import threading
import time

import msgspec
import pytest
from hostile_messages import KINDS, HostileMessages

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from broker_server.server.state import read_url
from edge_runtime.wire import messages as wire
from edge_runtime.wire.energy import Energy
from edge_runtime.wire.errors import MessageInvalid
from edge_runtime.wire.link import Delivery, LinkFull
from edge_runtime.wire.messages import Plan, Status, decode_server, encode
from edge_runtime.wire.mqtt import MqttLink
from edge_runtime.wire.topics import Topics

pytestmark = [pytest.mark.workstation, pytest.mark.fuzz]
MINUTES = float(os.environ.get("MAS_FUZZ_MINUTES", "10"))
SEED = int(os.environ.get("MAS_FUZZ_SEED", "0"))
TASKS = ("depth", "normals", "segmentation")
TOPICS = Topics("home")


def mutated(chance, data):
    """Change, cut, repeat or lengthen bytes."""
    data = bytearray(data or b"x")
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(data))
        match chance.randrange(4):
            case 0:
                data[at] = chance.randrange(256)
            case 1:
                data = data[: at + 1]
            case 2:
                data = data[:at] + data[at : at + 20] + data[at:]
            case 3:
                data += chance.randbytes(chance.randrange(200))
    return bytes(data)


def connect_packet(name, password):
    """An MQTT CONNECT."""

    def text(data):
        return len(data).to_bytes(2, "big") + data

    rest = text(b"MQTT") + b"\x04\xc2\x00\x3c" + text(name) + text(name) + text(password)
    size, length = len(rest), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return b"\x10" + bytes([*length, size]) + rest


def energy(joules):
    """Energy of a plan, of which nothing but joules is said."""
    unknown = ("covers", "uncertainty_j", "idle_w", "sample_rate_hz", "temperature_max_c", "cpu_min_hz", "throttled")
    values = dict.fromkeys(unknown) | {"seconds": 4.0, "measured_s": 4.0, "gap_s": 0.0, "phases": {}}
    return Energy(source="rapl", estimated=False, energy_j=joules, **values)


class Stranger:
    """Sockets without a good token: silent, half a handshake, altered packets."""

    def __init__(self, site, chance, token):
        self.site, self.chance, self.token = site, chance, token
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE
        self.kept = []

    def act(self):
        with contextlib.suppress(OSError):
            sock = socket.create_connection(("127.0.0.1", self.site.port), 2)
            self.kept.append(sock)
            if self.chance.random() < 0.4:
                sock.sendall(self.chance.randbytes(self.chance.randrange(1, 300)))
            else:
                sock = self.kept[-1] = self.context.wrap_socket(sock)
                sock.sendall(mutated(self.chance, connect_packet(b"mallory", self.token.encode())))
                sock.sendall(self.chance.randbytes(self.chance.randrange(1, 2000)))
        while len(self.kept) > 40:
            self.kept.pop(self.chance.randrange(len(self.kept))).close()
        time.sleep(0.01)

    def close(self):
        for each in self.kept:
            each.close()


class Thief:
    """A device's good token, without its key."""

    def __init__(self, site, chance, config):
        self.chance = chance
        self.link = MqttLink(
            config["url"],
            client_id="victim",
            username="victim",
            password=config["token"],
            ca_pem=config["ca"],
            will=(TOPICS.status("victim"), chance.randbytes(20)),
        )

    def act(self):
        own = [TOPICS.event("victim"), TOPICS.status("victim"), TOPICS.up("victim")]
        others = [TOPICS.event("a"), TOPICS.command("victim"), TOPICS.upload("victim", "0" * 64, 3), "mas/4/home/x"]
        topic = self.chance.choice(own if self.chance.random() < 0.95 else others)
        with contextlib.suppress(LinkFull):
            self.link.publish(
                topic, self.chance.randbytes(self.chance.randrange(2000)), retain=self.chance.random() < 0.2
            )
        if self.chance.random() < 0.02:
            self.link.subscribe(
                self.chance.choice(
                    ["#", TOPICS.command("a"), TOPICS.command("victim"), "mas/4/home/device/+/download/+/+"]
                )
            )
        while self.link.receive(0.0):
            pass
        time.sleep(0.01)

    def close(self):
        self.link.close(linger_s=0.0)


class Mallory:
    """An enrolled device that signs whatever it draws, and answers needs with something."""

    def __init__(self, site, chance):
        self.chance, self.link = chance, site.link("mallory")
        self.round, self.group, self.digests = 0, "+".join(TASKS), []
        self.messages = HostileMessages(
            chance, lambda: (self.round, self.group), lambda: self.digests, energy, tasks=TASKS
        )
        self.link.subscribe(TOPICS.command("mallory"), TOPICS.down("mallory"))

    def act(self):
        with contextlib.suppress(LinkFull, MessageInvalid):
            match self.chance.choice([*KINDS, "status", "chunk", "bytes", "altered", "up"]):
                case "status":
                    state = self.chance.choice(["online", "offline"])
                    self.link.publish(TOPICS.status("mallory"), encode(Status(state=state)), retain=True)
                case "chunk":
                    topic = TOPICS.upload("mallory", self.messages.digest(), self.chance.randrange(3))
                    self.link.publish(topic, self.chance.choice([self.messages.data, b"", bytes(1024)]))
                case "bytes":
                    self.link.publish(TOPICS.event("mallory"), self.chance.randbytes(self.chance.randrange(200)))
                case "altered":
                    told = encode(self.messages.draw(self.chance.choice(KINDS)))
                    self.link.publish(TOPICS.event("mallory"), mutated(self.chance, told))
                case "up":
                    self.link.publish(TOPICS.up("mallory"), self.chance.randbytes(40))
                case kind:
                    self.link.publish(TOPICS.event("mallory"), encode(self.messages.draw(kind)))
        while event := self.link.receive(0.0):
            self._on(event)
        time.sleep(0.01)

    def _on(self, event):
        if not isinstance(event, Delivery) or event.topic != TOPICS.command("mallory"):
            return
        command = decode_server(event.payload)
        if isinstance(command, Plan):
            self.round, self.group = command.round, command.group
            self.digests = [command.bundle.digest, command.weights.digest]
        elif isinstance(command, wire.Need):
            for index in command.chunks:
                self.link.publish(TOPICS.upload("mallory", command.digest, index), self.messages.data)

    def close(self):
        self.link.close()


def course(site, seed):
    """Run one federation among hostile clients."""
    chance = random.Random(seed)
    server = site.serve(
        tls="always", min_devices=2, quorum=2, groups=1, merged_rounds=2, round_deadline_s=10, token_s=60
    )
    site.until(server, "a device joins")
    site.url = read_url(site.state)
    victim = msgspec.toml.decode(site.enrol("victim").read_bytes())
    clients = [
        Stranger(site, random.Random(chance.random()), victim["token"]),
        Thief(site, random.Random(chance.random()), victim),
        Mallory(site, random.Random(chance.random())),
    ]
    stop, failed = threading.Event(), []

    def run(client):
        try:
            while not stop.is_set():
                client.act()
        except Exception as exc:  # noqa: BLE001
            failed.append(exc)

    threads = [threading.Thread(target=run, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        site.ends(server, site.device("a"), site.device("b"))
    finally:
        stop.set()
        for thread, client in zip(threads, clients, strict=True):
            thread.join()
            client.close()
    assert not failed, failed
    assert "Traceback" not in server.said
    assert "\x1b" not in server.said


def test_live_server_survives_hostile_clients_and_honest_devices_finish(make_site):
    until_s, number = time.monotonic() + 60 * MINUTES, 0
    while time.monotonic() < until_s or not number:
        print(f"course {number}, seed {SEED + number}", flush=True)
        site = make_site(f"course-{number}")
        course(site, SEED + number)
        site.stop()
        number += 1
    print(f"{number} federations, {60 * MINUTES + time.monotonic() - until_s:.0f} s")
