"""Who may come in, and through which broker."""

import datetime as dt
import ipaddress
import os
import pwd
import shutil
import subprocess
import time

import msgspec
import pytest

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from broker_server.server.state import read_url
from edge_runtime.wire import tokens
from edge_runtime.wire.link import Connected, Disconnected
from edge_runtime.wire.mqtt import MqttLink

pytestmark = pytest.mark.workstation
REFUSED = 5
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


def token(key, **changes):
    given = {"name": "pi", "federation": "home", "role": "device", "lifetime_s": 3600} | changes
    return tokens.issue(key, **given)


def test_agent_whose_token_is_not_good_is_refused_and_says_so(site):
    server = site.serve()
    site.until(server, "a device joins")
    config = site.enrol("pi", data=str(site.data("pi")))
    good = config.read_text()
    (line,) = (line for line in good.splitlines() if line.startswith("token"))
    strangers = {
        "garbage": "geheim",
        "expired": token(site.key, lifetime_s=-10),
        "another federation": token(site.key, federation="work"),
        "another device": token(site.key, name="other"),
        "another server's key": token(Ed25519PrivateKey.generate()),
        "a server's": token(site.key, name="server", role="server"),
    }
    for number, (name, bad) in enumerate(strangers.items()):
        config.write_text(good.replace(line, f'token = "{bad}"'))
        agent = site.run(f"stranger-{number}", "edge_runtime", "run", "--config", config)
        assert agent.wait() == REFUSED, (name, agent.said)
        sentence = agent.said.splitlines()[-1]
        assert sentence.startswith(f"error: {site.url}"), (name, sentence)
        assert "refused" in sentence
        assert "enrol pi again" in sentence
        assert bad not in agent.said
    config.write_text(good.replace(line, 'token = ""'))
    agent = site.run("none", "edge_runtime", "run", "--config", config)
    assert agent.wait() == 2
    assert "agent.toml: token" in agent.said
    nobody = MqttLink(site.url, client_id="pi", username="pi", password="")
    event = nobody.receive(30)
    nobody.close()
    assert isinstance(event, Disconnected)
    assert event.refused
    assert "has joined" not in server.said
    assert server.process.poll() is None


