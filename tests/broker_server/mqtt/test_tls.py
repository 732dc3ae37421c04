"""Certificates of clients, with a real broker: who gets in, who does not, and what each end says."""

import datetime as dt
import ssl

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker_server.mqtt.auth import Certified
from broker_server.mqtt.tls import TlsUnusable, certified, server_context
from broker_server.server.certificates import Certificates
from edge_runtime.wire.link import Disconnected

PATIENCE_S = 30.0


def pem(key):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture
def shown(tmp_path):
    """A file with the certificate of a device and its key."""

    def make(name="dev1", generation=0, *, days=10.0, certificates=None):
        key = Ed25519PrivateKey.generate()
        of = certificates or Certificates(tmp_path)
        made = of.client(name, key.public_key(), days=days, serial=str(generation))
        path = tmp_path / f"{made.serial_number:x}.pem"
        path.write_bytes(pem(key) + made.public_bytes(Encoding.PEM))
        return path

    return make


@pytest.fixture
def asking(make_site, tmp_path):
    """A broker that asks for certificates, and what it says of handshakes that fail."""
    certificates, said = Certificates(tmp_path), []
    own = certificates.server(["127.0.0.1"])
    site = make_site(
        certificate_file=own.certificate,
        key_file=own.key,
        client_ca_file=certificates.ca_file(),
        on_handshake_failed=lambda *fault: said.append(fault),
    )
    return site, said


def refusal(site, tmp_path, file):
    link = site.device(
        "dev1", scheme="mqtts", ca_file=Certificates(tmp_path).ca_file(), certificate_file=file, wait=False
    )
    event = link.receive(PATIENCE_S)
    assert isinstance(event, Disconnected)
    return event


@pytest.mark.process
def test_device_with_its_certificate_gets_in_and_without_one_of_ours_nobody(asking, shown, tmp_path, until):
    site, said = asking
    ca = Certificates(tmp_path).ca_file()
    site.device("dev1", scheme="mqtts", ca_file=ca, certificate_file=shown())
    long_ago = dt.datetime.now(dt.timezone.utc) - dt.timedelta(days=20)
    of_server = tmp_path / "as_client.pem"
    of_server.write_bytes(b"".join(Certificates(tmp_path).issue(["127.0.0.1"])))
    strangers = {
        "shows no certificate": None,
        "is not one that this server's CA has given a device": shown(certificates=Certificates(tmp_path / "other")),
        "has expired, by this machine's clock": shown(certificates=Certificates(tmp_path, long_ago)),
    }
    for count, (sentence, file) in enumerate(strangers.items(), start=1):
        assert not refusal(site, tmp_path, file).refused
        until(lambda count=count: site.broker.stats.closed["handshake"] >= count)
        assert sentence in said[-1][1], said
    assert not refusal(site, tmp_path, of_server).refused, "a server's certificate is none of a client"


@pytest.mark.process
def test_certificate_that_is_read_anew_for_each_connection_may_become_unusable(asking, shown, tmp_path):
    site, _ = asking
    file = shown()
    link = site.device("dev1", scheme="mqtts", ca_file=Certificates(tmp_path).ca_file(), certificate_file=file)
    file.write_text("damaged")
    assert site.device("dev1", scheme="mqtts", ca_file=Certificates(tmp_path).ca_file(), certificate_file=shown())
    assert isinstance(link.receive(PATIENCE_S), Disconnected)  # the other took its place
    assert link.receive(PATIENCE_S) is not None, "it comes back with the certificate that it had"


@pytest.mark.parametrize(
    ("found", "whose"),
    [
        (None, None),
        ({}, None),
        ({"subject": ((("commonName", "a"),), (("serialNumber", "12"),))}, Certified("a", 12)),
        ({"subject": ((("commonName", "a"),),)}, None),
        ({"subject": ((("serialNumber", "1"),),)}, None),
        ({"subject": ((("commonName", "a"),), (("serialNumber", "²"),))}, None),
    ],
)
def test_certificate_says_whose_it_is_or_nothing(found, whose):
    assert certified(found) == whose


def test_files_that_cannot_be_used_are_named(tmp_path):
    own, none = Certificates(tmp_path).server(["localhost"]), tmp_path / "none.pem"
    none.touch()
    with pytest.raises(TlsUnusable, match="are not a PEM certificate and its key"):
        server_context(none, own.key, None)
    with pytest.raises(TlsUnusable, match=r"none\.pem has no PEM certificates"):
        server_context(own.certificate, own.key, none)


def test_no_version_of_tls_before_1_2_is_spoken(tmp_path):
    own = Certificates(tmp_path).server(["localhost"])
    assert server_context(own.certificate, own.key, None).minimum_version == ssl.TLSVersion.TLSv1_2
