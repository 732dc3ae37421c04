import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from broker_server.mqtt.auth import Principal
from broker_server.mqtt.limits import Limits
from broker_server.mqtt.outbox import QueuedMessage
from broker_server.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    Unsubscribe,
    Will,
)
from broker_server.mqtt.session import ClientSession, Connection, ConnectionPhase, ProtocolViolated

WILL = Will("w", b"gone", 1, True)
FROM_CLIENTS = [
    Publish(topic="a", payload=b""),
    Puback(1),
    Pubrel(1),
    Subscribe(1, (("a", 0),)),
    Unsubscribe(1, ("a",)),
    Pingreq(),
]
FROM_BROKERS = [Connack(False, 0), Pubrec(1), Pubcomp(1), Pingresp()]


def principal(valid_for_s=None):
    return Principal(name="c", role="device", valid_for_s=valid_for_s)


def live(now_s=0.0, valid_for_s=None, **fields):
    connection = Connection(connect_timeout_s=10, now_s=now_s)
    connect = Connect(client_id="c", **fields)
    connection.receive(connect, now_s)
    connection.admit(connect, principal(valid_for_s), now_s)
    return connection


def test_connection_takes_nothing_before_connect():
    for packet in [*FROM_CLIENTS, *FROM_BROKERS, Disconnect()]:
        connection = Connection(connect_timeout_s=10, now_s=0)
        with pytest.raises(ProtocolViolated, match="FRESH"):
            connection.receive(packet, 1.0)
        assert connection.phase is ConnectionPhase.FRESH


def test_connection_that_is_live_takes_no_second_connect_and_no_broker_packets():
    connection = live()
    for packet in FROM_CLIENTS:
        connection.receive(packet, 1.0)
    for packet in [*FROM_BROKERS, Connect(client_id="c")]:
        with pytest.raises(ProtocolViolated, match="LIVE"):
            connection.receive(packet, 1.0)


def test_connection_without_connect_times_out():
    connection = Connection(connect_timeout_s=10, now_s=5)
    assert connection.overdue(14.9) is None
    assert connection.overdue(15.0) == "connect-timeout"
    assert connection.overdue(15.0, is_held=True) == "connect-timeout"


def test_connection_is_overdue_after_one_and_a_half_keepalives_unless_held():
    connection = live(keepalive_s=10)
    connection.receive(Pingreq(), 5.0)
    assert connection.overdue(19.9) is None
    assert connection.overdue(20.0) == "keepalive"
    assert connection.overdue(20.0, is_held=True) is None
    connection.touch(20.0)
    assert connection.overdue(34.0) is None


def test_connection_without_keepalive_is_never_overdue():
    assert live(keepalive_s=0).overdue(1e9) is None


def test_connection_ends_with_its_token_whatever_it_does():
    connection = live(valid_for_s=30.0, keepalive_s=0)
    connection.receive(Pingreq(), 29.9)
    assert connection.overdue(29.9) is None
    assert connection.overdue(30.0, is_held=True) == "token-expired"


def test_connection_gives_its_will_once_unless_the_client_said_goodbye():
    connection = live(will=WILL)
    assert connection.close() == WILL
    assert connection.close() is None
    polite = live(will=WILL)
    polite.receive(Disconnect(), 1.0)
    assert polite.close() is None
    with pytest.raises(ProtocolViolated, match="CLOSED"):
        polite.receive(Pingreq(), 1.0)


class ConnectionMachine(RuleBasedStateMachine):
    """Whatever comes in whatever order: the phases go forward only, and a refused packet changes nothing."""

    def __init__(self):
        super().__init__()
        self.connection = Connection(connect_timeout_s=10, now_s=0)
        self.now_s = 0.0
        self.wills = 0
        self.last = self.connection.phase

    @rule(packet=st.sampled_from([*FROM_CLIENTS, *FROM_BROKERS, Disconnect()]))
    def receive(self, packet):
        before = vars(self.connection).copy()
        try:
            self.connection.receive(packet, self.now_s)
        except ProtocolViolated:
            assert vars(self.connection) == before
        else:
            assert self.connection.phase is ConnectionPhase.LIVE

    @rule(keepalive_s=st.integers(0, 20))
    def connect(self, keepalive_s):
        packet = Connect(client_id="c", keepalive_s=keepalive_s, will=WILL)
        try:
            self.connection.receive(packet, self.now_s)
        except ProtocolViolated:
            assert self.connection.phase is not ConnectionPhase.FRESH
        else:
            self.connection.admit(packet, principal(100.0), self.now_s)

    @rule(step_s=st.floats(0, 30))
    def wait(self, step_s):
        self.now_s += step_s
        if self.connection.overdue(self.now_s):
            self.close()

    @rule()
    def close(self):
        self.wills += self.connection.close() is not None

    @invariant()
    def goes_forward(self):
        assert self.connection.phase.value >= self.last.value
        assert self.wills <= 1
        self.last = self.connection.phase


ConnectionMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestConnectionMachine = ConnectionMachine.TestCase


def test_session_writes_only_while_connected_and_writable(stage):
    peer = stage.peers[stage.open()]
    session = ClientSession("c", is_clean=False, limits=Limits())
    assert session.offer(QueuedMessage("a", b"1", 1))
    assert not session.offer(QueuedMessage("a", b"0", 0))
    session.attach(peer)
    assert [p.payload for p in peer.packets()] == [b"1"]
    session.on_writable(False)
    session.offer(QueuedMessage("a", b"2", 1))
    assert peer.packets() == []
    session.on_writable(True)
    assert [p.payload for p in peer.packets()] == [b"2"]
    session.acknowledge(1)
    session.acknowledge(77)
    session.detach(3.0)
    assert (session.is_away, session.away_since_s) == (True, 3.0)
    session.attach(peer)
    assert [(p.payload, p.dup) for p in peer.packets()] == [(b"2", True)]
