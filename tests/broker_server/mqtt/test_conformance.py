"""Normative statements of OASIS MQTT 3.1.1 that no other test holds; docs/mqtt_conformance.md has all of them."""

import re
from pathlib import Path

import pytest

from broker_server.mqtt.codec import Decoder, PacketMalformed
from broker_server.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
)

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs" / "mqtt_conformance.md"
SERVERS = {
    "1.5.3": 3, "2.2.2": 2, "2.3.1": 7, "3.1.0": 2, "3.1.2": 24, "3.1.3": 11, "3.1.4": 5, "3.2.0": 1, "3.2.2": 6,
    "3.3.1": 12, "3.3.2": 3, "3.3.4": 1, "3.3.5": 2, "3.6.1": 1, "3.8.1": 1, "3.8.3": 4, "3.8.4": 6, "3.9.3": 2,
    "3.10.1": 1, "3.10.3": 2, "3.10.4": 6, "3.12.4": 1, "3.14.1": 1, "3.14.4": 3, "4.1.0": 2, "4.3.1": 1, "4.3.2": 2,
    "4.3.3": 2, "4.4.0": 1, "4.5.0": 2, "4.6.0": 6, "4.7.1": 3, "4.7.2": 1, "4.7.3": 4, "4.8.0": 2, "6.0.0": 4,
  "7.0.0": 2, "7.1.1": 1, "7.1.2": 1,
}  # fmt: skip
"""How many statements each section of the standard has, as they are numbered there."""


def publish(topic, payload, *, qos=1, packet_id=9, retain=False):
    return Publish(topic=topic, payload=payload, qos=qos, packet_id=packet_id if qos else 0, retain=retain)


def test_every_statement_has_its_row_and_every_named_test_is_there():
    text = DOCUMENT.read_text()
    listed = []
    for section, first, last in re.findall(r"\[MQTT-(\d+\.\d+\.\d+)-(\d+)\](?:–(\d+))?", text):
        listed += [(section, number) for number in range(int(first), int(last or first) + 1)]
    assert sorted(listed) == sorted((name, number) for name, count in SERVERS.items() for number in range(1, count + 1))
    for file, name in re.findall(r"`(test_\w+)\.([a-z0-9_]+)`", text):
        source = (Path(__file__).parent / f"{file}.py").read_text()
        assert f"def test_{name}(" in source, f"{file} has no test_{name}"


def test_connect_that_is_refused_ends_all_that_comes_with_it(stage):
    client, other = stage.open(), stage.connect("other")
    stage.send(other, Subscribe(1, (("t", 1),)))
    stage.got(other)
    stage.send(client, Connect(client_id="a", username="a", password=b"bad"))
    stage.send(client, publish("t", b"smuggled"))
    assert stage.got(client) == [Connack(False, 5)]
    assert stage.got(other) == []
    assert client.is_closed


@pytest.mark.parametrize(
    "data",
    [
        b"\x10\x0c\x00\x04HTTP\x04\x02\x00\x00\x00\x00",
        b"\x10\x0c\x00\x04MQTT\x04\x03\x00\x00\x00\x00",
        b"\x11\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00",
    ],
    ids=["protocol name", "reserved flag", "header"],
)
def test_connect_that_is_malformed_ends_without_an_answer(stage, data):
    client, decoder = stage.open(), Decoder()
    decoder.push(data)
    with pytest.raises(PacketMalformed) as caught:
        decoder.pull()
    stage.hub.on_malformed(client, caught.value, 0.0)
    assert stage.got(client) == []
    assert client.is_closed


@pytest.mark.parametrize("client_id", ["a", "0123456789abcdefghijABC", "Ünïcode"])
def test_client_ids_of_any_form_are_taken(stage, client_id):
    assert stage.connect(client_id).is_live


def test_subscription_made_again_takes_the_place_of_the_first_and_brings_retained_messages_again(stage):
    client, sender = stage.connect("a"), stage.connect("sender")
    stage.send(sender, publish("t", b"kept", retain=True))
    for packet_id, qos in ((1, 1), (2, 0)):
        stage.send(client, Subscribe(packet_id, (("t", qos),)))
        suback, message = stage.got(client)
        assert suback == Suback(packet_id, (qos,))
        assert (message.payload, message.qos, message.retain) == (b"kept", qos, True)
    stage.send(sender, publish("t", b"next"))
    (message,) = stage.got(client)
    assert (message.qos, message.retain) == (0, False)


