import threading

import pytest

from edge_runtime.agent.fragment_channel import FragmentChannel
from edge_runtime.agent.work import WorkCancelled
from edge_runtime.wire.errors import MessageInvalid
from edge_runtime.wire.fragments import to_fragments

LONG = bytes(range(256)) * 4096


def test_messages_go_in_pieces_and_come_from_pieces():
    told = []
    ours, theirs = FragmentChannel(lambda: told.append("ours")), FragmentChannel(lambda: None)
    for exchange in (ours, theirs):
        exchange.open(len(LONG))
    for message in (LONG, b"", b"short"):
        ours.send(message)
    assert told == ["ours"] * 3
    pieces = ours.take()
    assert len(pieces) > 3
    assert ours.take() == []
    for piece in pieces:
        theirs.deliver(piece)
    assert [theirs.receive(1.0) for _ in range(3)] == [LONG, b"", b"short"]
    assert theirs.receive(0.01) is None


def test_what_comes_before_a_round_or_is_too_long_is_dropped():
    exchange = FragmentChannel(lambda: None)
    exchange.deliver(to_fragments(1, b"early")[0])
    exchange.open(3)
    with pytest.raises(MessageInvalid, match="more than 3 bytes"):
        exchange.deliver(to_fragments(2, b"long")[0])
    exchange.deliver(to_fragments(3, b"abc")[0])
    assert exchange.receive(1.0) == b"abc"


def test_work_that_waits_is_woken_when_it_is_no_longer_wanted():
    exchange = FragmentChannel(lambda: None)
    exchange.begin()
    exchange.open(10)
    threading.Timer(0.1, exchange.cancel).start()
    with pytest.raises(WorkCancelled):
        exchange.receive(60.0)
    exchange.open(10)  # it had not looked yet
    with pytest.raises(WorkCancelled):
        exchange.receive(60.0)
    exchange.begin()
    exchange.open(10)
    assert exchange.receive(0.01) is None


def test_new_work_does_not_send_what_the_old_one_left():
    exchange = FragmentChannel(lambda: None)
    exchange.send(b"old")
    exchange.begin()
    assert exchange.take() == []
