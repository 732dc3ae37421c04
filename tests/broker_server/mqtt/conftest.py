"""For the logic a stage without sockets or tokens; for the shell a live broker with both."""

import socket
import time
from dataclasses import dataclass, field

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker_server.mqtt.auth import Principal, TokenAuthorizer
from broker_server.mqtt.broker import EmbeddedBroker
from broker_server.mqtt.codec import Decoder
from broker_server.mqtt.hub import Hub
from broker_server.mqtt.limits import Limits
from broker_server.mqtt.packets import Connect, Packet
from broker_server.mqtt.stats import Stats
from edge_runtime.wire import tokens
from edge_runtime.wire.errors import TokenRefused
from edge_runtime.wire.link import Connected
from edge_runtime.wire.mqtt import MqttLink
from edge_runtime.wire.topics import Topics


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
    revoked: frozenset = frozenset()

    def authenticate(self, client_id, username, password, certified=None):
        if password != b"good":
            raise TokenRefused("not good")
        return Principal(name=client_id, role="device", valid_for_s=self.valid_for_s)

    def may_publish(self, principal, topic):
        return not topic.startswith("secret/")

    def may_subscribe(self, principal, topic_filter):
        return not topic_filter.startswith("secret/")

    def may_stay(self, principal):
        return principal.name not in self.revoked


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
        client = self.hub.on_opened(peer, self.now_s)
        self.peers[client] = peer
        return client

    def send(self, client, packet):
        self.hub.on_packet(client, packet, self.now_s)

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


FEDERATION = "fed"
PATIENCE_S = 30.0


class Site:
    """A live broker on a free port, with the key that signs its tokens."""

    def __init__(self, **options):
        self.key = Ed25519PrivateKey.generate()
        self.topics = Topics(FEDERATION)
        self.broker = EmbeddedBroker(TokenAuthorizer(self.key.public_key(), FEDERATION, now=time.time), **options)
        self.port = self.broker.start("127.0.0.1", 0)
        self.links = []
        self.sockets = []

    def token(self, name, *, federation=FEDERATION, role="device", lifetime_s=600.0):
        return tokens.issue(self.key, name=name, federation=federation, role=role, lifetime_s=lifetime_s)

    def device(self, name, *, token=None, wait=True, scheme="mqtt", **options):
        """A device's link; its first event, Connected, is taken unless `wait` is off."""
        link = MqttLink(
            f"{scheme}://127.0.0.1:{self.port}",
            client_id=name,
            username=options.pop("username", name),
            password=token or self.token(name),
            **options,
        )
        self.links.append(link)
        if wait:
            assert link.receive(PATIENCE_S) == Connected()
        return link

    def local(self, *filters, **options):
        link = self.broker.link(**options)
        assert link.receive(PATIENCE_S) == Connected()
        link.subscribe(*filters)
        return link

    def raw(self, data=b"", *, receive_bytes=None):
        """A plain socket to the broker."""
        sock = socket.socket()
        sock.settimeout(PATIENCE_S)
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.connect(("127.0.0.1", self.port))
        sock.sendall(data)
        self.sockets.append(sock)
        return sock

    def close(self):
        for link in self.links:
            link.close(linger_s=0)
        self.broker.stop(linger_s=0.5)
        for sock in self.sockets:
            sock.close()


def _until(is_so):
    until_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < until_s, "did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def until():
    return _until


@pytest.fixture
def make_site():
    sites = []

    def make(**options):
        sites.append(Site(**options))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def site(make_site):
    return make_site()
