import threading

import pytest

from edge_runtime.energy.listener import Listener, listen
from edge_runtime.wire.broker_url import LinkInvalid
from edge_runtime.wire.link import Connected, Delivery


class FakeLink:
    bytes_in = bytes_out = 0

    def __init__(self, events):
        self.events = events
        self.filters = []
        self.closed = False

    def publish(self, topic, payload, *, retain=False):
        raise AssertionError

    def subscribe(self, *filters):
        self.filters += filters

    def receive(self, timeout_s):
        return self.events.pop(0) if self.events else None

    def close(self):
        self.closed = True


def test_payloads_of_the_topic_are_handed_over():
    taken, enough = [], threading.Event()

    def take(payload):
        taken.append(payload)
        if len(taken) == 2:
            enough.set()

    link = FakeLink([Connected(), Delivery("plug", b"5"), Delivery("plug", b"6")])
    listener = Listener(link, "plug", take)
    assert enough.wait(60)
    listener.close()
    assert (taken, link.filters, link.closed) == ([b"5", b"6"], ["plug"], True)


def test_url_that_is_none_is_refused():
    with pytest.raises(LinkInvalid, match="mqtt://host"):
        listen("mqtt://user:secret@host", "t", lambda _: None, username="energy", password="")