def test_several_filters_are_taken_as_if_each_came_alone_and_answered_in_order(stage):
    client = stage.connect("a")
    stage.send(client, Subscribe(7, (("t", 1), ("secret/x", 1), ("u/+", 2), ("t", 0))))
    assert stage.got(client) == [Suback(7, (1, 0x80, 1, 0))]
    stage.send(client, Unsubscribe(8, ("t", "u/+", "none")))
    assert stage.got(client) == [Unsuback(8)]


def test_unsubscribing_ends_new_messages_and_not_those_on_their_way(stage):
    client, sender = stage.connect("a", clean_session=False), stage.connect("sender")
    stage.send(client, Subscribe(1, (("t", 1),)))
    stage.send(sender, publish("t", b"begun"))
    stage.send(client, Unsubscribe(2, ("t",)))
    stage.send(sender, publish("t", b"never"))
    stage.hub.on_lost(client, 1.0)
    client = stage.open()
    stage.send(client, Connect(client_id="a", username="a", password=b"good", clean_session=False))
    connack, message = stage.got(client)
    assert connack == Connack(True, 0)
    assert (message.payload, message.dup) == (b"begun", True)


def test_messages_of_a_topic_and_their_acknowledgements_keep_their_order(stage):
    client, sender = stage.connect("a", clean_session=False), stage.connect("sender")
    stage.send(client, Subscribe(1, (("t", 1),)))
    stage.got(client)
    for number in range(1, 6):
        stage.send(sender, publish("t", b"%d" % number, packet_id=number))
    assert stage.got(sender) == [Puback(number) for number in range(1, 6)]
    assert [message.payload for message in stage.got(client)] == [b"1", b"2", b"3", b"4", b"5"]
    stage.hub.on_lost(client, 1.0)
    client = stage.open()
    stage.send(client, Connect(client_id="a", username="a", password=b"good", clean_session=False))
    again = stage.got(client)[1:]
    assert [(message.payload, message.dup) for message in again] == [(b"%d" % number, True) for number in range(1, 6)]


@pytest.mark.parametrize("retain", [True, False])
def test_will_is_retained_if_it_says_so_and_outlives_the_session(stage, retain):
    first = stage.connect("a", will=Will("t", b"gone", 1, retain))
    stage.hub.on_lost(first, 1.0)
    late = stage.connect("late")
    stage.send(late, Subscribe(1, (("t", 1),)))
    assert [message.payload for message in stage.got(late)[1:]] == ([b"gone"] if retain else [])


def test_without_a_will_nothing_is_sent_at_the_end(stage):
    watcher = stage.connect("watcher")
    stage.send(watcher, Subscribe(1, (("#", 1),)))
    stage.got(watcher)
    stage.hub.on_lost(stage.connect("a"), 1.0)
    assert stage.got(watcher) == []


def test_message_without_retain_leaves_the_retained_one_alone(stage):
    sender, late = stage.connect("sender"), stage.connect("late")
    stage.send(sender, publish("t", b"kept", retain=True))
    stage.send(sender, publish("t", b"passing"))
    stage.send(late, Subscribe(1, (("t", 1),)))
    assert [message.payload for message in stage.got(late)[1:]] == [b"kept"]


def test_nothing_is_taken_after_a_goodbye(stage):
    client, other = stage.connect("a", will=Will("t", b"gone", 1, False)), stage.connect("other")
    stage.send(other, Subscribe(1, (("t", 1),)))
    stage.got(other)
    stage.send(client, Disconnect())
    stage.send(client, publish("t", b"late"))
    assert stage.got(other) == []
    assert stage.stats.malformed == {"order": 1}


@pytest.mark.parametrize("text", [b"\xed\xa0\x80", b"\xc0\x80", b"a\x00b", b"\xff"])
def test_text_that_is_not_utf_8_or_has_a_zero_ends_the_connection(text):
    decoder = Decoder()
    body = len(text).to_bytes(2, "big") + text + b"\x00\x01"
    decoder.push(bytes((0x32, len(body))) + body)
    with pytest.raises(PacketMalformed) as caught:
        decoder.pull()
    assert caught.value.reason == "text"


def test_byte_order_mark_stays_in_a_topic():
    decoder = Decoder()
    body = b"\x00\x04\xef\xbb\xbft" + b"\x00\x01"
    decoder.push(bytes((0x32, len(body))) + body)
    assert decoder.pull().topic == "\ufefft"
