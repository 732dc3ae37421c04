import resource
import shutil
import socket
import ssl
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from broker_server.mqtt.broker import BrokerNotStarted, EmbeddedBroker, _room_for
from broker_server.mqtt.codec import encode
from broker_server.mqtt.limits import Limits
from broker_server.mqtt.packets import Connect, Disconnect, Pingreq, Puback, Publish, Subscribe, Will
from edge_runtime.wire.link import Connected, Delivery, Disconnected, LinkFull

pytestmark = pytest.mark.process
PATIENCE_S = 30.0
DIGEST = "d" * 64


def received(sock, size):
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            break
        data += part
    return data


def is_closed_by_peer(sock):
    try:
        while sock.recv(65536):
            pass
    except ConnectionError:
        pass
    return True  # a timeout would have raised


def connected(site, name, *, receive_bytes=None, **fields):
    """A raw connection as device `name`, accepted."""
    packet = Connect(client_id=name, username=name, password=site.token(name).encode(), **fields)
    sock = site.raw(encode(packet), receive_bytes=receive_bytes)
    assert received(sock, 4) == b"\x20\x02\x00\x00"
    return sock


def test_messages_go_both_ways_and_bytes_are_counted_alike(site):
    server = site.local(*site.topics.from_devices())
    device = site.device("dev1")
    device.subscribe(site.topics.command("dev1"))
    device.publish(site.topics.event("dev1"), b"up")
    assert server.receive(PATIENCE_S) == Delivery(site.topics.event("dev1"), b"up")
    server.publish(site.topics.command("dev1"), b"down")
    assert device.receive(PATIENCE_S) == Delivery(site.topics.command("dev1"), b"down")
    assert (device.bytes_out, device.bytes_in) == (server.bytes_in, server.bytes_out)


def test_retained_status_reaches_who_comes_later(site):
    device = site.device("dev1")
    device.publish(site.topics.status("dev1"), b"here", retain=True)
    first = site.local(site.topics.from_devices()[0])
    assert first.receive(PATIENCE_S) == Delivery(site.topics.status("dev1"), b"here")
    assert site.local(site.topics.from_devices()[0]).receive(PATIENCE_S).payload == b"here"


def test_will_is_sent_when_the_socket_is_killed_and_not_after_goodbye(site):
    server = site.local(site.topics.from_devices()[0])
    will = Will(site.topics.status("dev1"), b"gone", 1, True)
    sock = connected(site, "dev1", will=will)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, as a kill does
    sock.close()
    assert server.receive(PATIENCE_S) == Delivery(site.topics.status("dev1"), b"gone")
    polite = connected(site, "dev1", will=will)
    polite.sendall(encode(Disconnect()))
    assert is_closed_by_peer(polite)
    link = site.device("dev2", will=(site.topics.status("dev2"), b"gone too"))
    link.close()
    assert server.receive(0.5) is None


def test_silent_client_is_closed_after_its_keepalive_and_its_will_sent(site):
    server = site.local(site.topics.from_devices()[0])
    sock = connected(site, "dev1", keepalive_s=1, will=Will(site.topics.status("dev1"), b"gone", 0, False))
    assert server.receive(PATIENCE_S).payload == b"gone"
    assert is_closed_by_peer(sock)
    assert site.broker.stats.closed["keepalive"] == 1


def test_connection_without_connect_is_closed_in_time(make_site):
    site = make_site(limits=Limits(connect_timeout_s=0.2))
    assert is_closed_by_peer(site.raw(b"\x10"))
    assert site.broker.stats.closed == {"connect-timeout": 1}


def test_message_not_acknowledged_comes_again_after_a_reconnect(site):
    server = site.local()
    command = site.topics.command("dev1")
    sock = connected(site, "dev1", clean_session=False)
    sock.sendall(encode(Subscribe(1, ((command, 1),))))
    assert received(sock, 5)[0] == 0x90
    server.publish(command, b"first")
    wanted = encode(Publish(topic=command, payload=b"first", qos=1, packet_id=1))
    assert received(sock, len(wanted)) == wanted
    sock.close()
    server.publish(command, b"second")
    again = site.device("dev1")
    assert [again.receive(PATIENCE_S).payload for _ in range(2)] == [b"first", b"second"]


