"""The same federation on each broker: TLS, authentication, either order, broker and server restarted in mid-round.

Brokers are as `broker-config` configures them, run by the user of the test. A broker that is not here is skipped.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from broker_server.__main__ import main
from broker_server.server.certificates import Certificates
from edge_runtime.wire.link import Connected, Disconnected
from edge_runtime.wire.mqtt import MqttLink

pytestmark = [pytest.mark.workstation, pytest.mark.brokers]
ROOT = Path(__file__).parents[2]
AEDES = Path(os.environ.get("MAS_AEDES", ROOT / ".brokers")) / "node_modules"
PLACES = "/usr/lib/rabbitmq/bin:/usr/sbin"
LIMIT_S = 120.0
KINDS = ("mosquitto", "rabbitmq", "nats", "aedes")
SETTINGS = {"min_devices": 2, "quorum": 2, "merged_rounds": 2, "local_epochs": 100, "round_deadline_s": 600}


def found(program):
    """The path of a program; RabbitMQ's own script, for its wrapper in sbin is for root."""
    path = shutil.which(program, path=f"{PLACES}:{os.environ['PATH']}")
    if path is None:
        pytest.skip(f"{program} is not installed: make apt-brokers")
    return path


class Node:
    """A broker, or a node of one, that is started, killed and started again."""

    def __init__(self, folder, command, address, **environment):
        self.folder, self.command, self.address, self.environment = folder, command, address, environment
        self.start()

    def start(self):
        with (self.folder / f"{self.address[0]}.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,  # RabbitMQ is a script with children
            )

    def until_it_listens(self):
        until_s = time.monotonic() + LIMIT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(self.address, 1.0):
                return
            assert self.process.poll() is None, self.said
            assert time.monotonic() < until_s, self.said
            time.sleep(0.2)

    @property
    def said(self):
        return (self.folder / f"{self.address[0]}.log").read_text()[-3000:]

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def configured(kind, site, names, *flags):
    out = site.root / "broker"
    words = ["broker-config", kind, "--out", out, "--listen", site.port, "--state", site.state, *flags]
    words += [word for name in names for word in ("--name", name)]
    assert main([str(word) for word in words]) == 0
    return out


def nodes(kind, site, names=("127.0.0.1",), *flags):
    """Configure a broker for who is enrolled, and start it; its nodes."""
    programs = {"mosquitto": "mosquitto", "rabbitmq": "rabbitmq-server", "nats": "nats-server", "aedes": "node"}
    program = found(programs[kind])
    out = configured(kind, site, names, *flags)
    places = [out / f"mas{number}" for number in range(1, len(names) + 1)]
    match kind:
        case "mosquitto":
            with (out / "mosquitto.conf").open("a") as file:
                file.write(f"user {pwd.getpwuid(os.getuid()).pw_name}\n")  # it would take an account of its own
            commands = [([program, "-c", out / "mosquitto.conf"], {})]
        case "rabbitmq":
            home = {"HOME": str(out), "ERL_EPMD_PORT": str(site.port + 1)}
            shutil.copy(out / "cookie", out / ".erlang.cookie")
            commands = [
                ([program], {**home, "RABBITMQ_CONF_ENV_FILE": str(each / "rabbitmq-env.conf")}) for each in places
            ]
        case "nats":
            commands = [([program, "-c", each / "nats.conf"], {}) for each in places]
        case "aedes":
            if not AEDES.is_dir():
                pytest.skip("aedes is not installed: make test-brokers")
            (out / "node_modules").symlink_to(AEDES)
            commands = [([program, out / "aedes.mjs"], {})]
    return [
        Node(out, [str(word) for word in command], (name, site.port), **environment)
        for name, (command, environment) in zip(names, commands, strict=True)
    ]


@pytest.fixture
def start(request):
    """Start a broker's nodes; they end with the test."""
    started = []

    def _start(*arguments):
        started.extend(nodes(*arguments))
        for node in started:
            node.until_it_listens()
        return started

    yield _start
    for node in started:
        node.kill()
    for node in started[:1]:
        if "ERL_EPMD_PORT" in node.environment:  # RabbitMQ's own name service outlives it
            epmd = {**os.environ, **node.environment}
            subprocess.run(
                ["epmd", "-kill"], env=epmd, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )


def served(site, url):
    trust = ("--ca-file", site.state / "tls" / "ca.pem", "--token-file", site.state / "broker.password")
    return site.serve("--broker", url, *trust, **SETTINGS)


def devices(site, configs):
    return [site.run(f"device-{name}", "edge_runtime", "run", "--config", path) for name, path in configs.items()]


@pytest.fixture(scope="module")
def undisturbed(shared_site):
    """The models of a run on the embedded broker, in which nothing fails."""
    server = shared_site.serve(**SETTINGS)
    return shared_site.ends(server, *(shared_site.device(name) for name in "ab"))


