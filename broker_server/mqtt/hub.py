"""The hub: connections, sessions, subscriptions and retained messages, tied together without I/O or clock.

Decisions that MQTT 3.1.1 leaves to a broker
- A CONNECT changes nothing until its token, client id, user name and will were found good. Only then does it take
  over an earlier connection of the same client id, whose will is sent first.
- A PUBLISH that is not allowed is acknowledged, counted and not routed, and the connection is closed: acknowledged,
  because a client would send it again after every reconnect.
- A SUBSCRIBE that is not allowed gets 0x80 for that filter and the connection stays.
- QoS 2 is granted as 1 to subscribers and sent as 1 in a will; a PUBLISH at QoS 2 is routed once, as QoS 1.
- What is acknowledged is not dropped. A PUBLISH at QoS 1 or 2 is taken when every subscriber that is here has room;
  until then it is not acknowledged, and its publisher held back (the socket is not read). A subscriber that has held
  others back for `stall_s` is cut off, and its session ends: its next connection says that there is none.
- What comes for a client that is away is kept for its session up to `queue_bytes`, QoS 1 only; one that would get more
  has lost its session, as it will be told. A subscriber whose outbox is full gets no QoS 0.
- An empty client id is the bearer's own name, where the session is clean.
"""

# coverage: every branch

from dataclasses import replace
from functools import partial
from typing import Protocol

from broker_server.mqtt.auth import Authorizer, Certified, Principal
from broker_server.mqtt.codec import PacketMalformed, ProtocolUnsupported, encode
from broker_server.mqtt.flow import Flow
from broker_server.mqtt.limits import Limits
from broker_server.mqtt.outbox import QueuedMessage
from broker_server.mqtt.packets import (
    Connack,
    Connect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
)
from broker_server.mqtt.retained import Retained
from broker_server.mqtt.router import Router
from broker_server.mqtt.session import ClientSession, Connection, ConnectionPhase, Peer, ProtocolViolated
from broker_server.mqtt.stats import Stats
from edge_runtime.wire.errors import TokenRefused

# CONNACK codes, section 3.2.2.3.
ACCEPTED, BAD_PROTOCOL, BAD_CLIENT_ID, UNAVAILABLE, NOT_AUTHORIZED = 0, 1, 2, 3, 5
REFUSED_FILTER = 0x80


class Subscriber(Protocol):
    """A receiver of messages: a client's session, or the server's own link."""

    def is_full_for(self, source: str) -> bool:
        """Return whether the publisher with this client id should wait."""
        ...

    def offer(self, message: QueuedMessage) -> bool:
        """Take a message; return False if it had to be dropped."""
        ...


class LocalParty(Subscriber, Protocol):
    """The server's own link: a subscriber, and a publisher that can be held back."""

    def hold(self, is_held: bool) -> None:
        """Stop publishing, or go on."""
        ...


class Client:
    """One connection, with its session once it is accepted."""

    def __init__(self, peer: Peer, connection: Connection, certified: Certified | None) -> None:
        self.peer = peer
        self.connection = connection
        self.certified = certified
        self.session: ClientSession | None = None
        self.pending: Publish | None = None
        """A message that waits for room, and is not acknowledged yet."""
        self.retry = _nothing  # publishes it again

    @property
    def is_live(self) -> bool:
        """Return whether the connection's CONNECT was accepted and it has not ended."""
        return self.connection.phase is ConnectionPhase.LIVE

    @property
    def is_closed(self) -> bool:
        """Return whether the connection has ended."""
        return self.connection.phase is ConnectionPhase.CLOSED

    def hold(self, is_held: bool) -> None:
        """Stop reading from the socket, or go on, unless the message that waited for room still finds none."""
        if not is_held and self.pending is not None:
            self.retry()
            is_held = self.pending is not None
        self.peer.hold(is_held)


