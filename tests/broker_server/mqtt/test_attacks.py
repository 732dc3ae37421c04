"""Attack files are sent raw to one live broker, which goes on serving a victim whose name the attacks use."""

from pathlib import Path

import pytest

from broker_server.mqtt.limits import Limits
from edge_runtime.wire.link import Delivery

pytestmark = pytest.mark.process

FILES = sorted((Path(__file__).parents[2] / "attacks" / "mqtt").glob("*.bin"))
PATIENCE_S = 30.0


@pytest.fixture
def served(make_site):
    site = make_site(limits=Limits(patience_s=0.5))
    server, victim = site.local(*site.topics.from_devices()), site.device("victim")
    victim.subscribe(site.topics.command("victim"))
    return site, server, victim


def send(site, data):
    """Send, close our half, and read until the broker closes its own."""
    sock = site.raw()
    try:
        sock.sendall(data)
        sock.shutdown(1)
        while sock.recv(65536):
            pass
    except ConnectionError:
        pass  # it was closed while we wrote


def test_broker_attacked_with_every_file_goes_on_serving_and_the_victim_stays_connected(served):
    site, server, victim = served
    assert len(FILES) > 30
    for path in FILES:
        send(site, path.read_bytes())
        victim.publish(site.topics.event("victim"), path.name.encode())
        assert server.receive(PATIENCE_S) == Delivery(site.topics.event("victim"), path.name.encode()), path.name
    server.publish(site.topics.command("victim"), b"still here")
    assert victim.receive(PATIENCE_S) == Delivery(site.topics.command("victim"), b"still here")
    assert site.broker.stats.dropped == {}
    assert sum(site.broker.stats.refused.values()) > 5
    assert sum(site.broker.stats.malformed.values()) > 20


def test_broker_under_many_idle_connections_lets_a_device_in(served):
    site, _, _ = served
    idle = [site.raw(b"\x10") for _ in range(200)]
    assert site.device("late").receive(0.2) is None  # connected, and nothing since
    assert len(idle) == 200
