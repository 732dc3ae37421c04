from dataclasses import dataclass, field

import pytest

from broker_server.mqtt.codec import PacketMalformed, ProtocolUnsupported
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
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
)

WILL = Will("status/a", b"gone", 2, True)


@dataclass(eq=False)
class LocalParty:
    is_full: bool = False
    is_held: bool = False
    got: list = field(default_factory=list)

    def is_full_for(self, source):
        return self.is_full

    def offer(self, message):
        self.got.append(message)
        return True

    def hold(self, is_held):
        self.is_held = is_held


def subscribe(stage, client, *filters, qos=1):
    stage.send(client, Subscribe(1, tuple((topic_filter, qos) for topic_filter in filters)))
    return stage.got(client)


def publish(topic="t", payload=b"x", qos=1, retain=False):
    return Publish(topic=topic, payload=payload, qos=qos, retain=retain, packet_id=9 if qos else 0)


def payloads(packets):
    return [packet.payload for packet in packets if isinstance(packet, Publish)]


def fill(stage, sender, subscriber, topic="t"):
    """Publish until the sender is held back by the subscriber, who never acknowledges."""
    for _ in range(100):
        stage.send(sender, publish(topic, bytes(1000)))
        if stage.peers[sender].is_held:
            return
    raise AssertionError


def test_connect_is_acknowledged_and_ping_answered(stage):
    client = stage.open()
    stage.send(client, Connect(client_id="a", password=b"good", username="a"))
    stage.send(client, Pingreq())
    assert stage.got(client) == [Connack(False, 0), Pingresp()]
    assert client.is_live


def test_message_goes_to_each_subscriber_once_at_the_lower_qos(stage):
    one, two, sender = stage.connect("one"), stage.connect("two"), stage.connect("sender")
    assert subscribe(stage, one, "t", "#") == [Suback(1, (1, 1))]
    assert subscribe(stage, two, "+", qos=0) == [Suback(1, (0,))]
    stage.send(sender, publish())
    assert stage.got(sender) == [Puback(9)]
    assert stage.got(one) == [Publish(topic="t", payload=b"x", qos=1, packet_id=1)]
    assert stage.got(two) == [Publish(topic="t", payload=b"x")]
    stage.send(one, Unsubscribe(2, ("t", "#", "never")))
    assert stage.got(one) == [Unsuback(2)]
    stage.send(sender, publish())
    assert stage.got(one) == []


def test_subscription_at_qos_2_is_granted_as_1(stage):
    assert subscribe(stage, stage.connect("a"), "t", qos=2) == [Suback(1, (1,))]


def test_retained_message_comes_with_a_subscription_and_is_marked(stage):
    sender, late = stage.connect("sender"), stage.connect("late")
    stage.send(sender, publish(retain=True))
    assert subscribe(stage, late, "#") == [
        Suback(1, (1,)),
        Publish(topic="t", payload=b"x", qos=1, retain=True, packet_id=1),
    ]
    assert subscribe(stage, late, "t", qos=0)[1] == Publish(topic="t", payload=b"x", retain=True)
    stage.send(sender, publish(retain=True, payload=b"y"))
    assert not stage.got(late)[-1].retain
    stage.send(sender, publish(retain=True, payload=b""))
    assert payloads(subscribe(stage, stage.connect("later"), "t")) == []


def test_retained_message_over_the_caps_is_passed_on_and_counted(make_stage):
    stage = make_stage(retained=1)
    sender, other = stage.connect("sender"), stage.connect("other")
    subscribe(stage, other, "#")
    for topic in ("a", "b"):
        stage.send(sender, publish(topic, retain=True))
    assert payloads(stage.got(other)) == [b"x", b"x"]
    assert stage.stats.dropped == {"retained-full": 1}


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"password": b"bad"}, 5, "token"),
        ({"password": None}, 5, "token"),
        ({"client_id": "", "password": b"good", "clean_session": False}, 2, "client-id"),
        ({"password": b"good", "will": Will("secret/x", b"", 0, False)}, 5, "will"),
    ],
)
def test_connect_refused_leaves_the_victims_session_and_connection_alone(stage, fields, code, reason):
    victim = stage.connect("victim", clean_session=False, will=WILL)
    subscribe(stage, victim, "t")
    attacker = stage.open()
    stage.send(attacker, Connect(**{"client_id": "victim", "username": "victim", **fields}))
    assert stage.got(attacker) == [Connack(False, code)]
    assert stage.peers[attacker].closed == "polite"
    assert stage.stats.refused == {reason: 1}
    assert victim.is_live
    assert stage.peers[victim].closed is None
    stage.send(stage.connect("sender"), publish())
    assert payloads(stage.got(victim)) == [b"x"]


