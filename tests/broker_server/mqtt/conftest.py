"""A peer without a socket, an authorizer without tokens, and packets to draw."""

from dataclasses import dataclass, field

import pytest

pytest.importorskip("jwt")

from broker_server.mqtt.auth import Principal
from broker_server.mqtt.codec import Decoder
from broker_server.mqtt.hub import Hub
from broker_server.mqtt.limits import Limits
from broker_server.mqtt.packets import Connect, Packet
from broker_server.mqtt.stats import Stats
from edge_runtime.wire.errors import TokenRefused


@dataclass(eq=False)
class FakePeer:
    sent: bytearray = field(default_factory=bytearray)
    is_held: bool = False
    closed: str | None = None

    def send(self, header, payload=b""):
        self.sent += header + payload

    def hold(self, is_held):
        self.is_held = is_held

    def close(self, *, is_polite):
        self.closed = "polite" if is_polite else "at once"

    def packets(self) -> list[Packet]:
        decoder = Decoder()
        decoder.push(bytes(self.sent))
        self.sent.clear()
        found = []
        while (packet := decoder.pull()) is not None:
            found.append(packet)
        return found


class FakeAuthorizer:
    """The password is b'good'; topics under secret/ are not for anyone; valid for as long as `valid_for_s` says."""

    valid_for_s: float | None = None

    def authenticate(self, client_id, username, password):
        if password != b"good":
            raise TokenRefused("not good")
        return Principal(name=client_id, role="device", valid_for_s=self.valid_for_s)

    def may_publish(self, principal, topic):
        return not topic.startswith("secret/")

    def may_subscribe(self, principal, topic_filter):
        return not topic_filter.startswith("secret/")


class Stage:
    """A hub and peers around it, at a time that the test sets."""

    def __init__(self, **limits):
        self.stats = Stats()
        self.authorizer = FakeAuthorizer()
        self.hub = Hub(self.authorizer, Limits(**limits), self.stats)
        self.now_s = 0.0
        self.peers = {}

    def open(self):
        peer = FakePeer()
        client = self.hub.opened(peer, self.now_s)
        self.peers[client] = peer
        return client

    def send(self, client, packet):
        self.hub.received(client, packet, self.now_s)

    def connect(self, client_id, *, password=b"good", **fields):
        """Connect and forget the CONNACK."""
        client = self.open()
        self.send(client, Connect(client_id=client_id, username=client_id, password=password, **fields))
        self.got(client)
        return client

    def got(self, client):
        return self.peers[client].packets()

    def tick(self, now_s):
        self.now_s = now_s
        self.hub.tick(now_s)


@pytest.fixture
def stage():
    return Stage()


@pytest.fixture
def make_stage():
    return Stage
