"""The agent on a real socket, with the embedded broker and a scripted server behind it."""

import argparse
import threading
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

pytest.importorskip("jwt")

from broker_server.mqtt.auth import TokenAuthorizer
from broker_server.mqtt.broker import EmbeddedBroker
from broker_server.server.enrolments import Enrolments
from broker_server.server.signed_link import SignedServerLink
from broker_server.server.token_renewal import TokenRenewal
from devices.cli.run import DONE, REFUSED
from edge_runtime.agent.command import add_arguments, connect, run
from edge_runtime.agent.config import read
from edge_runtime.wire import tokens
from edge_runtime.wire.counter import Counter
from edge_runtime.wire.envelope import Scope, seal_command
from edge_runtime.wire.link import Connected, Delivery
from edge_runtime.wire.messages import Finished, Hello, Need, Update, encode
from edge_runtime.wire.topics import Topics

pytestmark = pytest.mark.workstation

LIMIT_S = 60.0


class Site:
    """A broker, and the server's end of it as the scripted server wants it."""

    def __init__(self, key, state, port=0):
        self.key = key
        self.state = state
        self.port = port
        self.inbox = None
        self.statuses = []
        self.on_publish = None
        self.life_s = None
        self.start()

    def start(self):
        enrolments = Enrolments(self.state)
        authorizer = TokenAuthorizer(
            self.key.public_key(), "rooms", now=time.time, life_s=self.life_s, has_key=enrolments.has_key
        )
        renewal = None
        if self.life_s is not None:
            renewal = TokenRenewal(self.key, "rooms", authorizer, life_s=self.life_s, clock=time.monotonic)
        self.broker = EmbeddedBroker(authorizer)
        self.port = self.broker.start(port=self.port)
        self.link = SignedServerLink(
            self.broker.link(),
            Topics("rooms"),
            key=self.key,
            enrolments=enrolments,
            renewals=[renewal] if renewal else (),
            counter=Counter(self.state / "counter"),
        )
        self.link.subscribe("mas/4/rooms/device/+/status", "mas/4/rooms/device/+/event")
        self.link.subscribe("mas/4/rooms/device/+/upload/+/+")
        self.running = True
        self.thread = threading.Thread(target=self.pump, daemon=True)
        self.thread.start()

    def stop(self):
        self.running = False
        self.thread.join()
        self.link.close()
        self.broker.stop()

    def deliver(self, topic, payload):
        self.link.publish(topic, payload)

    def pump(self):
        while self.running:
            event = self.link.receive(0.1)
            if not isinstance(event, Delivery):
                continue
            if event.topic.endswith("/status"):
                self.statuses.append(event.payload)
            elif self.on_publish is not None:
                self.on_publish(event.topic, event.payload)


@pytest.fixture
def site(server_key, tmp_path):
    site = Site(server_key, tmp_path / "broker")
    yield site
    site.stop()


@pytest.fixture
def configure(site, server_key, public_key, tmp_path):
    def write(*, lifetime_s=600.0, name="kitchen"):
        token = tokens.issue(server_key, name=name, federation="rooms", role="device", lifetime_s=lifetime_s)
        path = tmp_path / "agent.toml"
        code = Enrolments(site.state).enrol("kitchen").code
        path.write_text(
            f'device = "kitchen"\nfederation = "rooms"\nurl = "mqtt://127.0.0.1:{site.port}"\ntoken = "{token}"\n'
            f'code = "{code}"\nserver_key = "{public_key}"\ndata = "data"\nstate = "state"\n'
        )
        path.chmod(0o600)
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        return parser.parse_args(["--config", str(path)])

    return write


def run_in_thread(arguments, worker):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(run(arguments, lambda _config: worker)))
    thread.start()
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    return codes[0]


def until(condition):
    limit_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit_s
        time.sleep(0.02)


@pytest.mark.slow
def test_agent_goes_through_rounds_over_mqtt(site, configure, make_bundle, make_server, worker, tmp_path):
    bundle = make_bundle(graph_bytes=100_000)
    server = make_server(site, [bundle], tmp_path / "server")
    server.plans.extend([bundle.plan(0), bundle.plan(1, value=5.0), bundle.evaluation(2)])
    assert run_in_thread(configure(), worker) == DONE
    assert [result.round for result in server.results] == [0, 1, 2]
    until(lambda: site.statuses[-1] == b'{"state":"offline"}')
    assert b'{"state":"online"}' in site.statuses