def test_second_good_connect_takes_over_and_the_first_ones_will_is_sent_before(stage):
    watcher = stage.connect("watcher")
    subscribe(stage, watcher, "status/+")
    first = stage.connect("a", will=WILL)
    second = stage.connect("a")
    assert (stage.peers[first].closed, first.is_closed, second.is_live) == ("at once", True, True)
    assert stage.got(watcher) == [Publish(topic="status/a", payload=b"gone", qos=1, packet_id=1)]
    assert stage.stats.closed == {"taken-over": 1}
    stage.hub.on_lost(first, 1.0)  # the socket says so later
    assert second.is_live


def test_will_is_sent_when_the_socket_is_lost_and_not_after_a_goodbye(stage):
    watcher = stage.connect("watcher")
    subscribe(stage, watcher, "status/+")
    stage.hub.on_lost(stage.connect("a", will=WILL), 1.0)
    assert payloads(stage.got(watcher)) == [b"gone"]
    polite = stage.connect("a", will=WILL)
    stage.send(polite, Disconnect())
    assert stage.peers[polite].closed == "polite"
    assert payloads(stage.got(watcher)) == []
    assert payloads(subscribe(stage, stage.connect("late"), "status/a")) == [b"gone"]


def test_keepalive_and_token_expiry_close_with_the_will(stage):
    watcher = stage.connect("watcher")
    subscribe(stage, watcher, "status/+")
    stage.connect("a", will=WILL, keepalive_s=10)
    stage.tick(14.0)
    assert payloads(stage.got(watcher)) == []
    stage.tick(15.0)
    assert payloads(stage.got(watcher)) == [b"gone"]
    stage.authorizer.valid_for_s = 5.0
    stage.connect("a", will=WILL)
    stage.tick(20.0)
    assert payloads(stage.got(watcher)) == [b"gone"]
    assert stage.stats.closed == {"keepalive": 1, "token-expired": 1}


def test_connection_that_never_says_who_it_is_is_closed(stage):
    client = stage.open()
    stage.tick(10.0)
    assert client.is_closed
    assert stage.stats.closed == {"connect-timeout": 1}


def test_unauthenticated_connections_over_the_cap_push_out_the_oldest(make_stage):
    stage = make_stage(pending=2)
    one, two, three = stage.open(), stage.open(), stage.open()
    assert [client.is_closed for client in (one, two, three)] == [True, False, False]
    stage.connect("a")
    assert two.is_closed
    assert not three.is_closed


def test_clients_over_the_cap_are_told_to_come_later_but_may_take_over(make_stage):
    stage = make_stage(clients=1)
    stage.connect("a")
    other = stage.open()
    stage.send(other, Connect(client_id="b", password=b"good", username="b"))
    assert stage.got(other) == [Connack(False, 3)]
    assert stage.connect("a").is_live


def test_publish_that_is_not_allowed_is_acknowledged_not_routed_and_ends_the_connection(stage):
    watcher, local = stage.connect("a"), LocalParty()
    stage.hub.subscribe(local, "#", 1)
    stage.send(watcher, publish("secret/x"))
    assert stage.got(watcher) == [Puback(9)]
    assert stage.peers[watcher].closed == "polite"
    assert (local.got, stage.stats.refused) == ([], {"publish": 1})


def test_subscribe_that_is_not_allowed_or_over_the_cap_gets_0x80(make_stage):
    stage = make_stage(subscriptions=2)
    client = stage.connect("a")
    assert subscribe(stage, client, "a", "secret/#", "b", "c", "a") == [Suback(1, (1, 0x80, 1, 0x80, 1))]
    assert stage.stats.refused == {"subscribe": 1, "subscriptions-full": 1}


