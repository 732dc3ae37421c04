import pytest

from broker_server.simulation.network import LinkSpeed, Network
from broker_server.simulation.timeline import Timeline
from edge_runtime.wire.link import Connected, Delivery, Disconnected, packet_bytes


class Ear:
    """Keeps what a link receives, with its time."""

    def __init__(self, link, timeline):
        self.heard = []

        def wake():
            while (event := link.receive(0.0)) is not None:
                self.heard.append((timeline.now_s, event))

        link.wake = wake

    @property
    def payloads(self):
        return [(at, event.payload) for at, event in self.heard if isinstance(event, Delivery)]


@pytest.fixture
def network():
    return Network(Timeline())


def run(network):
    while network.timeline.step():
        pass


def test_a_message_takes_its_bytes_and_the_latencies(network):
    size = packet_bytes("t", b"x" * 80)
    sender = network.link(LinkSpeed(up_bytes_per_s=10.0, latency_s=1.0))
    receiver = network.link(LinkSpeed(down_bytes_per_s=20.0, latency_s=2.0))
    ear = Ear(receiver, network.timeline)
    receiver.subscribe("t")
    run(network)
    assert [type(event) for _, event in ear.heard] == [Connected]
    sender.publish("t", b"x" * 80)
    sender.publish("t", b"y" * 80)
    run(network)
    first_s = size / 10 + 3 + size / 20
    assert [at for at, _ in ear.payloads] == pytest.approx([first_s, first_s + size / 10])
    assert [payload[:1] for _, payload in ear.payloads] == [b"x", b"y"]
    assert sender.bytes_out == sender.bytes_acknowledged == receiver.bytes_in == 2 * size


def test_only_those_who_subscribe_get_a_message_each_at_its_own_speed(network):
    sender, fast, slow, deaf = (network.link(LinkSpeed(down_bytes_per_s=speed)) for speed in (1e9, 1e9, 10.0, 1e9))
    ears = [Ear(link, network.timeline) for link in (fast, slow, deaf)]
    fast.subscribe("t/+")
    slow.subscribe("t/+")
    deaf.subscribe("u/+")
    sender.publish("t/1", b"hello")
    run(network)
    assert [len(ear.payloads) for ear in ears] == [1, 1, 0]
    assert ears[0].payloads[0][0] < ears[1].payloads[0][0]


def test_a_lost_link_drops_what_is_under_way_and_the_broker_says_so(network):
    server = network.link(LinkSpeed())
    device = network.link(LinkSpeed(latency_s=5.0), will="d/status")
    heard, felt = Ear(server, network.timeline), Ear(device, network.timeline)
    server.subscribe("d/+")
    device.subscribe("c")
    run(network)
    server.publish("c", b"under way")
    device.lose(60.0)
    device.lose(1.0)  # it is lost already
    device.publish("d/event", b"nobody hears")
    run(network)
    assert [type(event) for _, event in felt.heard] == [Connected, Disconnected, Connected]
    assert felt.heard[-1][0] == 60.0
    assert [payload for _, payload in heard.payloads] == [b'{"state":"offline"}']
    server.publish("c", b"again")
    run(network)
    assert [payload for _, payload in felt.payloads] == [b"again"]


def test_a_link_without_a_will_is_lost_silently_and_a_closed_one_hears_nothing(network):
    server, device = network.link(LinkSpeed()), network.link(LinkSpeed())
    ear = Ear(server, network.timeline)
    server.subscribe("#")
    device.lose(1.0)
    run(network)
    assert ear.payloads == []
    server.close()
    device.publish("x", b"")
    run(network)
    assert ear.payloads == []
