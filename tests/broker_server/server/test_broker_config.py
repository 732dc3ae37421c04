import base64
import hashlib

import pytest

from broker_server.server.broker_config import PASSWORD, mosquitto, password_hash
from broker_server.server.certificates import Certificates
from broker_server.server.enrol import enrol
from broker_server.server.enrolments import Enrolments

pytestmark = pytest.mark.workstation


def test_password_is_kept_as_mosquitto_reads_it():
    _, kind, rounds, salt, digest = password_hash("secret").split("$")
    assert (kind, rounds, len(base64.b64decode(salt))) == ("7", "101", 12)
    assert base64.b64decode(digest) == hashlib.pbkdf2_hmac("sha512", b"secret", base64.b64decode(salt), 101)


def test_configuration_lets_in_who_is_enrolled_and_nobody_else(tmp_path):
    state, out = tmp_path / "state", tmp_path / "broker"
    for name in ("a", "b"):
        enrol(name, tmp_path / name, state=state, federation="home", url="mqtts://host:8883")
    Enrolments(state).revoke("b")
    password = mosquitto(out, state=state, federation="home", port=8883, names=["host"])
    assert password == state / PASSWORD
    users = [line.split(":")[0] for line in (out / "passwords").read_text().splitlines()]
    assert users == ["server", "a"]
    for name in ("passwords", "broker.key"):
        assert (out / name).stat().st_mode & 0o777 == 0o600
    conf = (out / "mosquitto.conf").read_text().splitlines()
    assert "allow_anonymous false" in conf
    assert "use_username_as_clientid true" in conf
    acl = (out / "acl").read_text()
    assert "pattern write mas/4/home/device/%u/event\n" in acl
    assert "#" not in acl.replace("mas/4/home/#", "")  # for the server alone
    again = password.read_text()
    mosquitto(out, state=state, federation="home", port=8883, names=["host"])
    assert password.read_text() == again
    assert Certificates(state).ca_pem() == (state / "tls" / "ca.pem").read_text()