def test_packet_out_of_order_closes_at_once_and_is_counted(stage):
    client = stage.open()
    stage.send(client, Pingreq())
    assert stage.peers[client].closed == "at once"
    assert stage.stats.malformed == {"order": 1}


def test_another_version_of_the_protocol_is_told_so(stage):
    fresh, live, broken = stage.open(), stage.connect("a"), stage.open()
    error = ProtocolUnsupported("protocol", "5")
    stage.hub.on_malformed(fresh, error, 0.0)
    stage.hub.on_malformed(live, error, 0.0)
    stage.hub.on_malformed(broken, PacketMalformed("type", "x"), 0.0)
    assert stage.got(fresh) == [Connack(False, 1)]
    assert stage.got(live) == stage.got(broken) == []
    assert stage.stats.malformed == {"protocol": 2, "type": 1}


def test_persistent_session_keeps_subscriptions_and_messages_while_away(stage):
    client, sender = stage.connect("a", clean_session=False), stage.connect("sender")
    subscribe(stage, client, "t")
    stage.send(sender, publish(payload=b"1"))
    assert payloads(stage.got(client)) == [b"1"]
    stage.hub.on_lost(client, 1.0)
    stage.send(sender, publish(payload=b"2"))
    stage.send(sender, publish(payload=b"3", qos=0))
    again = stage.open()
    stage.send(again, Connect(client_id="a", username="a", password=b"good", clean_session=False))
    assert stage.got(again) == [
        Connack(True, 0),
        Publish(topic="t", payload=b"1", qos=1, packet_id=1, dup=True),
        Publish(topic="t", payload=b"2", qos=1, packet_id=2),
    ]
    for packet_id in (1, 2):
        stage.send(again, Puback(packet_id))
    assert stage.hub.is_idle
    assert stage.stats.dropped == {"qos-0": 1}


@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
def test_session_that_was_clean_or_is_to_be_starts_empty(stage, before, after):
    client, sender = stage.connect("a", clean_session=before), stage.connect("sender")
    subscribe(stage, client, "t")
    stage.hub.on_lost(client, 1.0)
    again = stage.open()
    stage.send(again, Connect(client_id="a", username="a", password=b"good", clean_session=after))
    stage.send(sender, publish())
    assert stage.got(again) == [Connack(False, 0)]


def test_sessions_of_clients_that_stay_away_expire(make_stage):
    stage = make_stage(session_expiry_s=100.0)
    client = stage.connect("a", clean_session=False)
    stage.hub.on_lost(client, 0.0)
    stage.tick(99.0)
    assert "a" in stage.hub._sessions
    stage.tick(100.0)
    assert stage.hub._sessions == {}


def test_sessions_over_the_cap_push_out_who_is_away_longest(make_stage):
    stage = make_stage(sessions=2)
    for at, name in enumerate(("a", "b")):
        stage.hub.on_lost(stage.connect(name, clean_session=False), float(at))
    stage.connect("c")
    assert list(stage.hub._sessions) == ["b", "c"]
    stage.connect("d")
    stage.connect("e")  # nobody is away: the caps on clients bound these
    assert list(stage.hub._sessions) == ["c", "d", "e"]


def test_slow_subscriber_holds_its_publishers_back_until_it_has_drained(make_stage):
    stage = make_stage(queue_bytes=10_000, window=3)
    slow, sender, bystander = stage.connect("slow"), stage.connect("sender"), stage.connect("bystander")
    subscribe(stage, slow, "t")
    fill(stage, sender, slow)
    stage.send(bystander, publish("other"))
    assert not stage.peers[bystander].is_held
    held = stage.hub._sessions["slow"].outbox.held_bytes
    assert 10_000 <= held <= 12_000
    for packet in stage.got(slow):
        stage.send(slow, Puback(packet.packet_id))
    assert stage.peers[sender].is_held
    while (packets := stage.got(slow)) and stage.peers[sender].is_held:
        for packet in packets:
            stage.send(slow, Puback(packet.packet_id))
    assert not stage.peers[sender].is_held
    assert stage.stats.dropped == {}