def test_federation_over_mosquitto(site):
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    settings = site.root / "mosquitto.conf"
    settings.write_text(f"listener {site.port} 127.0.0.1\nallow_anonymous true\n")
    broker = subprocess.Popen([MOSQUITTO, "-c", settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        server = site.serve("--broker", site.url, min_devices=2)
        models = site.ends(server, *(site.device(name) for name in "ab"))
        assert "WARNING: this broker lets anybody in" in server.said
    finally:
        broker.terminate()
        broker.wait()
    assert len(models) == 2
    assert read_url(site.state) == site.url


@pytest.fixture
def certificate(tmp_path):
    """A self-signed certificate for 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = tmp_path / "certificate.pem", tmp_path / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def test_federation_over_the_server_s_own_tls_without_anybody_doing_anything(site):
    server = site.serve(tls="always", min_devices=1, groups=1, merged_rounds=1)
    site.until(server, "a device joins")
    site.url = read_url(site.state)
    assert site.url == f"mqtts://127.0.0.1:{site.port}"
    device = site.device("a")
    site.ends(server, device)
    assert "BEGIN CERTIFICATE" in (site.root / "a" / "agent.toml").read_text()
    assert "INSECURE" not in server.said


def test_federation_over_mosquitto_as_we_configure_it_and_nobody_else_gets_in(site):
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    from broker_server.__main__ import main

    out, ca = site.root / "mosquitto", site.state / "tls" / "ca.pem"
    configs = {name: site.enrol(name, url=f"mqtts://127.0.0.1:{site.port}", data=str(site.data(name))) for name in "ab"}
    words = ["broker-config", "mosquitto", "--out", out, "--name", "127.0.0.1", "--listen", site.port]
    assert main([str(word) for word in [*words, "--state", site.state]]) == 0
    with (out / "mosquitto.conf").open("a") as file:
        file.write(f"user {pwd.getpwuid(os.getuid()).pw_name}\n")  # it would take an account of its own
    with subprocess.Popen([MOSQUITTO, "-c", out / "mosquitto.conf"], stderr=subprocess.DEVNULL) as broker:
        try:
            for user, password in (
                ("a", ""),
                ("server", "guess"),
                ("a", msgspec.toml.decode(configs["b"].read_bytes())["token"]),
            ):
                stranger = MqttLink(
                    f"mqtts://127.0.0.1:{site.port}", client_id="x", username=user, password=password, ca_file=ca
                )
                event = stranger.receive(30)
                while event is not None and not event.refused:  # it may not listen yet
                    event = stranger.receive(30)
                stranger.close()
                assert event is not None
            server = site.serve(
                "--broker",
                f"mqtts://127.0.0.1:{site.port}",
                "--ca-file",
                ca,
                "--token-file",
                site.state / "broker.password",
            )
            # Device b, by its own good password, speaks for a: the broker drops it, and the server would not hear it.
            mallory = MqttLink(
                f"mqtts://127.0.0.1:{site.port}",
                client_id="b",
                username="b",
                password=msgspec.toml.decode(configs["b"].read_bytes())["token"],
                ca_file=ca,
            )
            mallory.subscribe("mas/4/home/device/+/event", "mas/4/home/device/a/command")
            mallory.publish("mas/4/home/device/a/event", b"{}")
            while (event := mallory.receive(3)) is not None:
                assert not hasattr(event, "payload"), event
            mallory.close()
            devices = [site.run(f"device-{n}", "edge_runtime", "run", "--config", c) for n, c in configs.items()]
            site.ends(server, *devices)
            assert "refused " not in server.said
            assert "WARNING" not in server.said
        finally:
            broker.terminate()


def first_event(url, config, *, name, certificate):
    """What a client with a device's token meets that shows this certificate and key (PEM)."""
    config = msgspec.toml.decode(config.read_bytes())
    link = MqttLink(
        url, client_id=name, username=name, password=config["token"], ca_pem=config["ca"], certificate_file=certificate
    )
    try:
        return link.receive(30)
    finally:
        link.close(linger_s=0)


def certificate_of(config):
    path = config.with_name("first.pem")
    path.write_text(msgspec.toml.decode(config.read_bytes())["certificate"])
    return path


def test_broker_that_needs_certificates_lets_in_a_device_with_its_own_and_no_stolen_token(site):
    server = site.serve("--client-certificates", min_devices=9)
    site.until(server, "a device joins")
    site.url = read_url(site.state)
    assert site.url.startswith("mqtts://")
    a, b = (site.enrol(name, data=str(site.data(name))) for name in "ab")
    stolen = first_event(site.url, a, name="a", certificate=None)
    assert not stolen.refused, "its token is not even looked at"
    assert first_event(site.url, a, name="a", certificate=certificate_of(b)).refused
    device = site.run("device-a", "edge_runtime", "run", "--config", a)
    site.until(server, "a has joined")
    state = a.parent / "state"
    own = Ed25519PrivateKey.from_private_bytes(bytes.fromhex((state / "device.key").read_text())).public_key()
    while x509.load_pem_x509_certificate((state / "client.pem").read_bytes()).public_key() != own:
        assert device.process.poll() is None, device.said
        time.sleep(0.05)
    device.process.terminate()
    device.wait()
    again = site.run("again", "edge_runtime", "run", "--config", a)  # with the certificate for its own key
    site.until(again, "connected")
    site.until(server, "refused 127.0.0.1: it shows no certificate of its own")
    site.until(server, "refused a: 'a', enrolment 1, needs a certificate of its own: not 'b', enrolment 1")
    audit = (site.state / "audit.jsonl").read_text()
    assert '"what":"refused","device":"127.0.0.1","why":"it shows no certificate' in audit
    assert audit.count('"what":"connected","device":"a"') >= 2


def test_mosquitto_lets_in_certificates_alone_and_none_that_is_revoked(site, tmp_path):
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    from broker_server.__main__ import main
    from broker_server.server.certificates import Certificates

    out, url = site.root / "mosquitto", f"mqtts://127.0.0.1:{site.port}"
    a, b = (site.enrol(name, url=url) for name in "ab")
    certificates = {config: certificate_of(config) for config in (a, b)}
    words = ["broker-config", "mosquitto", "--out", out, "--name", "127.0.0.1", "--listen", site.port]
    words += ["--client-certificates", "--state", site.state]

    def broker():
        assert main([str(word) for word in words]) == 0
        with (out / "mosquitto.conf").open("a") as file:
            file.write(f"user {pwd.getpwuid(os.getuid()).pw_name}\n")
        return subprocess.Popen([MOSQUITTO, "-c", out / "mosquitto.conf"], stderr=subprocess.DEVNULL)

    def meets(config, certificate, *, name):
        until_s = time.monotonic() + 30
        while True:  # it may not listen yet
            event = first_event(url, config, name=name, certificate=certificate)
            if "nothing listens" not in getattr(event, "reason", "") or time.monotonic() > until_s:
                return event
            time.sleep(0.1)

    process = broker()
    try:
        assert meets(b, certificates[b], name="b") == Connected()
        assert isinstance(meets(a, None, name="a"), Disconnected)
        server = MqttLink(
            url,
            client_id="server/home",
            username="server",
            password="",
            ca_file=site.state / "tls" / "ca.pem",
            certificate_file=Certificates(site.state).own_client("server"),
        )
        assert server.receive(30) == Connected()
        server.subscribe("mas/4/home/device/+/event")
        time.sleep(0.3)
        b_as_a = MqttLink(
            url,
            client_id="a",
            username="a",
            password=msgspec.toml.decode(a.read_bytes())["token"],
            ca_file=site.state / "tls" / "ca.pem",
            certificate_file=certificates[b],
        )
        for name in "ab":
            b_as_a.publish(f"mas/4/home/device/{name}/event", b"x")
        heard = server.receive(30)
        assert heard.topic == "mas/4/home/device/b/event", "who it is says the certificate, not the name that it gives"
        assert server.receive(1) is None
        for link in (server, b_as_a):
            link.close(linger_s=0)
    finally:
        process.terminate()
        process.wait()
    assert main(["revoke", "b", "--state", str(site.state)]) == 0
    process = broker()
    try:
        assert meets(a, certificates[a], name="a") == Connected()
        assert isinstance(meets(b, certificates[b], name="b"), Disconnected)
    finally:
        process.terminate()
        process.wait()


def test_federation_whose_server_has_a_new_key_goes_on_with_the_devices_that_are_there(site):
    from broker_server.__main__ import main

    config = site.enrol("a", data=str(site.data("a")))
    assert main(["roll-key", "--state", str(site.state)]) == 0
    server = site.serve(min_devices=1, groups=1, merged_rounds=1)
    device = site.run("device-a", "edge_runtime", "run", "--config", config)
    site.ends(server, device)
    assert "the server has a new key" in device.said


def test_agent_goes_nowhere_without_tls_unless_that_is_allowed(site):
    config = site.enrol("a", url="mqtt://192.0.2.1:1883", insecure=True, data=str(site.data("a")))
    config.write_text(config.read_text().replace("insecure = true\n", ""))
    agent = site.run("a", "edge_runtime", "run", "--config", config)
    assert agent.wait() == 2
    assert "mqtt://192.0.2.1:1883 is without TLS: enrol the device with an mqtts:// URL" in agent.said


def test_federation_over_tls(site, certificate):
    file, key = certificate
    server = site.serve(certificate=file, key=key, min_devices=1, groups=1, merged_rounds=1)
    site.until(server, "a device joins")
    url = read_url(site.state)
    assert url == f"mqtts://127.0.0.1:{site.port}"
    distrustful = site.device("a", url=url)
    time.sleep(2.0)
    trusting = site.device("b", url=url, ca_file=str(file))
    site.ends(server, trusting)
    assert site.report()["rounds"][0]["clients"] == ["b"]
    assert distrustful.process.poll() is None
    assert "is of a CA that this board does not trust" in distrustful.said
    assert "refused 127.0.0.1: it does not know the CA of this server's certificate" in server.said