def test_link_that_lost_its_socket_reconnects_and_its_subscriptions_go_on(site, until):
    server = site.local(site.topics.from_devices()[1])
    device = site.device("dev1", clean_session=True)
    device.subscribe(site.topics.command("dev1"))
    thief = connected(site, "dev1")  # a take-over is a lost socket to the one before
    thief.sendall(encode(Disconnect()))
    assert isinstance(device.receive(PATIENCE_S), Disconnected)
    device.publish(site.topics.event("dev1"), b"said while away")
    assert device.receive(PATIENCE_S) == Connected()
    assert server.receive(PATIENCE_S).payload == b"said while away"
    server.publish(site.topics.command("dev1"), b"heard")
    assert device.receive(PATIENCE_S).payload == b"heard"
    assert site.broker.stats.closed["taken-over"] == 1


@pytest.mark.parametrize("kind", ["garbage", "expired", "foreign", "of another device", "of another user"])
def test_link_with_a_bad_token_is_told_that_it_is_refused_and_the_victim_notices_nothing(site, kind):
    victim = site.device("dev1")
    victim.subscribe(site.topics.command("dev1"))
    token = {
        "garbage": "garbage",
        "expired": site.token("dev1", lifetime_s=-10),
        "foreign": site.token("dev1", federation="other"),
        "of another device": site.token("dev2"),
        "of another user": site.token("dev1"),
    }[kind]
    username = "dev2" if kind == "of another user" else "dev1"
    attacker = site.device("dev1", token=token, wait=False, username=username)
    event = attacker.receive(PATIENCE_S)
    assert isinstance(event, Disconnected)
    assert event.refused
    assert token not in repr(attacker)
    assert attacker.receive(1.5) is None  # it does not try again
    site.local().publish(site.topics.command("dev1"), b"still here")
    assert victim.receive(PATIENCE_S).payload == b"still here"
    assert site.broker.stats.refused == {"token": 1}


def test_link_whose_token_runs_out_is_disconnected_and_then_refused(site):
    device = site.device("dev1", token=site.token("dev1", lifetime_s=3))
    first = device.receive(PATIENCE_S)
    assert isinstance(first, Disconnected)
    assert not first.refused
    second = device.receive(PATIENCE_S)
    assert isinstance(second, Disconnected)
    assert second.refused
    assert site.broker.stats.closed["token-expired"] == 1


def test_other_devices_topics_are_out_of_reach(site, until):
    server = site.local(*site.topics.from_devices())
    device = site.device("dev1")
    device.subscribe(site.topics.command("dev2"), "#")
    until(lambda: site.broker.stats.refused["subscribe"] == 2)
    server.publish(site.topics.command("dev2"), b"for dev2")
    assert device.receive(0.3) is None
    device.publish(site.topics.status("dev2"), b"dev2 is here", retain=True)
    until(lambda: site.broker.stats.refused["publish"] == 1)
    assert isinstance(device.receive(PATIENCE_S), Disconnected)
    assert device.receive(PATIENCE_S) == Connected()
    device.publish(site.topics.event("dev1"), b"from dev1")
    assert server.receive(PATIENCE_S).payload == b"from dev1"
    assert site.broker.stats.refused["publish"] == 1  # it was acknowledged, so not sent again


def test_oversized_message_closes_the_connection_and_nothing_else(site):
    other = site.device("dev2")
    sock = connected(site, "dev1")
    sock.sendall(b"\x30\xff\xff\xff\x7f")
    assert is_closed_by_peer(sock)
    assert site.broker.stats.malformed == {"oversize": 1}
    other.publish(site.topics.event("dev2"), b"x")


def test_connect_that_is_oversized_is_refused_before_anybody_is_known(site):
    sock = site.raw(b"\x10\xff\xff\x3f")
    assert is_closed_by_peer(sock)
    assert site.broker.stats.malformed == {"oversize": 1}