def test_publisher_held_back_may_be_silent_beyond_its_keepalive(make_stage):
    stage = make_stage(queue_bytes=5_000, stall_s=100)
    slow, sender = stage.connect("slow"), stage.connect("sender", keepalive_s=10)
    subscribe(stage, slow, "t")
    fill(stage, sender, slow)
    stage.tick(50.0)
    assert sender.is_live


def test_subscriber_that_never_drains_is_cut_off_and_its_queue_dropped(make_stage):
    stage = make_stage(queue_bytes=5_000, stall_s=30)
    slow, sender = stage.connect("slow", clean_session=False), stage.connect("sender")
    subscribe(stage, slow, "t")
    fill(stage, sender, slow)
    stage.tick(31.0)
    assert slow.is_closed
    assert not stage.peers[sender].is_held
    assert stage.stats.closed == {"slow": 1}
    assert stage.stats.dropped["slow"] > 0
    again = stage.open()
    stage.send(again, Connect(client_id="slow", password=b"good", username="slow", clean_session=False))
    assert stage.got(again)[0] == Connack(False, 0)  # it is told that what was for it is lost


def test_subscriber_that_vanishes_or_a_publisher_that_does_leaves_nobody_held(make_stage):
    stage = make_stage(queue_bytes=5_000)
    slow, sender, other = stage.connect("slow"), stage.connect("sender"), stage.connect("other")
    subscribe(stage, slow, "t")
    fill(stage, sender, slow)
    fill(stage, other, slow)
    stage.hub.on_lost(other, 1.0)
    stage.hub.on_lost(slow, 1.0)
    assert not stage.peers[sender].is_held
    fill_again = stage.connect("slow")
    stage.send(sender, publish())
    assert not stage.peers[sender].is_held
    assert fill_again.is_live


def test_qos_0_to_a_full_subscriber_is_dropped_and_holds_nobody(make_stage):
    stage = make_stage(queue_bytes=2_000)
    slow, sender = stage.connect("slow"), stage.connect("sender")
    subscribe(stage, slow, "t")
    stage.hub.on_writable(slow, False)
    for _ in range(10):
        stage.send(sender, publish(payload=bytes(900), qos=0))
    assert stage.stats.dropped["qos-0"] >= 7
    assert not stage.peers[sender].is_held
    stage.hub.on_writable(slow, True)
    assert len(payloads(stage.got(slow))) <= 3
    stage.hub.on_writable(stage.open(), True)  # a socket may say so before its CONNECT


def test_local_party_publishes_subscribes_and_is_held_back_like_any_other(make_stage):
    stage = make_stage(queue_bytes=2_000, stall_s=5)
    party, client = LocalParty(), stage.connect("a")
    stage.hub.subscribe(party, "up", 1)
    subscribe(stage, client, "down")
    while not party.is_held:
        stage.hub.publish(QueuedMessage("down", bytes(500), 1), party, 0.0)
    stage.hub.on_lost(client, 0.0)
    assert not party.is_held
    party.is_full = True
    sender = stage.connect("sender")
    stage.send(sender, publish("up"))
    assert stage.peers[sender].is_held
    stage.tick(60.0)  # the server's own link is never cut off
    assert stage.peers[sender].is_held
    assert party.got == []
    assert stage.got(sender) == []  # what was not taken is not acknowledged
    stage.hub.on_drained(party)
    assert stage.peers[sender].is_held  # it was full again at once
    party.is_full = False
    stage.hub.on_drained(party)
    assert not stage.peers[sender].is_held
    assert stage.got(sender) == [Puback(9)]
    stage.hub.drop(party)
    stage.send(sender, publish("up"))
    assert [m.topic for m in party.got] == ["up"]


