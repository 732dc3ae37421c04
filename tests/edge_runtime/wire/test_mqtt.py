"""MqttLink against a scripted broker, which says exactly what the test says, and against Mosquitto."""

import shutil
import socket
import subprocess
import threading
import time

import pytest

from edge_runtime.wire.broker_url import BrokerUrl, LinkInvalid
from edge_runtime.wire.link import Connected, Delivery, Disconnected, LinkFull, packet_bytes
from edge_runtime.wire.mqtt import CUTS, MqttLink

pytestmark = pytest.mark.process

PATIENCE_S = 30.0
ACCEPT = b"\x20\x02\x00\x00"
CONNECT, PUBLISH, PUBACK, SUBSCRIBE, DISCONNECT = 0x10, 0x30, 0x40, 0x80, 0xE0
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


class ScriptedBroker:
    """Accepts connections one after another; the test reads and writes each packet."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(PATIENCE_S)
        self.url = f"mqtt://127.0.0.1:{self.listener.getsockname()[1]}"
        self.sock = None

    def accept(self, answer=ACCEPT):
        """Take the next connection and answer its CONNECT, whose body is returned."""
        self.hang_up()
        self.sock, _ = self.listener.accept()
        self.sock.settimeout(PATIENCE_S)
        body = self.expect(CONNECT)
        self.sock.sendall(answer)
        return body

    def packet(self):
        first = self.take(1)[0]
        length = shift = 0
        while True:
            byte = self.take(1)[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return first, self.take(length)

    def take(self, count):
        data = b""
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            assert part, "the link hung up"
            data += part
        return data

    def expect(self, kind):
        first, body = self.packet()
        assert first & 0xF0 == kind, hex(first)
        return body

    def publish(self, topic, payload, packet_id):
        rest = len(topic).to_bytes(2, "big") + topic + packet_id.to_bytes(2, "big") + payload
        assert len(rest) < 128
        self.sock.sendall(bytes((0x32, len(rest))) + rest)

    def acknowledge(self, body):
        """Answer a PUBLISH at QoS 1; its payload is returned."""
        start = 2 + int.from_bytes(body[:2], "big")
        self.sock.sendall(b"\x40\x02" + body[start : start + 2])
        return body[start + 2 :]

    def hang_up(self):
        if self.sock is not None:
            self.sock.close()
            self.sock = None


@pytest.fixture
def broker():
    scripted = ScriptedBroker()
    yield scripted
    scripted.hang_up()
    scripted.listener.close()


@pytest.fixture
def make_link():
    links = []

    def make(url, **options):
        fields = {"client_id": "dev1", "username": "dev1", "password": "geheim", **options}
        links.append(MqttLink(url, **fields))
        return links[-1]

    yield make
    for link in links:
        link.close(linger_s=0)


@pytest.fixture
def linked(broker, make_link):
    """A link that is connected to the scripted broker."""
    link = make_link(broker.url)
    broker.accept()
    assert link.receive(PATIENCE_S) == Connected()
    return link


def until(is_so):
    until_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < until_s, "did not happen in time"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://broker", BrokerUrl((("broker", 1883),), False)),
        ("mqtts://broker/", BrokerUrl((("broker", 8883),), True)),
        ("mqtt://10.0.0.7:99", BrokerUrl((("10.0.0.7", 99),), False)),
        ("mqtt://[::1]:99", BrokerUrl((("::1", 99),), False)),
        ("mqtts://a,b:99,[::1]", BrokerUrl((("a", 8883), ("b", 99), ("::1", 8883)), True)),
    ],
)
def test_broker_url_is_taken_apart(url, expected):
    assert BrokerUrl.parse(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "broker:1883",
        "http://broker",
        "mqtt://",
        "mqtt://b:0",
        "mqtt://b:x",
        "mqtt://b:70000",
        "mqtt://b/x",
        "mqtt://a,",
        "mqtt://a,b:x",
        "mqtt://[b",
    ],
)
def test_broker_url_that_is_none_is_refused_with_an_example(url):
    with pytest.raises(LinkInvalid, match=r"mqtt://host:1883"):
        BrokerUrl.parse(url)


def test_broker_url_with_a_password_is_refused_without_repeating_it():
    with pytest.raises(LinkInvalid) as caught:
        BrokerUrl.parse("mqtt://me:geheim@broker")
    assert "geheim" not in str(caught.value)


def test_link_with_a_ca_file_that_is_none_is_refused(make_link, tmp_path):
    bad = tmp_path / "ca.pem"
    bad.write_text("no certificate")
    for path in (bad, tmp_path / "missing.pem"):
        with pytest.raises(LinkInvalid, match=path.name):
            make_link("mqtts://127.0.0.1:1", ca_file=path)


def test_link_sends_its_identity_and_leaves_a_will(broker, make_link):
    link = make_link(broker.url, will=("w", b"gone"), keepalive_s=7)
    body = broker.accept()
    # flags: user name, password, will retained at QoS 1, session kept
    assert body[:10] == b"\x00\x04MQTT\x04\xec\x00\x07"
    assert body[10:] == b"\x00\x04dev1\x00\x01w\x00\x04gone\x00\x04dev1\x00\x06geheim"
    assert "geheim" not in repr(link)


def test_link_publishes_at_qos_1_and_counts(broker, linked):
    linked.publish("t", b"x", retain=True)
    first, body = broker.packet()
    assert first == 0x33
    assert linked.queued_bytes > 0
    assert broker.acknowledge(body) == b"x"
    until(lambda: linked.queued_bytes == 0)
    assert linked.bytes_out == packet_bytes("t", b"x") == 2 + len(body)


@pytest.mark.parametrize("topic", ["", "a/+", "a/#"])
def test_link_refuses_to_publish_to_what_is_no_topic(linked, topic):
    with pytest.raises(ValueError, match="not a topic"):
        linked.publish(topic, b"")


def test_link_acknowledges_a_message_when_it_is_received(broker, linked):
    broker.publish(b"t", b"1", 1)
    broker.publish(b"t", b"2", 2)
    broker.sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        broker.packet()
    broker.sock.settimeout(PATIENCE_S)
    assert linked.receive(PATIENCE_S) == Delivery("t", b"1")
    assert broker.expect(PUBACK) == b"\x00\x01"
    assert linked.receive(PATIENCE_S) == Delivery("t", b"2")
    assert broker.expect(PUBACK) == b"\x00\x02"
    assert linked.bytes_in == 2 * packet_bytes("t", b"1")


def test_link_that_waits_can_be_interrupted(linked):
    threading.Timer(0.1, linked.interrupt).start()
    assert linked.receive(PATIENCE_S) is None
    linked.interrupt()  # remembered until the next wait
    assert linked.receive(None) is None


def test_link_does_not_acknowledge_on_the_next_connection(broker, linked):
    broker.publish(b"t", b"1", 1)
    until(lambda: linked._inbox_bytes)
    broker.accept()
    until(lambda: linked._connection == 2)
    assert linked.receive(PATIENCE_S) == Delivery("t", b"1")
    linked.subscribe("a")
    broker.expect(SUBSCRIBE)  # and no PUBACK before it


def test_link_renews_its_subscriptions(broker, linked):
    linked.subscribe("a", "b")
    assert broker.expect(SUBSCRIBE)[2:] == b"\x00\x01a\x01\x00\x01b\x01"
    broker.hang_up()
    event = linked.receive(PATIENCE_S)
    assert isinstance(event, Disconnected)
    assert not event.refused
    linked.subscribe("c")
    broker.accept()
    assert broker.expect(SUBSCRIBE)[2:] == b"\x00\x01a\x01\x00\x01b\x01\x00\x01c\x01"
    assert linked.receive(PATIENCE_S) == Connected()


def test_link_takes_the_next_address_of_a_cluster(broker, make_link):
    link = make_link(f"mqtt://127.0.0.1:1,{broker.url.removeprefix('mqtt://')}")
    away = link.receive(PATIENCE_S)
    assert isinstance(away, Disconnected)
    assert "nothing listens at 127.0.0.1:" in away.reason
    broker.accept()
    assert link.receive(PATIENCE_S) == Connected()
    broker.hang_up()
    assert isinstance(link.receive(PATIENCE_S), Disconnected)
    broker.accept()


def test_link_warns_of_a_subscription_that_was_refused(broker, linked, caplog):
    for code in (b"\x01", b"\x80"):
        linked.subscribe("a")
        packet_id = broker.expect(SUBSCRIBE)[:2]
        broker.sock.sendall(b"\x90\x03" + packet_id + code)
    until(lambda: "refused a subscription" in caplog.text)
    assert len(caplog.records) == 1


def test_link_queues_what_is_published_before_it_is_connected(broker, make_link):
    link = make_link(broker.url)
    for at in range(3):
        link.publish("t", str(at).encode())
    broker.accept()
    payloads = [broker.acknowledge(broker.expect(PUBLISH)) for _ in range(3)]
    assert payloads == [b"0", b"1", b"2"]


def test_link_sends_again_after_a_reconnect_what_was_not_acknowledged(broker, linked):
    linked.publish("t", b"1")
    broker.expect(PUBLISH)
    broker.hang_up()
    broker.accept()
    first, body = broker.packet()
    assert first == 0x3A  # DUP
    assert broker.acknowledge(body) == b"1"


def test_link_never_has_more_in_flight_than_its_window_even_after_a_reconnect(broker, make_link):
    link = make_link(broker.url, window=3)
    for at in range(10):
        link.publish("t", str(at).encode())
    for _ in range(2):
        broker.accept()
        bodies = [broker.expect(PUBLISH) for _ in range(3)]
        broker.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            broker.packet()
        broker.sock.settimeout(PATIENCE_S)
    seen = [broker.acknowledge(body) for body in bodies]
    seen += [broker.acknowledge(broker.expect(PUBLISH)) for _ in range(7)]
    assert seen == [str(at).encode() for at in range(10)]


def test_link_whose_outbox_is_full_raises_and_accepts_more_later(broker, make_link):
    link = make_link(broker.url, outbox_bytes=3000)
    link.publish("t", bytes(1000))
    with pytest.raises(LinkFull, match="3000 allowed"):
        link.publish("t", bytes(1000))
    assert link.bytes_out == packet_bytes("t", bytes(1000))
    broker.accept()
    broker.acknowledge(broker.expect(PUBLISH))
    until(lambda: link.queued_bytes == 0)
    link.publish("t", bytes(1000))


def test_message_on_which_connections_end_again_and_again_is_dropped_and_named(broker, make_link):
    link = make_link(broker.url)
    link.publish("big", bytes(200_000))
    link.publish("half", bytes(150_000))
    link.publish("after", b"small")
    reasons = []
    for _ in range(CUTS):
        broker.accept()
        assert link.receive(PATIENCE_S) == Connected()
        broker.expect(PUBLISH)  # and no acknowledgement: the broker hangs up
        broker.hang_up()
        reasons.append(link.receive(PATIENCE_S))
    assert [event.too_large_bytes for event in reasons] == [None] * (CUTS - 1) + [200_000]
    broker.accept()
    assert link.receive(PATIENCE_S) == Connected()
    assert broker.acknowledge(broker.expect(PUBLISH)) == b"small"
    until(lambda: link.bytes_acknowledged == link.bytes_out)


def test_link_that_is_cut_on_small_messages_drops_none(broker, make_link):
    link = make_link(broker.url)
    link.publish("t", b"small")
    for _ in range(CUTS + 1):
        broker.accept()
        assert link.receive(PATIENCE_S) == Connected()
        broker.expect(PUBLISH)
        broker.hang_up()
        assert link.receive(PATIENCE_S).too_large_bytes is None
    broker.accept()
    assert broker.acknowledge(broker.expect(PUBLISH)) == b"small"


def test_link_drops_and_acknowledges_what_is_too_large_or_has_no_room(broker, make_link):
    link = make_link(broker.url, max_payload_bytes=10, inbox_bytes=600)
    broker.accept()
    assert link.receive(PATIENCE_S) == Connected()
    broker.publish(b"t", b"x" * 11, 1)
    assert broker.expect(PUBACK) == b"\x00\x01"
    broker.publish(b"\xff", b"x", 2)
    assert broker.expect(PUBACK) == b"\x00\x02"
    broker.publish(b"t", b"fits", 3)
    broker.publish(b"t", b"does not", 4)
    assert broker.expect(PUBACK) == b"\x00\x04"
    assert link.receive(PATIENCE_S) == Delivery("t", b"fits")
    assert link.dropped == 3


@pytest.mark.parametrize("code", [2, 4, 5])
def test_link_that_is_refused_reports_it_and_does_not_try_again(broker, make_link, code):
    link = make_link(broker.url)
    broker.accept(bytes((0x20, 2, 0, code)))
    event = link.receive(PATIENCE_S)
    assert isinstance(event, Disconnected)
    assert event.refused
    assert "geheim" not in event.reason
    broker.listener.settimeout(1.5)
    with pytest.raises(TimeoutError):
        broker.listener.accept()
    assert link.receive(0) is None


def test_link_tries_again_when_the_broker_is_only_busy(broker, make_link):
    link = make_link(broker.url)
    broker.accept(b"\x20\x02\x00\x03")
    event = link.receive(PATIENCE_S)
    assert isinstance(event, Disconnected)
    assert not event.refused
    broker.accept()
    assert link.receive(PATIENCE_S) == Connected()


def test_link_refused_after_a_lost_connection_reports_both(broker, linked):
    broker.hang_up()
    assert linked.receive(PATIENCE_S).refused is False
    broker.accept(b"\x20\x02\x00\x05")
    assert linked.receive(PATIENCE_S).refused is True


def test_link_without_a_broker_reports_it_once_and_connects_when_there_is_one(make_link):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    link = make_link(f"mqtt://127.0.0.1:{port}", retry_max_s=1)
    fault = f"nothing listens at 127.0.0.1:{port}: is the server running, and the port right?"
    assert link.receive(PATIENCE_S) == Disconnected(fault, refused=False)
    assert link.receive(1.5) is None


def test_link_closed_disconnects_after_its_outbox(broker, linked):
    linked.publish("t", b"last")
    closing = threading.Thread(target=linked.close)
    closing.start()
    assert broker.acknowledge(broker.expect(PUBLISH)) == b"last"
    broker.expect(DISCONNECT)
    closing.join(PATIENCE_S)
    assert linked.receive(None) is None
    assert linked.receive(None) is None
    linked.close()


def test_link_closed_while_offline_does_not_linger(make_link):
    link = make_link("mqtt://127.0.0.1:1")
    link.publish("t", b"x")
    link.close()
    event = link.receive(0)
    assert event is None or "nothing listens at 127.0.0.1:1" in event.reason


@pytest.fixture
def mosquitto(tmp_path):
    """The URL of a real Mosquitto that lets anyone in."""
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    process = subprocess.Popen([MOSQUITTO, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield f"mqtt://127.0.0.1:{port}"
    process.terminate()
    process.wait(PATIENCE_S)


def next_delivery(link):
    while not isinstance(event := link.receive(PATIENCE_S), Delivery):
        assert event is not None
    return event


def test_link_speaks_with_mosquitto(mosquitto, make_link):
    sender = make_link(mosquitto, client_id="sender", will=("status/sender", b"gone"))
    sender.publish("status/sender", b"here", retain=True)
    until(lambda: sender.queued_bytes == 0)
    receiver = make_link(mosquitto, client_id="receiver")
    receiver.subscribe("status/+", "chunks/#")
    assert next_delivery(receiver) == Delivery("status/sender", b"here")
    chunk = bytes(256 << 10)
    for at in range(40):
        sender.publish(f"chunks/{at}", chunk)
    for at in range(40):
        assert next_delivery(receiver) == Delivery(f"chunks/{at}", chunk)
    assert sender.bytes_out == receiver.bytes_in
