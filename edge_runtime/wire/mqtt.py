"""MQTT over a socket: the only place that imports paho.

Rules
- Everything is published at QoS 1.
- paho's callbacks run on its network thread and never block: events go into an inbox, and a message is acknowledged
  to the broker only when `receive` returns it. So the broker's own in-flight window bounds the inbox; messages beyond
  `inbox_bytes` (QoS 0, a broker without a window) are dropped and counted in `dropped`.
- The outbox is bounded in bytes over both halves: messages that wait here, and those that paho has in flight (at most
  `window`, so that pings are never stuck behind a long queue on a slow uplink).
- A lost connection is made again with growing pauses, without end, and of several addresses at the next one. Only a
  refusal by the broker ends the link: the event is Disconnected(refused=True) and nothing is tried again.
- A broker that takes no message of some size cuts the connection on it, and would on each new one. A message on which
  CUTS connections in a row have ended is dropped, with all beyond half of it, and the event says how large it was.
"""

import datetime as dt
import logging
import queue
import socket
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.wire.broker_url import BrokerUrl, LinkInvalid, show_certificate, tls_context
from edge_runtime.wire.connection_fault import OF_A_SERVER, Ends, connection_fault, cut_short
from edge_runtime.wire.link import Connected, Delivery, Disconnected, Event, LinkFull, packet_bytes

_LOG = logging.getLogger(__name__)
_OVERHEAD_BYTES = 512
"""A message's memory beyond its topic and payload, roughly: it also bounds the number of small ones."""


ANSWER_S = 30.0
"""So long may a broker take to begin with a connection: after its restart all devices come at once."""
CUTS = 3
"""So many connections in a row end on a message that is too large; a bad line rarely does that."""
SMALL_BYTES = 16 * 1024
"""No message up to this size is taken to be too large."""


@dataclass
class _Arrived:
    """A delivery in the inbox, with the ids that its acknowledgement needs."""

    delivery: Delivery
    packet_id: int
    qos: int
    connection: int  # an acknowledgement never crosses over to the next connection


