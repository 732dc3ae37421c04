import pytest

pytest.importorskip("jwt")

import msgspec

from broker_server.server.certificates import Certificates
from broker_server.server.enrol import EnrolmentRefused, enrol, own_address
from broker_server.server.enrolments import Enrolments
from broker_server.server.keys import load_or_create
from broker_server.server.state import StateFolder
from devices.cli.settings import ConfigInvalid
from edge_runtime.wire import tokens
from edge_runtime.wire.errors import TokenRefused
from edge_runtime.wire.signing import public_hex

pytestmark = pytest.mark.workstation


def enrolled(tmp_path, **settings):
    out = tmp_path / "device" / "agent.toml"
    enrol("pi-01", out, **({"state": tmp_path / "state", "federation": "home"} | settings))
    return out, msgspec.toml.decode(out.read_bytes())


def test_enrol_writes_a_file_for_its_owner_alone(tmp_path):
    out, config = enrolled(tmp_path, url="mqtts://192.0.2.1:8883", data='da"ta')
    assert out.stat().st_mode & 0o777 == 0o600
    key = load_or_create(tmp_path / "state")
    claims = tokens.check(key.public_key(), config.pop("token"), federation="home")
    assert (claims.sub, claims.role, claims.gen) == ("pi-01", "device", 1)
    first = config.pop("certificate")
    assert "BEGIN CERTIFICATE" in first
    assert "BEGIN PRIVATE KEY" in first
    assert config == {
        "device": "pi-01",
        "federation": "home",
        "url": "mqtts://192.0.2.1:8883",
        "ca": Certificates(tmp_path / "state").ca_pem(),
        "code": Enrolments(tmp_path / "state").find("pi-01").code,
        "server_key": public_hex(key),
        "data": 'da"ta',
        "state": "state",
    }


def test_enrol_takes_the_url_of_the_server_that_ran_last(tmp_path):
    folder = StateFolder(tmp_path / "state")
    folder.set_url("mqtts://198.51.100.7:1884", certificate="other")
    folder.close()
    config = enrolled(tmp_path)[1]
    assert config["url"] == "mqtts://198.51.100.7:1884"
    assert "ca" not in config  # its certificate is of somebody else


def test_enrol_for_a_device_that_shares_its_machine_and_trusts_a_certificate(tmp_path):
    _, config = enrolled(tmp_path, threads=1, ca_file="ca.pem", engine="auto", meter="pmic")
    assert (config["threads"], config["ca_file"], config["engine"]) == (1, "ca.pem", "auto")
    assert config["meter"] == "pmic"


def test_enrol_before_a_server_ran(tmp_path):
    assert enrolled(tmp_path)[1]["url"].endswith(":8883")


def test_enrol_refuses_to_replace_a_file(tmp_path):
    out, first = enrolled(tmp_path)
    with pytest.raises(EnrolmentRefused, match="--force"):
        enrolled(tmp_path)
    assert msgspec.toml.decode(out.read_bytes()) == first
    enrolled(tmp_path, force=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"days": 0},
        {"days": float("nan")},
        {"url": "http://x"},
        {"url": "mqtt://u@h"},
    ],
)
def test_enrol_refuses(tmp_path, settings):
    with pytest.raises(EnrolmentRefused):
        enrolled(tmp_path, **settings)


@pytest.mark.parametrize("settings", [{"threads": 0}, {"threads": 1025}, {"engine": "steam"}, {"dta": "x"}])
def test_enrol_refuses_what_the_device_would_refuse(tmp_path, settings):
    with pytest.raises(ConfigInvalid, match=next(iter(settings))):
        enrolled(tmp_path, **settings)
    assert not (tmp_path / "device").exists()


def test_enrol_refuses_a_name(tmp_path):
    with pytest.raises(TokenRefused):
        enrol("../x", tmp_path / "a.toml", state=tmp_path, federation="home")


def test_own_address_of_a_named_host():
    assert own_address("10.1.2.3") == "10.1.2.3"
    assert own_address("0.0.0.0").count(".") == 3


def test_enrol_with_what_cannot_be_leaves_the_device_as_it_was(tmp_path):
    enrolled(tmp_path)
    for wrong, refused in (({"threads": 0}, ConfigInvalid), ({"days": 0.0}, EnrolmentRefused)):
        with pytest.raises(refused):
            enrolled(tmp_path, force=True, **wrong)
    assert Enrolments(tmp_path / "state").find("pi-01").generation == 1


def test_enrol_without_tls_off_this_machine_must_be_allowed_by_name(tmp_path):
    with pytest.raises(EnrolmentRefused, match="without TLS, so its token and the weights would cross the network"):
        enrolled(tmp_path, url="mqtt://192.0.2.1:1883")
    _, config = enrolled(tmp_path, url="mqtt://192.0.2.1:1883", insecure=True)
    assert config["insecure"]
    assert "ca" not in config
    assert "insecure" not in enrolled(tmp_path, url="mqtt://127.0.0.1:1883", force=True)[1]


def test_device_has_no_name_that_is_the_server_s_on_brokers_of_others(tmp_path):
    with pytest.raises(EnrolmentRefused, match="server is the server's own name"):
        enrol("server", tmp_path / "agent.toml", state=tmp_path / "state", federation="home")
    assert not (tmp_path / "agent.toml").exists()