def test_publish_may_follow_its_connect_without_waiting(site):
    server = site.local(site.topics.from_devices()[1])
    connect = Connect(client_id="dev1", username="dev1", password=site.token("dev1").encode())
    payload = bytes(100_000)  # more than may come before one is known
    site.raw(encode(connect) + encode(Publish(topic=site.topics.event("dev1"), payload=payload)))
    assert server.receive(PATIENCE_S).payload == payload


def test_slow_subscriber_holds_the_publisher_back_in_bounded_memory_and_is_cut_off(make_site, until):
    site = make_site(limits=Limits(queue_bytes=4 << 20, stall_s=3))
    server = site.local(outbox_bytes=8 << 20)
    slow = connected(site, "slow", clean_session=True)
    slow.sendall(encode(Subscribe(1, ((site.topics.to_device("slow")[2], 1),))))
    assert received(slow, 5)[0] == 0x90
    fine = site.device("fine")
    fine.subscribe(*site.topics.to_device("fine"))
    chunk = bytes(256 << 10)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    accepted, refusals, got = 0, 0, 0
    while got < 400:  # 100 MiB past a client that reads nothing
        try:
            server.publish(site.topics.download("slow", DIGEST, accepted), chunk)
            server.publish(site.topics.download("fine", DIGEST, accepted), chunk)
            accepted += 1
        except LinkFull:
            refusals += 1
            event = fine.receive(0.05)
            got += isinstance(event, Delivery)
    assert refusals
    assert site.broker.stats.closed["slow"] == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 64 << 10


@pytest.mark.slow
def test_client_that_asks_and_never_reads_is_cut_off(make_site):
    site = make_site(limits=Limits(packet_bytes=4096, write_bytes=16384))
    sock = connected(site, "dev1", receive_bytes=4096)
    with pytest.raises(ConnectionError):
        sock.sendall(encode(Pingreq()) * 10_000_000)
    assert site.broker.stats.closed == {"slow": 1}


def test_twenty_clients_at_once_each_get_their_own(site):
    server = site.local(*site.topics.from_devices())

    def one(name):
        device = site.device(name)
        device.subscribe(site.topics.command(name))
        for at in range(20):
            device.publish(site.topics.event(name), f"{name} {at}".encode())
        return [device.receive(PATIENCE_S) for _ in range(20)]

    names = [f"dev{at}" for at in range(20)]
    with ThreadPoolExecutor(20) as pool:
        results = {name: pool.submit(one, name) for name in names}
        for _ in range(400):
            event = server.receive(PATIENCE_S)
            assert event is not None, [each.exception() for each in results.values() if each.done()]
            name, at = event.payload.decode().split()
            server.publish(site.topics.command(name), at.encode())
        for name in names:
            assert [event.payload for event in results[name].result()] == [str(at).encode() for at in range(20)]


def test_start_moves_around_a_port_in_use_and_says_which_it_took(make_site):
    first = make_site()
    second = EmbeddedBroker(first.broker._hub._authorizer)
    with pytest.raises(BrokerNotStarted, match=f"port {first.port} is in use"):
        second.start("127.0.0.1", first.port)
    port = second.start("127.0.0.1", first.port, search=50)
    try:
        assert first.port < port <= first.port + 50
    finally:
        second.stop()
    second.stop()


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 70_000), ("127.0.0.1", -1), ("no.such.host.invalid", 0), ("192.0.2.1", 0)]
)
def test_start_where_it_cannot_listen_says_so(site, host, port):
    with pytest.raises(BrokerNotStarted, match="cannot listen"):
        EmbeddedBroker(site.broker._hub._authorizer).start(host, port)


def test_link_of_a_broker_that_does_not_run_is_refused(site):
    with pytest.raises(BrokerNotStarted):
        EmbeddedBroker(site.broker._hub._authorizer).link()


