import threading

import pytest

from edge_runtime.agent.fragment_channel import FragmentChannel
from edge_runtime.agent.work import WorkCancelled
from edge_runtime.wire.errors import MessageInvalid
from edge_runtime.wire.fragments import to_fragments

LONG = bytes(range(256)) * 4096


def test_messages_go_in_fragments_and_come_from_fragments():
    woken = []
    ours, theirs = FragmentChannel(lambda: woken.append("ours")), FragmentChannel(lambda: None)
    for channel in (ours, theirs):
        channel.open(len(LONG))
    for message in (LONG, b"", b"short"):
        ours.send(message)
    assert woken == ["ours"] * 3
    fragments = ours.take()
    assert len(fragments) > 3
    assert ours.take() == []
    for fragment in fragments:
        theirs.deliver(fragment)
    assert [theirs.receive(1.0) for _ in range(3)] == [LONG, b"", b"short"]
    assert theirs.receive(0.01) is None


def test_message_before_a_round_or_too_long_is_dropped():
    channel = FragmentChannel(lambda: None)
    channel.deliver(to_fragments(1, b"early")[0])
    channel.open(3)
    with pytest.raises(MessageInvalid, match="more than 3 bytes"):
        channel.deliver(to_fragments(2, b"long")[0])
    channel.deliver(to_fragments(3, b"abc")[0])
    assert channel.receive(1.0) == b"abc"


def test_work_that_waits_is_woken_when_it_is_no_longer_wanted():
    channel = FragmentChannel(lambda: None)
    channel.begin()
    channel.open(10)
    threading.Timer(0.1, channel.cancel).start()
    with pytest.raises(WorkCancelled):
        channel.receive(60.0)
    channel.open(10)  # it had not looked yet
    with pytest.raises(WorkCancelled):
        channel.receive(60.0)
    channel.begin()
    channel.open(10)
    assert channel.receive(0.01) is None


def test_new_work_does_not_send_what_the_old_one_left():
    channel = FragmentChannel(lambda: None)
    channel.send(b"old")
    channel.begin()
    assert channel.take() == []