def refused(url, ca, **who):
    link = MqttLink(url, ca_file=ca, clean_session=True, **who)
    try:
        event = link.receive(30)
        assert isinstance(event, Connected | Disconnected), event
        return isinstance(event, Disconnected)
    finally:
        link.close()


@pytest.mark.parametrize("order", ["devices first, server killed", "server first, broker killed"])
@pytest.mark.parametrize("kind", KINDS)
def test_federation_ends_in_the_same_weights(site, start, undisturbed, kind, order):
    url = f"mqtts://127.0.0.1:{site.port}"
    configs = {name: site.enrol(name, url=url, data=str(site.data(name))) for name in "ab"}
    (broker,) = start(kind, site)
    if order.startswith("devices"):
        boards = devices(site, configs)
        for board in boards:
            site.until(board, "connected")
        server = served(site, url)
    else:
        server = served(site, url)
        site.until(server, "a device joins")
        boards = devices(site, configs)
    site.until(boards[0], "train ")
    if order.endswith("server killed"):
        assert server.again()
    else:
        broker.kill()
        time.sleep(1.0)
        broker.start()
    assert site.ends(server, *boards) == undisturbed
    assert "WARNING" not in server.said
    assert "has joined" in server.said


@pytest.mark.parametrize("order", ["devices first", "server first"])
def test_federation_on_the_embedded_broker_which_is_killed_with_the_server(site, undisturbed, order):
    url = f"mqtts://127.0.0.1:{site.port}"
    configs = {
        name: site.enrol(name, url=url, ca=Certificates(site.state).ca_pem(), data=str(site.data(name)))
        for name in "ab"
    }
    if order == "devices first":
        boards = devices(site, configs)
        site.until(boards[0], "nothing listens at")
        server = site.serve("--tls", "always", **SETTINGS)
    else:
        server = site.serve("--tls", "always", **SETTINGS)
        site.until(server, "a device joins")
        boards = devices(site, configs)
    site.until(boards[0], "train ")
    assert server.again()
    assert site.ends(server, *boards) == undisturbed


@pytest.mark.parametrize("kind", ["rabbitmq", "nats"])
def test_federation_on_a_cluster_survives_a_node(site, start, undisturbed, kind):
    names = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]

    def url(first):
        return "mqtts://" + ",".join(f"{name}:{site.port}" for name in names[first:] + names[:first])

    configs = {
        name: site.enrol(name, url=url(at), data=str(site.data(name))) for at, name in enumerate("ab")
    }  # a and the server at the first node, b at the second
    first, *others = start(kind, site, names, "--cluster")
    server = served(site, url(0))
    boards = devices(site, configs)
    for board in boards:
        site.until(board, "train ")
    first.kill()
    assert site.ends(server, *boards) == undisturbed
    assert all(node.process.poll() is None for node in others)
    assert "the connection to the broker is lost" in server.said


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_else_gets_in_and_each_touches_its_own_topics(site, start, kind):
    url, ca = f"mqtts://127.0.0.1:{site.port}", site.state / "tls" / "ca.pem"
    tokens = {}
    for name in "ab":
        tokens[name] = msgspec.toml.decode(site.enrol(name, url=url).read_bytes())["token"]
    start(kind, site)
    for who, password in (("a", "guess"), ("a", tokens["b"]), ("server", tokens["a"]), ("nobody", "guess")):
        assert refused(url, ca, client_id=who, username=who, password=password), who
    server = MqttLink(
        url,
        client_id="server/home",
        username="server",
        password=(site.state / "broker.password").read_text(),
        ca_file=ca,
        clean_session=True,
    )
    device, mallory = (
        MqttLink(url, client_id=name, username=name, password=tokens[name], ca_file=ca, clean_session=True)
        for name in "ab"
    )
    try:
        assert isinstance(server.receive(30), Connected)
        assert isinstance(device.receive(30), Connected)
        server.subscribe("mas/4/home/device/+/event", "mas/4/home/device/+/upload/+/+")
        device.subscribe("mas/4/home/device/a/command")
        mallory.subscribe("mas/4/home/device/a/command", "mas/4/home/device/+/event")
        mallory.publish("mas/4/home/device/a/event", b"a lie")
        time.sleep(2.0)
        server.publish("mas/4/home/device/a/command", b"for a")
        device.publish(f"mas/4/home/device/a/upload/{'d' * 64}/0", b"of a")
        assert device.receive(30).payload == b"for a"
        assert server.receive(30).payload == b"of a"
        until_s = time.monotonic() + 3.0
        while time.monotonic() < until_s:
            assert not hasattr(mallory.receive(0.5), "payload")
    finally:
        for link in (server, device, mallory):
            link.close(linger_s=0.0)