def test_stop_lets_clients_have_what_is_queued_first(make_site):
    site = make_site()
    server = site.local(*site.topics.from_devices())
    device = site.device("dev1")
    device.subscribe(site.topics.command("dev1"))
    sock = connected(site, "dev2")  # one that gets nothing and stays
    device.publish(site.topics.event("dev1"), b"x")
    assert server.receive(PATIENCE_S).payload == b"x"  # so the subscription, which came before it, stands
    for at in range(100):
        server.publish(site.topics.command("dev1"), str(at).encode())
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(site.broker.stop, linger_s=PATIENCE_S)
        assert [device.receive(PATIENCE_S).payload for _ in range(100)] == [str(at).encode() for at in range(100)]
        stopping.result()
    assert is_closed_by_peer(sock)
    assert isinstance(device.receive(PATIENCE_S), Disconnected)
    assert server.receive(0) == Disconnected("the broker has stopped", refused=False)


@pytest.fixture
def certificate(tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    what = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=broker"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:TRUE"]
    out = ["-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run(["openssl", "req", *what, *names, *out], check=True, capture_output=True)
    return files


@pytest.mark.process
def test_tls_carries_messages_to_who_trusts_the_certificate(make_site, certificate):
    site = make_site(certificate_file=certificate[0], key_file=certificate[1])
    server = site.local(*site.topics.from_devices())
    device = site.device("dev1", scheme="mqtts", ca_file=certificate[0])
    payload = bytes(300_000)
    device.publish(site.topics.upload("dev1", DIGEST, 0), payload)
    assert server.receive(PATIENCE_S).payload == payload
    stranger = site.device("dev2", scheme="mqtts", wait=False)
    event = stranger.receive(PATIENCE_S)
    assert not event.refused
    assert event.reason.startswith("the server's certificate is of a CA that this board does not trust")
    plain = site.raw(encode(Connect(client_id="dev3")))
    assert is_closed_by_peer(plain)


def test_tls_with_files_that_are_no_certificate_says_so(tmp_path, site):
    bad = tmp_path / "cert.pem"
    bad.write_text("no")
    with pytest.raises(BrokerNotStarted, match=r"cert\.pem"):
        EmbeddedBroker(site.broker._hub._authorizer, certificate_file=bad)
    with pytest.raises(BrokerNotStarted, match="missing"):
        EmbeddedBroker(site.broker._hub._authorizer, certificate_file=tmp_path / "missing")
    assert issubclass(ssl.SSLError, OSError)


def mosquitto_client(kind, site, name, *arguments):
    program = shutil.which(f"mosquitto_{kind}")
    if program is None:
        pytest.skip("mosquitto-clients is not installed")
    who = ["-i", name, "-u", name, "-P", site.token(name)]
    return [program, "-h", "127.0.0.1", "-p", str(site.port), *who, *arguments]


def test_mosquitto_pub_and_sub_are_served(site):
    server = site.local(*site.topics.from_devices())
    topic = site.topics.command("dev1")
    server.publish(topic, b"hello", retain=True)
    get = mosquitto_client("sub", site, "dev1", "-t", topic, "-q", "1", "-C", "1", "-W", "30")
    assert subprocess.run(get, check=True, capture_output=True).stdout == b"hello\n"
    put = mosquitto_client("pub", site, "dev1", "-t", site.topics.event("dev1"), "-q", "1", "-m", "hi")
    subprocess.run(put, check=True, capture_output=True)
    assert server.receive(PATIENCE_S) == Delivery(site.topics.event("dev1"), b"hi")


def test_mosquitto_pub_with_another_devices_name_is_refused(site):
    put = mosquitto_client("pub", site, "dev1", "-t", site.topics.event("dev1"), "-m", "hi")
    put[put.index("-i") + 1] = "dev2"
    assert subprocess.run(put, check=False, capture_output=True).returncode != 0
    assert site.broker.stats.refused == {"token": 1}


def test_puback_out_of_nowhere_is_let_be(site):
    sock = connected(site, "dev1")
    sock.sendall(encode(Puback(99)) + encode(Pingreq()))
    assert received(sock, 2) == b"\xd0\x00"


def test_client_that_reads_late_still_gets_everything(site, until):
    server = site.local()
    chunk = bytes(256 << 10)
    sock = connected(site, "dev1", receive_bytes=4096)
    sock.sendall(encode(Subscribe(1, ((site.topics.to_device("dev1")[2], 0),))))
    assert received(sock, 5)[0] == 0x90
    topics = [site.topics.download("dev1", DIGEST, at) for at in range(12)]
    for topic in topics:
        server.publish(topic, chunk)
    until(lambda: site.broker.stats.bytes_out > 1 << 20)
    wanted = b"".join(encode(Publish(topic=topic, payload=chunk)) for topic in topics)
    assert received(sock, len(wanted)) == wanted
    assert site.broker.stats.dropped == {}


def test_stop_does_not_wait_for_a_client_that_does_not_read(site):
    server = site.local()
    sock = connected(site, "dev1", receive_bytes=4096)
    sock.sendall(encode(Subscribe(1, ((site.topics.to_device("dev1")[2], 1),))))
    assert received(sock, 5)[0] == 0x90
    for at in range(12):
        server.publish(site.topics.download("dev1", DIGEST, at), bytes(256 << 10))
    site.broker.stop(linger_s=0.2)
    assert is_closed_by_peer(sock)


@pytest.mark.process
def test_broker_lets_a_device_in_among_silent_sockets_that_never_begin_their_handshake(make_site, certificate, until):
    site = make_site(certificate_file=certificate[0], key_file=certificate[1], limits=Limits(patience_s=0.5))
    early = site.device("early", scheme="mqtts", ca_file=certificate[0])
    for _ in range(200):
        site.raw()
    assert len(site.broker._admission._pending) <= Limits().pending_of_address
    site.device("late", scheme="mqtts", ca_file=certificate[0])
    early.publish(site.topics.event("early"), b"still here")
    until(lambda: early.queued_bytes == 0)
    assert site.broker.stats.closed["pending-full"] >= 200 - Limits().pending_of_address


@pytest.mark.process
def test_clients_that_all_connect_at_once_are_all_answered(make_site):
    """As after a restart of the broker: many more than may begin at once, from one address."""
    site = make_site()
    names = [f"dev{number}" for number in range(300)]
    hellos = [encode(Connect(client_id="", username=name, password=site.token(name).encode())) for name in names]
    sockets = [site.raw() for _ in names]
    for sock, hello in zip(sockets, hellos, strict=True):
        sock.sendall(hello)
    assert [received(sock, 4) for sock in sockets] == [b"\x20\x02\x00\x00"] * len(names)
    assert site.broker.stats.closed == {}


CROWDED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120))
from broker_server.mqtt.broker import EmbeddedBroker
broker = EmbeddedBroker(None)
print(broker.start("127.0.0.1", 0), flush=True)
sys.stdin.readline()
files = [open("/dev/null") for _ in range(20)]
print(len(files), len(broker._admission), flush=True)
broker.stop(linger_s=0)
"""


@pytest.mark.process
def test_broker_leaves_the_process_files_to_open_however_many_connect():
    with subprocess.Popen(
        [sys.executable, "-c", CROWDED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        port = int(process.stdout.readline())
        sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
        process.stdin.write("\n")
        process.stdin.flush()
        files, admitted = map(int, process.stdout.readline().split())
        for each in sockets:
            each.close()
        assert process.wait(PATIENCE_S) == 0
    assert files == 20
    assert 0 < admitted <= 60


def test_broker_raises_the_limit_of_open_files_as_far_as_it_may(monkeypatch):
    limit = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limit[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limit.append(pair))
    assert _room_for(100) == 100
    assert len(limit) == 1
    assert (_room_for(2000), limit[-1]) == (2000, (2256, 4096))
    assert (_room_for(9000), limit[-1]) == (4096 - 256, (4096, 4096))
    limit.append((resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert _room_for(9000) == 9000


def test_client_that_vanishes_while_much_is_sent_to_it_fills_no_log(site, until, caplog):
    server, topic = site.local(), site.topics.command("dev1")
    sock = connected(site, "dev1")
    sock.sendall(encode(Subscribe(packet_id=1, filters=((topic, 0),))))
    assert received(sock, 5)[0] == 0x90
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()  # with a reset: the first write fails
    for _ in range(300):
        server.publish(topic, bytes(200))
    until(lambda: not site.broker._sockets)
    assert "socket.send() raised exception" not in caplog.text