class Hub:
    """The broker's logic. `now_s` is any clock that does not go back. Not safe for threads: one loop owns it."""

    def __init__(self, authorizer: Authorizer, limits: Limits, stats: Stats) -> None:
        self.limits = limits
        self.stats = stats
        self._authorizer = authorizer
        self._pending: dict[Client, None] = {}  # oldest first
        self._clients: dict[str, Client] = {}  # by client id
        self._sessions: dict[str, ClientSession] = {}
        self._router: Router[Subscriber] = Router()
        self._retained = Retained(cap=limits.retained, cap_bytes=limits.retained_bytes)
        self._flow: Flow[Client | LocalParty, Subscriber] = Flow()
        self._now_s = 0.0

    def on_opened(self, peer: Peer, now_s: float, certified: Certified | None = None) -> Client:
        """Take in an accepted socket, whose certificate, if it has shown one, is for `certified`.

        Over the cap, the oldest unauthenticated connection is closed for it.
        """
        self.stats.connections += 1
        if len(self._pending) >= self.limits.pending:
            self._end(next(iter(self._pending)), "pending-full", now_s)
        client = Client(peer, Connection(connect_timeout_s=self.limits.connect_timeout_s, now_s=now_s), certified)
        self._pending[client] = None
        return client

    def on_packet(self, client: Client, packet: Packet, now_s: float) -> None:
        """Act on a packet from a client."""
        self._now_s = now_s
        try:
            client.connection.receive(packet, now_s)
        except ProtocolViolated as exc:
            self.stats.malformed[exc.reason] += 1
            self._end(client, "malformed", now_s)
            return
        match packet:
            case Connect():
                self._connect(client, packet, now_s)
            case Publish():
                self._publish(client, packet, now_s)
            case Subscribe():
                self._subscribe(client, packet)
            case Unsubscribe():
                self._unsubscribe(client, packet)
            case Pubrel(packet_id):
                _session(client).received.discard(packet_id)
                client.peer.send(encode(Pubcomp(packet_id)))
            case Puback(packet_id):
                session = _session(client)
                session.acknowledge(packet_id)
                self._relieve_if_drained(session)
            case Pingreq():
                client.peer.send(encode(Pingresp()))
            case _:  # DISCONNECT: the connection lets nothing else through
                self._end(client, "disconnect", now_s, is_polite=True)

    def on_malformed(self, client: Client, error: PacketMalformed, now_s: float) -> None:
        """End a connection whose bytes are no packet."""
        self.stats.malformed[error.reason] += 1
        if isinstance(error, ProtocolUnsupported) and client.connection.phase is ConnectionPhase.FRESH:
            client.peer.send(encode(Connack(False, BAD_PROTOCOL)))
        self._end(client, "malformed", now_s, is_polite=True)

    def on_lost(self, client: Client, now_s: float) -> None:
        """End a connection whose socket is gone."""
        self._end(client, "lost", now_s)

    def on_not_reading(self, client: Client, now_s: float) -> None:
        """End the connection of a client that does not read, not even the answers to its own packets."""
        self._end(client, "slow", now_s)

    def on_writable(self, client: Client, is_writable: bool) -> None:
        """Note that the socket's own buffer has filled, or drained."""
        if client.session is not None:
            client.session.on_writable(is_writable)
            self._relieve_if_drained(client.session)

    def tick(self, now_s: float) -> None:
        """Do what has become due: call it every second or so."""
        self._now_s = now_s
        for client in [*self._pending, *self._clients.values()]:
            if reason := client.connection.overdue(now_s, is_held=self._flow.is_held(client)):
                self._end(client, reason, now_s)
            elif client.is_live and not self._authorizer.may_stay(_principal(client)):
                self._end(client, "revoked", now_s)
        for subscriber in self._flow.stalled(now_s, self.limits.stall_s):
            if isinstance(subscriber, ClientSession):  # the server's own link may take its time
                client = self._clients[subscriber.client_id]
                self.stats.dropped["slow"] += subscriber.outbox.clear()
                subscriber.is_clean = True  # what was for it is lost, and so is the session
                self._end(client, "slow", now_s)
        for session in list(self._sessions.values()):
            away_since_s = session.away_since_s
            if away_since_s is not None and now_s - away_since_s >= self.limits.session_expiry_s:
                self._drop_session(session)

    def close(self, now_s: float) -> None:
        """End every connection, because the broker stops. Wills go to the clients that are still connected."""
        for client in [*self._pending, *self._clients.values()]:
            self._end(client, "stopped", now_s, is_polite=True)

    @property
    def is_idle(self) -> bool:
        """Return whether every connected client has acknowledged all messages that were queued for it."""
        return not any(client.session and len(client.session.outbox) for client in self._clients.values())

    def publish(self, message: QueuedMessage, publisher: Client | LocalParty | None, now_s: float) -> bool:
        """Route a message, and keep it if it is to be retained; or hold its publisher back where there is no room.

        Return whether it was routed; if not, it is to be published again when the publisher is no longer held. Without
        a publisher it always is.
        """
        subscribers = self._router.subscribers(message.topic)
        if message.qos and publisher is not None:
            full = [each for each, qos in subscribers.items() if qos and each.is_full_for(message.source)]
            for each in full:
                self._flow.block(publisher, each, now_s)
            if full:
                return False
        if message.retain:
            if not self._retained.put(message):
                self.stats.dropped["retained-full"] += 1
            message = replace(message, retain=False)
        for subscriber, qos in subscribers.items():
            self._offer(subscriber, message if qos >= message.qos else replace(message, qos=qos))
        return True

    def subscribe(self, subscriber: Subscriber, topic_filter: str, qos: int) -> None:
        """Add a subscription, and deliver the retained messages that match it."""
        self._router.subscribe(subscriber, topic_filter, qos)
        for message in self._retained.matching(topic_filter):
            copy = message if qos >= message.qos else replace(message, qos=qos)
            self._offer(subscriber, copy)

    def on_drained(self, subscriber: Subscriber) -> None:
        """Let the publishers go on that waited for a subscriber, which has drained."""
        self._flow.relieve(subscriber)

    def drop(self, party: LocalParty) -> None:
        """Drop the server's own link, which is closed."""
        self._router.drop(party)
        self._flow.relieve(party)
        self._flow.drop(party)

    def _offer(self, subscriber: Subscriber, message: QueuedMessage) -> None:
        if subscriber.offer(message):
            return
        self.stats.dropped[f"qos-{message.qos}"] += 1
        if message.qos and isinstance(subscriber, ClientSession) and subscriber.is_away:
            self._drop_session(subscriber)

    def _connect(self, client: Client, connect: Connect, now_s: float) -> None:
        admitted = self._admitted(connect, client.certified)
        if isinstance(admitted, tuple):
            code, reason = admitted
            self.stats.refused[reason] += 1
            client.peer.send(encode(Connack(False, code)))
            self._end(client, "refused", now_s, is_polite=True)
            return
        client_id = _client_id(connect, admitted)
        if earlier := self._clients.get(client_id):
            self._end(earlier, "taken-over", now_s)
        session = self._sessions.get(client_id)
        if session is not None and (connect.clean_session or session.is_clean):
            self._drop_session(session)
            session = None
        is_present = session is not None
        if session is None:
            session = ClientSession(client_id, is_clean=connect.clean_session, limits=self.limits)
            self._make_room_for_session()
            self._sessions[client_id] = session
        del self._pending[client]
        self._clients[client_id] = client
        client.session = session
        client.retry = partial(self._retry, client)
        client.connection.admit(connect, admitted, now_s)
        client.peer.send(encode(Connack(is_present, ACCEPTED)))
        session.attach(client.peer)

    def _admitted(self, connect: Connect, certified: Certified | None) -> Principal | tuple[int, str]:
        """Return the client's principal, or the CONNACK code and the reason for refusing. Changes nothing."""
        if not connect.client_id and not connect.clean_session:
            return BAD_CLIENT_ID, "client-id"
        try:
            principal = self._authorizer.authenticate(connect.client_id, connect.username, connect.password, certified)
        except TokenRefused:
            return NOT_AUTHORIZED, "token"
        if connect.will is not None and not self._authorizer.may_publish(principal, connect.will.topic):
            return NOT_AUTHORIZED, "will"
        if _client_id(connect, principal) not in self._clients and len(self._clients) >= self.limits.clients:
            return UNAVAILABLE, "clients-full"
        return principal

    def _publish(self, client: Client, packet: Publish, now_s: float) -> None:
        session = _session(client)
        if not self._authorizer.may_publish(_principal(client), packet.topic):
            _acknowledge(client, packet)
            self.stats.refused["publish"] += 1
            self._end(client, "denied", now_s, is_polite=True)
            return
        if packet.qos == 2 and packet.packet_id in session.received:
            _acknowledge(client, packet)
            return
        if packet.qos == 2 and len(session.received) >= self.limits.unreleased:
            self.stats.malformed["unreleased"] += 1
            self._end(client, "malformed", now_s)
            return
        qos = min(packet.qos, 1)
        message = QueuedMessage(packet.topic, packet.payload, qos, packet.retain, session.client_id)
        if not self.publish(message, client, now_s):
            client.pending = packet
            return
        self.stats.messages_in += 1
        if packet.qos == 2:
            session.received.add(packet.packet_id)
        _acknowledge(client, packet)

    def _retry(self, client: Client) -> None:
        """Publish a message again that waited for room."""
        packet, client.pending = client.pending, None
        assert packet is not None
        self._publish(client, packet, self._now_s)

    def _subscribe(self, client: Client, packet: Subscribe) -> None:
        principal, session = _principal(client), _session(client)
        codes: list[int] = []
        granted: list[tuple[str, int]] = []
        known = set(self._router.filters(session))
        for topic_filter, qos in packet.filters:
            has_room = topic_filter in known or len(known) < self.limits.subscriptions
            if not has_room or not self._authorizer.may_subscribe(principal, topic_filter):
                self.stats.refused["subscribe" if has_room else "subscriptions-full"] += 1
                codes.append(REFUSED_FILTER)
                continue
            known.add(topic_filter)
            codes.append(min(qos, 1))
            granted.append((topic_filter, min(qos, 1)))
        # The answer goes first, so that no retained message overtakes it.
        client.peer.send(encode(Suback(packet.packet_id, tuple(codes))))
        for topic_filter, qos in granted:
            self.subscribe(session, topic_filter, qos)

    def _unsubscribe(self, client: Client, packet: Unsubscribe) -> None:
        for topic_filter in packet.filters:
            self._router.unsubscribe(_session(client), topic_filter)
        client.peer.send(encode(Unsuback(packet.packet_id)))

    def _end(self, client: Client, reason: str, now_s: float, *, is_polite: bool = False) -> None:
        """End a connection, once: its publishing and holding back, its session if clean, and then its will."""
        if client.is_closed:
            return
        self.stats.closed[reason] += 1
        will = client.connection.close()
        client.peer.close(is_polite=is_polite)
        self._pending.pop(client, None)
        self._flow.drop(client)
        if client.session is not None:
            del self._clients[client.session.client_id]
            client.session.detach(now_s)
            self._flow.relieve(client.session)
            if client.session.is_clean:
                self._drop_session(client.session)
        if will is not None:
            self.stats.messages_in += 1
            source = _session(client).client_id
            self.publish(QueuedMessage(will.topic, will.payload, min(will.qos, 1), will.retain, source), None, now_s)

    def _drop_session(self, session: ClientSession) -> None:
        self._router.drop(session)
        self.stats.dropped["session-ended"] += session.outbox.clear()
        self._sessions.pop(session.client_id, None)

    def _make_room_for_session(self) -> None:
        if len(self._sessions) >= self.limits.sessions:
            away = [session for session in self._sessions.values() if session.is_away]
            if away:
                self._drop_session(min(away, key=lambda session: session.away_since_s or 0.0))

    def _relieve_if_drained(self, session: ClientSession) -> None:
        if self._flow.is_awaited(session) and session.outbox.is_relieved:
            self._flow.relieve(session)


def _nothing() -> None:
    """Do nothing."""


def _acknowledge(client: Client, packet: Publish) -> None:
    if packet.qos:
        client.peer.send(encode(Puback(packet.packet_id) if packet.qos == 1 else Pubrec(packet.packet_id)))


def _client_id(connect: Connect, principal: Principal) -> str:
    return connect.client_id or principal.name


def _session(client: Client) -> ClientSession:
    assert client.session is not None  # a live connection has one
    return client.session


def _principal(client: Client) -> Principal:
    assert client.connection.principal is not None
    return client.connection.principal