def test_what_is_acknowledged_is_never_dropped(make_stage):
    """Many publishers to one that reads slowly: each of their messages is acknowledged once it has been taken."""
    stage = make_stage(queue_bytes=5_000, window=3)
    slow = stage.connect("slow")
    senders = [stage.connect(f"s{number}") for number in range(40)]
    subscribe(stage, slow, "t")
    for number, sender in enumerate(senders):
        stage.send(sender, publish(payload=bytes([number]) * 1000))
    acknowledged = [sender for sender in senders if stage.got(sender) == [Puback(9)]]
    assert 0 < len(acknowledged) < 10
    assert stage.hub._sessions["slow"].outbox.held_bytes < 7_000
    got = []
    while packets := stage.got(slow):
        got += [packet.payload[0] for packet in packets]
        for packet in packets:
            stage.send(slow, Puback(packet.packet_id))
    assert sorted(got) == list(range(40))
    assert [sender for sender in senders if stage.got(sender) == [Puback(9)]] == senders[len(acknowledged) :]
    assert stage.stats.dropped == {}


def test_client_that_is_away_and_would_get_too_much_loses_its_session_and_is_told(make_stage):
    stage = make_stage(queue_bytes=5_000)
    away, sender = stage.connect("away", clean_session=False), stage.connect("sender")
    subscribe(stage, away, "t")
    stage.hub.on_lost(away, 1.0)
    for _ in range(10):
        stage.send(sender, publish(payload=bytes(1000)))
    assert not stage.peers[sender].is_held
    again = stage.open()
    stage.send(again, Connect(client_id="away", password=b"good", username="away", clean_session=False))
    assert stage.got(again) == [Connack(False, 0)]


def test_message_at_qos_2_is_routed_once_however_often_it_comes(stage):
    sender, other = stage.connect("sender", clean_session=False), stage.connect("other")
    subscribe(stage, other, "t", qos=2)
    stage.send(sender, publish(qos=2))
    stage.send(sender, publish(qos=2))
    assert stage.got(sender) == [Pubrec(9), Pubrec(9)]
    stage.hub.on_lost(sender, 1.0)
    sender = stage.connect("sender", clean_session=False)
    stage.send(sender, publish(qos=2))  # the id outlives the connection, as the session does
    stage.send(sender, Pubrel(9))
    stage.send(sender, Pubrel(9))
    assert stage.got(sender) == [Pubrec(9), Pubcomp(9), Pubcomp(9)]
    assert [packet.qos for packet in stage.got(other)] == [1]
    stage.send(sender, publish(qos=2))  # another message with the same id
    assert payloads(stage.got(other)) == [b"x"]


def test_client_that_releases_no_message_at_qos_2_is_cut_off(make_stage):
    stage = make_stage(unreleased=3)
    sender = stage.connect("sender")
    for packet_id in range(1, 5):
        stage.send(sender, Publish(topic="t", payload=b"x", qos=2, packet_id=packet_id))
    assert stage.got(sender) == [Pubrec(1), Pubrec(2), Pubrec(3)]
    assert sender.is_closed
    assert stage.stats.malformed == {"unreleased": 1}


def test_message_at_qos_2_that_is_not_allowed_is_acknowledged_and_ends_the_connection(stage):
    client = stage.connect("a")
    stage.send(client, publish("secret/x", qos=2))
    assert stage.got(client) == [Pubrec(9)]
    assert client.is_closed


def test_client_without_an_id_is_called_by_its_bearer_s_name(stage):
    client = stage.open()
    stage.send(client, Connect(client_id="", username="a", password=b"good"))
    assert stage.got(client) == [Connack(False, 0)]
    assert list(stage.hub._clients) == [""]  # the name that this stage's authorizer gives


def test_client_that_does_not_read_its_answers_is_cut_off(stage):
    client = stage.connect("a")
    stage.hub.on_not_reading(client, 1.0)
    assert (client.is_closed, stage.stats.closed) == (True, {"slow": 1})


def test_close_ends_every_connection(stage):
    one, fresh = stage.connect("a", will=WILL), stage.open()
    stage.hub.close(1.0)
    assert one.is_closed
    assert fresh.is_closed
    assert stage.stats.snapshot()["closed"] == {"stopped": 2}


def test_client_that_is_revoked_is_cut_off_at_the_next_tick(stage):
    client, other = stage.connect("a", will=WILL), stage.connect("b")
    stage.tick(1.0)
    assert client.is_live
    stage.authorizer.revoked = frozenset({"a"})
    stage.tick(2.0)
    assert (client.is_closed, other.is_live, stage.stats.closed) == (True, True, {"revoked": 1})
