import pytest
import samples

from broker_server.rounds.presence import PATIENCE_S, SILENT_S, Presence
from edge_runtime.wire.messages import Progress


@pytest.fixture
def presence():
    return Presence({"known": samples.hello()})


def test_whoever_was_known_is_away_until_it_is_heard(presence):
    assert not presence.is_online("known")
    assert not presence.is_online("stranger")
    assert presence.ready == []


def test_any_message_says_that_a_device_is_there(presence):
    assert presence.on_heard("known", 5.0)
    assert not presence.on_heard("known", 6.0)
    assert presence.is_online("known")
    assert presence.ready == []


def test_a_device_may_be_asked_after_its_hello_or_after_a_while(presence):
    presence.on_hello("x", samples.hello(), 1.0)
    presence.on_heard("known", 1.0)
    assert presence.ready == ["x"]
    assert presence.tick(1.0 + PATIENCE_S - 0.1) == []
    assert presence.tick(1.0 + PATIENCE_S) == ["known"]
    assert presence.tick(1.0 + PATIENCE_S) == []
    assert presence.ready == ["known", "x"]


def test_a_device_that_says_again_that_it_is_there_goes_on_with_its_work(presence):
    progress = Progress(round=1, stage="train", done=1, total=2)
    presence.on_hello("x", samples.hello(), 1.0)
    presence.devices["x"].progress = progress
    presence.on_hello("x", samples.hello(), 2.0)
    assert presence.devices["x"].progress == progress
    presence.on_hello("x", samples.hello(software="other"), 3.0)
    assert presence.devices["x"].progress is None


def test_whoever_never_said_hello_is_asked_for_nothing_whatever_it_sends(presence):
    presence.on_heard("thief", 1.0)
    presence.on_status("thief", online=True, now_s=2.0)
    assert presence.tick(1.0 + 10 * PATIENCE_S) == []
    assert presence.ready == []


def test_a_device_is_away_when_its_broker_says_so(presence):
    presence.on_hello("x", samples.hello(), 1.0)
    presence.on_status("x", online=True, now_s=2.0)  # it has said so again, and stays ready
    assert presence.ready == ["x"]
    presence.on_status("x", online=False, now_s=3.0)
    presence.on_status("x", online=False, now_s=4.0)
    assert presence.ready == []
    assert presence.devices["x"].changed_s == 3.0
    presence.on_status("x", online=True, now_s=5.0)
    assert presence.tick(6.0) == []


def test_a_device_that_is_silent_is_away_whatever_its_broker_says(presence):
    presence.on_hello("x", samples.hello(), 1.0)
    presence.tick(SILENT_S)
    assert presence.is_online("x")
    presence.tick(SILENT_S + 1.0)
    assert not presence.is_online("x")
    assert presence.on_heard("x", SILENT_S + 2.0)