@pytest.mark.slow
def test_agent_goes_on_after_the_broker_was_started_again(site, configure, make_bundle, make_server, worker, tmp_path):
    bundle = make_bundle(graph_bytes=100_000)
    server = make_server(site, [bundle], tmp_path / "server")
    server.plans.append(bundle.plan(0))
    restarts = []

    def restart(message):
        if isinstance(message, Need) and len(server.said(Need)) == 10 and not restarts:
            restarts.append(threading.Thread(target=lambda: (site.stop(), site.start())))
            restarts[0].start()
        return False

    server.on_message = restart
    assert run_in_thread(configure(), worker) == DONE
    restarts[0].join()
    assert len(server.results) == 1
    assert len(server.said(Hello)) >= 2
    assert worker.calls == [("train", 0)]


@pytest.mark.parametrize("wrong", [{"lifetime_s": -60.0}, {"name": "attic"}])
def test_agent_with_a_token_that_is_not_good_ends_with_5(configure, worker, capsys, wrong):
    assert run_in_thread(configure(**wrong), worker) == REFUSED
    assert "enrol kitchen again" in capsys.readouterr().err


@pytest.mark.slow
def test_agent_whose_token_has_expired_is_given_another_for_its_key(
    site, configure, make_bundle, make_server, worker, public_key, tmp_path
):
    site.stop()
    site.life_s = 600.0
    site.start()
    bundle = make_bundle(graph_bytes=100_000)
    server = make_server(site, [bundle], tmp_path / "server")
    server.plans.extend([bundle.plan(0), bundle.evaluation(1)])
    assert run_in_thread(configure(lifetime_s=-60.0), worker) == DONE
    assert [result.round for result in server.results] == [0, 1]
    token = (tmp_path / "state" / "token").read_bytes().partition(b" ")[2]
    assert tokens.check(site.key.public_key(), token, federation="rooms").renewed


def test_agent_that_vanishes_leaves_its_last_will(site, configure):
    config = read(configure().config)
    first = connect(config)
    until(lambda: isinstance(first.receive(0.1), Connected))
    second = connect(config)  # takes the session over, so the first one's connection ends without a goodbye
    until(lambda: isinstance(second.receive(0.1), Connected))
    until(lambda: b'{"state":"offline"}' in site.statuses)
    first.close()
    second.close()


@pytest.mark.slow
def test_agent_does_nothing_for_a_broker_without_the_server_s_key(
    site, configure, make_bundle, make_server, worker, tmp_path, caplog
):
    """It makes plans of a bundle that the server has signed, ends the federation, and repeats what it has seen."""
    bundle = make_bundle(graph_bytes=100_000)
    server = make_server(site, [bundle], tmp_path / "server")
    server.plans.extend([bundle.plan(1), bundle.evaluation(2)])
    topic, rogue, plain = Topics("rooms").command("kitchen"), Ed25519PrivateKey.generate(), site.link._link
    scope, sent = Scope(federation="rooms", device="kitchen"), []
    publish = plain.publish
    plain.publish = lambda to, payload, **more: (sent.append((to, payload)), publish(to, payload, **more))
    forged = [Finished(detail="owned"), bundle.plan(0, value=9.0), bundle.plan(7, value=9.0)]

    def interfere(message):
        if isinstance(message, Hello | Need | Update):
            boot = site.link._heard["kitchen"].boot
            for body in map(encode, forged):
                publish(topic, body)
                publish(topic, seal_command(rogue, scope, boot=boot, counter=2**62, body=body))
            for to, payload in list(sent):
                if to == topic:
                    publish(to, payload)  # once more
        return False

    server.on_message = interfere
    assert run_in_thread(configure(), worker) == DONE
    assert [result.round for result in server.results] == [1, 2]
    assert [round_number for _, round_number in worker.calls] == [1, 2]
    assert "a command was not taken (forged" in caplog.text
    assert "a command was not taken (repeated" in caplog.text
