import threading
import time

import pytest

from broker_server.mqtt.limits import Limits
from broker_server.mqtt.outbox import QueuedMessage
from edge_runtime.wire.link import Connected, Delivery, LinkFull, packet_bytes

PATIENCE_S = 30.0
DIGEST = "d" * 64


def test_local_links_hear_what_they_have_subscribed_to(site):
    one, other = site.local(), site.local("a/#")
    one.publish("a/b", b"1")
    assert other.receive(PATIENCE_S) == Delivery("a/b", b"1")
    assert (one.bytes_out, other.bytes_in) == (packet_bytes("a/b", b"1"), packet_bytes("a/b", b"1"))
    one.publish("b", b"2")
    assert other.receive(0.2) is None


def test_local_link_that_waits_can_be_interrupted(site):
    link = site.local()
    threading.Timer(0.1, link.interrupt).start()
    assert link.receive(None) is None
    link.interrupt()  # remembered until the next wait
    assert link.receive(None) is None
    assert link.receive(0.01) is None


def test_local_payload_is_handed_over_and_not_copied(site):
    one, other = site.local(), site.local("a")
    payload = bytes(100)
    one.publish("a", payload)
    assert other.receive(PATIENCE_S).payload is payload


@pytest.mark.parametrize("topic", ["", "a/+", "a/#", "a\0"])
def test_local_link_refuses_to_publish_to_what_is_no_topic(site, topic):
    with pytest.raises(ValueError, match="not a topic"):
        site.local().publish(topic, b"")


def test_local_link_refuses_what_is_no_filter(site):
    with pytest.raises(ValueError, match="not a topic filter"):
        site.local().subscribe("a/#/b")


def test_local_inbox_that_is_full_holds_devices_back_and_loses_nothing(site):
    server = site.local(*site.topics.from_devices(), inbox_bytes=1 << 20)
    device = site.device("dev1", outbox_bytes=64 << 20)
    chunk = bytes(100_000)
    for at in range(200):
        device.publish(site.topics.upload("dev1", DIGEST, at), chunk)
    time.sleep(0.5)
    assert device.queued_bytes > 10 << 20  # it waits there, not here
    topics = [server.receive(PATIENCE_S).topic for _ in range(200)]
    assert topics == [site.topics.upload("dev1", DIGEST, at) for at in range(200)]
    assert site.broker.stats.dropped == {}


def publish_many(link):
    for _ in range(20):
        link.publish("a", bytes(4_000))


def test_local_inbox_that_nobody_reads_is_bounded(make_site, until):
    site = make_site(limits=Limits(queue_bytes=100_000))
    reader = site.local("a", inbox_bytes=10_000)
    writer = site.local(outbox_bytes=50_000)
    for _ in range(10):  # nine go into the full inbox at most: the writer is held back, then full itself
        writer.publish("a", bytes(4_000))
    until(lambda: writer._party.is_held)
    assert reader._party.inbox.bytes <= 20_000
    with pytest.raises(LinkFull, match="receive, then publish again"):
        publish_many(writer)
    got = 0
    while reader.receive(0.5):
        got += 1
    assert got >= 10
    with pytest.raises(LinkFull):
        writer.publish("a", bytes(60_000))


def test_local_inbox_holds_publishers_back_and_loses_nothing(site, until):
    reader = site.local("mas/#", inbox_bytes=10_000)
    devices = [site.device(f"dev{at}") for at in range(6)]
    for at, device in enumerate(devices):
        device.publish(site.topics.event(f"dev{at}"), bytes(5_000))
    until(lambda: site.broker.stats.messages_in >= 2)
    assert reader._party.inbox.bytes <= 20_000
    got = [reader.receive(PATIENCE_S) for _ in range(6)]
    assert sorted(event.topic for event in got) == [site.topics.event(f"dev{at}") for at in range(6)]
    assert site.broker.stats.dropped == {}
    assert not reader._party.offer(QueuedMessage("t", bytes(20_000), 0))  # QoS 0 waits for nobody


def test_local_link_receives_what_is_left_after_close_and_then_nothing(site):
    server = site.local("a")
    server.publish("a", b"1")
    server.publish("a", b"2")
    assert server.receive(PATIENCE_S).payload == b"1"
    waiting = threading.Thread(target=server.receive, args=(None,))
    server.close()
    waiting.start()
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()
    while (event := server.receive(0)) is not None:
        assert event.payload == b"2"
    other = site.local("a")
    other.publish("a", b"3")
    assert other.receive(PATIENCE_S).payload == b"3"
    assert server.receive(0) is None


def test_local_link_of_a_stopped_broker_is_told_and_does_no_harm(make_site):
    site = make_site()
    server = site.broker.link()
    site.broker.stop()
    assert server.receive(0) == Connected()
    assert server.receive(0).reason == "the broker has stopped"
    server.publish("a", b"")
    server.subscribe("a")
    server.close()
    assert server.receive(None) is None


def test_local_inbox_gives_a_quiet_device_its_turn_beside_one_that_floods(site, until):
    server = site.local(*site.topics.from_devices(), inbox_bytes=1 << 20)
    loud, quiet = site.device("loud", outbox_bytes=64 << 20), site.device("quiet")
    for _ in range(5000):
        loud.publish(site.topics.event("loud"), bytes(1000))
    until(lambda: server._party.is_full_for("loud"))
    assert not server._party.is_full_for("quiet")
    quiet.publish(site.topics.event("quiet"), b"please")
    until(lambda: quiet.queued_bytes == 0)
    topics = [server.receive(PATIENCE_S).topic for _ in range(2)]
    assert site.topics.event("quiet") in topics
    for _ in range(4998):
        topics.append(server.receive(PATIENCE_S).topic)
    assert server.receive(PATIENCE_S).topic == site.topics.event("loud")
    assert topics.count(site.topics.event("loud")) == 4999
