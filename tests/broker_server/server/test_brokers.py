"""Configurations of brokers of others. tests/federation/test_other_brokers.py runs the brokers themselves."""

import base64
import hashlib
import re

import msgspec
import pytest

from broker_server.server.brokers import aedes, mosquitto, nats, rabbitmq
from broker_server.server.brokers.access import PASSWORD, BrokerUnfit, access, password_hash
from broker_server.server.certificates import Certificates
from broker_server.server.enrol import enrol
from broker_server.server.enrolments import Enrolments

pytestmark = pytest.mark.workstation
OWN = "mas/4/home/device/a"


@pytest.fixture
def state(tmp_path):
    """A state folder with device a, and device b, which was revoked."""
    for name in ("a", "b"):
        enrol(name, tmp_path / name, state=tmp_path / "state", federation="home", url="mqtts://host:8883")
    Enrolments(tmp_path / "state").revoke("b")
    return tmp_path / "state"


@pytest.fixture
def allowed(state):
    return access(state, federation="home", port=8883, names=["host"])


@pytest.fixture
def cluster(state):
    return access(state, federation="home", port=8883, names=["10.0.0.1", "10.0.0.2", "10.0.0.3"], is_cluster=True)


def token(tmp_path, name="a"):
    return msgspec.toml.decode((tmp_path / name).read_bytes())["token"]


def test_who_is_enrolled_is_let_in_with_its_token_and_the_server_with_a_password_that_stays(tmp_path, state, allowed):
    server, device = allowed.users
    assert (server.name, server.password) == ("server", (state / PASSWORD).read_text())
    assert (device.name, device.password) == ("a", token(tmp_path))
    assert server.writes == server.reads == ("mas/4/home/#",)
    assert device.writes == tuple(f"{OWN}/{each}" for each in ("status", "event", "upload/+/+", "split_learning/up"))
    assert set(device.reads) == {
        f"{OWN}/{each}" for each in ("status", "command", "split_learning/down", "download/+/+")
    }
    assert access(state, federation="home", port=8883, names=["host"]).users == allowed.users
    assert allowed.ca.decode() == Certificates(state).ca_pem()


def test_device_whose_enrolment_has_no_token_is_named(state):
    path = state / "devices" / "a.json"
    old = msgspec.json.decode(path.read_bytes())
    del old["token"]
    path.write_bytes(msgspec.json.encode(old | {"password": "$7$101$"}))
    with pytest.raises(BrokerUnfit, match="a was enrolled by an older version, .* enrol it again"):
        access(state, federation="home", port=8883, names=["host"])


def test_mosquitto_gets_an_acl_and_passwords_as_it_reads_them(tmp_path, allowed):
    out = tmp_path / "broker"
    (command,) = mosquitto.write(out, allowed)
    assert command == f"mosquitto -c {out}/mosquitto.conf"
    users = dict(line.split(":") for line in (out / "passwords").read_text().splitlines())
    assert list(users) == ["server", "a"]
    _, kind, rounds, salt, digest = users["a"].split("$")
    assert (kind, rounds, len(base64.b64decode(salt))) == ("7", "101", 12)
    derived = hashlib.pbkdf2_hmac("sha512", token(tmp_path).encode(), base64.b64decode(salt), 101)
    assert base64.b64decode(digest) == derived
    for name in ("passwords", "broker.key"):
        assert (out / name).stat().st_mode & 0o777 == 0o600
    conf = (out / "mosquitto.conf").read_text().splitlines()
    assert "allow_anonymous false" in conf
    assert "use_username_as_clientid true" in conf
    server, device = (out / "acl").read_text().strip().split("\n\n")
    assert server == "user server\ntopic readwrite mas/4/home/#"
    assert f"topic write {OWN}/event" in device.splitlines()
    assert f"topic readwrite {OWN}/status" in device.splitlines()
    assert "#" not in device


def test_rabbitmq_s_patterns_hold_what_each_may_touch_and_nothing_else(tmp_path, allowed):
    out = tmp_path / "broker"
    (command,) = rabbitmq.write(out, allowed)
    assert command == f"RABBITMQ_CONF_ENV_FILE={out}/mas1/rabbitmq-env.conf rabbitmq-server"
    made = msgspec.json.decode((out / "definitions.json").read_bytes())
    assert (out / "definitions.json").stat().st_mode & 0o777 == 0o600
    server, device = made["users"]
    hashed = base64.b64decode(device["password_hash"])
    assert hashed[4:] == hashlib.sha512(hashed[:4] + token(tmp_path).encode()).digest()
    assert server["name"] == "server"
    topics = made["topic_permissions"][1]
    assert topics["user"] == "a"
    own = OWN.replace("/", ".")
    for key in (f"{own}.event", f"{own}.upload.{'d' * 64}.7"):
        assert re.search(topics["write"], key)
    for key in (f"{own}.command", f"{own}.events", f"x.{own}.event", f"{own}.upload.d.7.8", own.replace(".a", ".b")):
        assert not re.search(topics["write"], key)
    assert re.search(topics["read"], f"{own}.download.*.*")
    assert not re.search(topics["read"], f"{own.removesuffix('.a')}.*.event")
    resources = made["permissions"][1]
    assert re.search(resources["configure"], "mqtt-subscription-aqos1")
    assert not re.search(resources["configure"], "mqtt-subscription-server/homeqos1")
    assert re.search(made["permissions"][0]["configure"], "mqtt-subscription-server/homeqos1")
    conf = (out / "mas1" / "rabbitmq.conf").read_text().splitlines()
    assert "mqtt.allow_anonymous = false" in conf
    assert "mqtt.listeners.tcp = none" in conf
    assert not any(line.startswith("cluster_formation") for line in conf)