class MqttLink:
    """A Link over a socket, MQTT 3.1.1.

    Connecting happens in the background and shows as events; the constructor only raises LinkInvalid, for a URL,
    certificates to trust (`ca_file`, `ca_pem`) or one to show (`certificate_file`, with its key) that cannot be used.
    `password` is the token, or makes one for each connection, and the certificate is read anew for each. `will` is
    (topic, payload), published retained at QoS 1 by the broker if this end vanishes. Without `clean_session` the broker
    keeps unacknowledged messages over reconnects. A message over `inbox_bytes` in total, or of more than
    `max_payload_bytes`, is dropped and counted.
    """

    def __init__(
        self,
        url: str,
        *,
        client_id: str,
        username: str,
        password: str | Callable[[], str],
        will: tuple[str, bytes] | None = None,
        keepalive_s: int = 30,
        clean_session: bool = False,
        ca_file: Path | None = None,
        ca_pem: str | None = None,
        certificate_file: Path | None = None,
        window: int = 20,
        outbox_bytes: int = 16 << 20,
        inbox_bytes: int = 64 << 20,
        max_payload_bytes: int = 1 << 20,
        retry_max_s: int = 30,
        ends: Ends = OF_A_SERVER,
    ) -> None:
        where = BrokerUrl.parse(url)
        self._where, self._ends = where, ends
        self._address = where.addresses[0]
        self.bytes_in = 0
        self.bytes_out = 0
        self.bytes_acknowledged = 0
        self.dropped = 0
        self._name = f"{client_id} at {', '.join(f'{host}:{port}' for host, port in where.addresses)}"
        self._window = window
        self._outbox_limit_bytes = outbox_bytes
        self._inbox_limit_bytes = inbox_bytes
        self._max_payload_bytes = max_payload_bytes

        self._filters: dict[str, None] = {}
        self._inbox: queue.SimpleQueue[_Arrived | Connected | Disconnected | None] = queue.SimpleQueue()
        self._inbox_bytes = 0
        self._outbox: deque[tuple[str, bytes, bool]] = deque()
        self._outbox_bytes = 0
        self._flying: dict[int, tuple[str, bytes, bool]] = {}  # by packet id, oldest first
        self._cut_on: tuple[str, bytes, bool] | None = None
        self._cuts = 0
        self._acknowledged: deque[int] = deque()
        self._counting = threading.Lock()
        self._pumping = threading.Lock()
        self._connection = 0
        self._is_connected = False
        self._is_answered = False  # the present attempt, by the broker
        self._reported: set[str] = set()  # of the present disconnection
        self._refused = False
        self._closed = threading.Event()

        tls = tls_context(ca_file, ca_pem) if where.tls else None
        if tls is not None and certificate_file is not None:
            show_certificate(tls, certificate_file)
        self._make = partial(
            self._client_of,
            client_id=client_id,
            username=username,
            password=password,
            will=will,
            keepalive_s=keepalive_s,
            clean_session=clean_session,
            tls=tls,
            certificate_file=certificate_file,
            retry_max_s=retry_max_s,
        )
        self._client = self._make()

    def __repr__(self) -> str:
        return f"MqttLink({self._name})"

    @property
    def queued_bytes(self) -> int:
        """Bytes that the broker has not acknowledged yet, with their overhead."""
        return self._outbox_bytes

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Queue a message at QoS 1, connected or not. Raises LinkFull if the outbox has no room."""
        if not topic or "+" in topic or "#" in topic:
            raise ValueError(f"{topic[:200]!r} is not a topic to publish to")
        cost = _cost_bytes(topic, payload)
        with self._counting:
            if self._outbox_bytes + cost > self._outbox_limit_bytes:
                raise LinkFull(
                    f"{self._outbox_bytes} bytes wait for the broker, and {cost} more would be over the "
                    f"{self._outbox_limit_bytes} allowed"
                )
            self._outbox_bytes += cost
            self.bytes_out += packet_bytes(topic, payload)
            self._outbox.append((topic, payload, retain))
        self._pump()

    def subscribe(self, *filters: str) -> None:
        """Subscribe at QoS 1, now and after each reconnect."""
        self._filters.update(dict.fromkeys(filters))
        if filters and self._is_connected:
            self._client.subscribe([(topic_filter, 1) for topic_filter in filters])

    def receive(self, timeout_s: float | None) -> Event | None:
        """Return the next event; None if none comes in `timeout_s` seconds (None: no limit) or the link is closed."""
        try:
            event = self._inbox.get(block=not self._closed.is_set(), timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(event, Disconnected) and event.too_large_bytes is not None:
            self._drop_large(event.too_large_bytes)
        if not isinstance(event, _Arrived):
            return event
        delivery = event.delivery
        with self._counting:
            self._inbox_bytes -= _cost_bytes(delivery.topic, delivery.payload)
        self.bytes_in += packet_bytes(delivery.topic, delivery.payload)
        if event.connection == self._connection:
            self._client.ack(event.packet_id, event.qos)
        return delivery

    def interrupt(self) -> None:
        """Let `receive` return None now, or the next time that it would wait."""
        self._inbox.put(None)

    def close(self, *, linger_s: float = 2.0) -> None:
        """Disconnect, once the outbox was acknowledged or `linger_s` has passed. The will is not sent."""
        if self._closed.is_set():
            return
        until = time.monotonic() + linger_s
        while self._is_connected and self._outbox_bytes and time.monotonic() < until:
            time.sleep(0.01)
        self._closed.set()
        self._client.disconnect()
        self._client.loop_stop()
        self._inbox.put(None)

    def _client_of(
        self,
        *,
        client_id: str,
        username: str,
        password: str | Callable[[], str],
        will: tuple[str, bytes] | None,
        keepalive_s: int,
        clean_session: bool,
        tls: ssl.SSLContext | None,
        certificate_file: Path | None,
        retry_max_s: int,
    ) -> paho.Client:
        """Return a client of paho's that connects on a thread of its own."""
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=clean_session,
            protocol=paho.MQTTv311,
            manual_ack=True,
        )

        def prepare(renewed: paho.Client, _userdata: object) -> None:
            renewed.username_pw_set(username, password if isinstance(password, str) else password())
            if tls is not None and certificate_file is not None:
                try:
                    show_certificate(tls, certificate_file)
                except LinkInvalid as exc:  # an exception would end paho's thread; it shows the one before
                    _LOG.warning("%s", exc)

        client.on_pre_connect = prepare
        if tls is not None:
            client.tls_set_context(tls)
        if will is not None:
            client.will_set(will[0], will[1], qos=1, retain=True)
        client.max_inflight_messages_set(self._window)
        client.reconnect_delay_set(1, retry_max_s)
        client.connect_timeout = ANSWER_S
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.connect_async(*self._address, keepalive_s)
        client.loop_start()
        return client

    def _pump(self) -> None:
        """Pass messages to paho as far as its window has room. Both threads call this; the second returns at once.

        The network thread calls this while it holds a lock of paho's that `publish` needs, so it must not wait.
        """
        while self._acknowledged or (self._outbox and len(self._flying) < self._window):
            if not self._pumping.acquire(blocking=False):
                return
            try:
                while self._acknowledged:
                    self._on_acknowledged(self._acknowledged.popleft())
                while self._outbox and len(self._flying) < self._window:
                    topic, payload, retain = self._outbox.popleft()
                    info = self._client.publish(topic, payload, qos=1, retain=retain)
                    self._flying[info.mid] = (topic, payload, retain)
            finally:
                self._pumping.release()

    def _on_acknowledged(self, packet_id: int) -> None:
        if (message := self._flying.pop(packet_id, None)) is not None:
            self._forget(message)

    def _forget(self, message: tuple[str, bytes, bool]) -> None:
        topic, payload, _ = message
        with self._counting:
            self._outbox_bytes -= _cost_bytes(topic, payload)
            self.bytes_acknowledged += packet_bytes(topic, payload)

    def _drop_large(self, size_bytes: int) -> None:
        """Go on with another client, to which the messages that are too large were never given."""
        self._client.disconnect()
        self._client.loop_stop()
        with self._pumping:
            most_bytes = max(SMALL_BYTES, size_bytes // 2)
            waiting = [*self._flying.values(), *self._outbox]
            self._flying.clear()
            self._acknowledged.clear()
            self._outbox = deque(message for message in waiting if len(message[1]) <= most_bytes)
            for message in waiting:
                if len(message[1]) > most_bytes:
                    self._forget(message)
            self._cut_on, self._cuts = None, 0
        if not self._closed.is_set():
            self._client = self._make()
            self._pump()

    def _too_large_bytes(self) -> int | None:
        """Return the size of the message on which connections end again and again, if there is one."""
        flying = list(self._flying.values())  # at once, for another thread publishes
        oldest = next((message for message in flying if len(message[1]) > SMALL_BYTES), None)
        if oldest is None:
            self._cut_on, self._cuts = None, 0
            return None
        self._cuts = self._cuts + 1 if oldest is self._cut_on else 1
        self._cut_on = oldest
        return len(oldest[1]) if self._cuts >= CUTS else None

    def _take_next_address(self, client: paho.Client) -> None:
        """Let the next attempt go to another node of a cluster."""
        if self._where.is_cluster:
            at = self._where.addresses.index(self._address) + 1
            self._address = self._where.addresses[at % len(self._where.addresses)]
            client.connect_async(*self._address, client.keepalive)

    def _on_socket_open(self, _client: paho.Client, _userdata: object, sock: "paho.SocketLike") -> None:
        # Without this a small packet waits until the other end has confirmed the one before it, often 40 ms.
        cast("socket.socket", sock).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._is_answered = False

    def _on_connect(
        self,
        client: paho.Client,
        _userdata: object,
        _flags: paho.ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._is_answered = True
        if reason.is_failure:
            # "Server unavailable" and the like pass; a token, a name or a protocol that was refused stays refused.
            self._refused = str(reason) not in {"Server unavailable", "Server busy"}
            self._report_disconnected(f"the broker refused the connection: {reason}")
            if self._refused:
                client.disconnect()
            return
        self._connection += 1
        self._is_connected = True
        self._reported.clear()
        if filters := list(self._filters):
            client.subscribe([(topic_filter, 1) for topic_filter in filters])
        self._inbox.put(Connected())

    def _on_connect_fail(self, client: paho.Client, _userdata: object) -> None:
        today = dt.datetime.now().astimezone().date()
        # paho calls this while it handles what the attempt has raised.
        fault = connection_fault(sys.exc_info()[1], *self._address, today, self._ends)
        self._report_disconnected(fault)
        self._take_next_address(client)

    def _on_disconnect(
        self,
        client: paho.Client,
        _userdata: object,
        _flags: paho.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        was_connected, self._is_connected = self._is_connected, False
        if self._closed.is_set() or self._refused:
            return
        if was_connected:
            self._report_disconnected(f"the connection was lost: {reason}", self._too_large_bytes())
        elif not self._is_answered:
            self._report_disconnected(cut_short(*self._address, is_tls=self._where.tls, ends=self._ends))
        if reason.is_failure:  # and not our own wish
            self._take_next_address(client)

    def _report_disconnected(self, reason: str, too_large_bytes: int | None = None) -> None:
        """Report each reason once, however many attempts fail by it; but always a refusal, which is the last event."""
        if reason not in self._reported or self._refused:
            self._reported.add(reason)
            self._inbox.put(Disconnected(reason, refused=self._refused, too_large_bytes=too_large_bytes))

    def _on_message(self, client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        payload = bytes(message.payload)
        try:
            delivery = Delivery(message.topic, payload)
        except UnicodeDecodeError:  # an exception would end paho's thread
            delivery = None
        if delivery is not None and len(payload) <= self._max_payload_bytes:
            cost = _cost_bytes(delivery.topic, payload)
            with self._counting:
                has_room = self._inbox_bytes + cost <= self._inbox_limit_bytes
                if has_room:
                    self._inbox_bytes += cost
            if has_room:
                self._inbox.put(_Arrived(delivery, message.mid, message.qos, self._connection))
                return
        self.dropped += 1
        _LOG.warning("%s: dropped a message of %d bytes that is over a limit or malformed", self._name, len(payload))
        client.ack(message.mid, message.qos)

    def _on_publish(
        self,
        _client: paho.Client,
        _userdata: object,
        packet_id: int,
        _reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._acknowledged.append(packet_id)
        self._pump()

    def _on_subscribe(
        self,
        _client: paho.Client,
        _userdata: object,
        _packet_id: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            _LOG.warning("%s: the broker refused a subscription", self._name)


def _cost_bytes(topic: str, payload: bytes) -> int:
    return len(topic) + len(payload) + _OVERHEAD_BYTES