def test_nats_gets_subjects_and_tokens_in_a_file_for_its_owner(tmp_path, allowed):
    out = tmp_path / "broker"
    (command,) = nats.write(out, allowed)
    path = out / "mas1" / "nats.conf"
    assert command == f"nats-server -c {path}"
    assert path.stat().st_mode & 0o777 == 0o600
    conf = msgspec.json.decode(path.read_bytes())
    device = conf["authorization"]["users"][1]
    assert (device["user"], device["password"]) == ("a", token(tmp_path))
    own = OWN.replace("/", ".")
    assert f"{own}.upload.*.*" in device["permissions"]["publish"]["allow"]
    assert f"{own}.command" in device["permissions"]["subscribe"]["allow"]
    assert conf["authorization"]["users"][0]["permissions"]["publish"]["allow"] == ["mas.4.home.>"]
    assert "cluster" not in conf


def test_aedes_gets_a_program_and_who_may_touch_what(tmp_path, allowed):
    out = tmp_path / "broker"
    assert aedes.write(out, allowed)[-1] == f"node {out}/aedes.mjs"
    conf = msgspec.json.decode((out / "aedes.json").read_bytes())
    assert list(conf["users"]) == ["server", "a"]
    assert conf["users"]["server"]["client"] == "server/home"
    assert f"{OWN}/event" in conf["users"]["a"]["writes"]
    assert token(tmp_path) not in (out / "aedes.json").read_text()
    assert b"createBroker" in (out / "aedes.mjs").read_bytes()


def test_nodes_of_a_cluster_listen_each_at_its_own_address_and_know_the_others(tmp_path, cluster):
    out = tmp_path / "broker"
    assert len(rabbitmq.write(out, cluster)) == len(nats.write(out, cluster)) == 3
    conf = (out / "mas2" / "rabbitmq.conf").read_text().splitlines()
    assert "mqtt.listeners.ssl.default = 10.0.0.2:8883" in conf
    assert "cluster_formation.classic_config.nodes.3 = mas3@10.0.0.3" in conf
    assert "mqtt.durable_queue_type = quorum" in conf
    assert "NODENAME=mas2@10.0.0.2" in (out / "mas2" / "rabbitmq-env.conf").read_text()
    made = msgspec.json.decode((out / "mas2" / "nats.conf").read_bytes())
    assert made["mqtt"]["listen"] == "10.0.0.2:8883"
    assert made["mqtt"]["stream_replicas"] == 3
    assert made["cluster"]["routes"] == ["nats://10.0.0.1:6222", "nats://10.0.0.3:6222"]


@pytest.mark.parametrize("write", [mosquitto.write, aedes.write])
def test_brokers_that_form_no_cluster_say_so(tmp_path, cluster, write):
    with pytest.raises(BrokerUnfit, match="take rabbitmq or nats, or leave out --cluster"):
        write(tmp_path / "broker", cluster)


def test_mosquitto_takes_names_from_certificates_and_others_say_that_they_do_not(tmp_path, state):
    allowed = access(state, federation="home", port=8883, names=["host"], client_certificates=True)
    out = tmp_path / "broker"
    mosquitto.write(out, allowed)
    conf = (out / "mosquitto.conf").read_text().splitlines()
    assert "require_certificate true" in conf
    assert f"crlfile {out}/crl.pem" in conf
    assert b"BEGIN X509 CRL" in (out / "crl.pem").read_bytes()
    for write in (rabbitmq.write, nats.write, aedes.write):
        with pytest.raises(BrokerUnfit, match="client certificates are for Mosquitto"):
            write(out, allowed)


@pytest.mark.parametrize("write", [rabbitmq.write, nats.write])
def test_names_with_dots_are_refused_where_they_would_be_levels(tmp_path, state, write):
    enrol("hall.1", tmp_path / "hall", state=state, federation="home", url="mqtts://host:8883")
    with pytest.raises(BrokerUnfit, match=r"name hall\.1 without one"):
        write(tmp_path / "broker", access(state, federation="home", port=8883, names=["host"]))


def test_hash_of_a_password_is_another_each_time():
    assert password_hash("secret") != password_hash("secret")
    assert rabbitmq.password_hash("secret") != rabbitmq.password_hash("secret")
