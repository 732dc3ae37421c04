"""TLS and clocks that do not fit, with a real broker and a real client: both ends say what is wrong."""

import datetime as dt
import ssl

import pytest

from broker_server.mqtt.handshake_fault import handshake_fault
from broker_server.server.certificates import Certificates
from edge_runtime.wire.link import Disconnected

pytestmark = pytest.mark.process

PATIENCE_S = 30.0


def shifted(days):
    return dt.datetime.now(dt.timezone.utc) + dt.timedelta(days=days)


@pytest.fixture
def faults(make_site, tmp_path, until):
    """What client and broker say of a connection, for a certificate's names, its age and who trusts its CA."""

    def found(names=("127.0.0.1",), days=0.0, *, trusts=True, scheme="mqtts", has_tls=True):
        certificates = Certificates(tmp_path / "server")
        ca = certificates.ca_pem()
        pem, key = Certificates(tmp_path / "server", shifted(days)).issue(names)
        files = tmp_path / "server.pem", tmp_path / "server.key"
        for path, data in zip(files, (pem, key), strict=True):
            path.write_bytes(data)
        trusted = tmp_path / "trusted.pem"
        trusted.write_text(ca if trusts else Certificates(tmp_path / "other").ca_pem())
        said = []
        more = {"certificate_file": files[0], "key_file": files[1]} if has_tls else {}
        site = make_site(**more, on_handshake_failed=lambda *fault: said.append(fault))
        ca_file = trusted if scheme == "mqtts" else None
        event = site.device("pi", scheme=scheme, ca_file=ca_file, wait=False).receive(PATIENCE_S)
        assert isinstance(event, Disconnected)
        assert not event.refused, "a clock may be set, a server started: it tries again"
        if has_tls:
            until(lambda: site.broker.stats.closed["handshake"])
        return event.reason, said

    return found


def test_certificate_that_is_not_valid_yet_by_the_boards_clock(faults):
    here, there = faults(days=30.0)
    today = dt.datetime.now().astimezone().date().isoformat()
    assert here == f"the server's certificate is not valid yet by this board's clock, {today}: set the clock"
    assert there[0][0] == "127.0.0.1"
    assert "not valid yet by its clock" in there[0][1]


def test_certificate_that_has_expired_by_the_boards_clock(faults):
    here, there = faults(days=-400.0)
    assert here.startswith("the server's certificate has expired by this board's clock")
    assert there[0][1].startswith("by its clock this server's certificate has expired")


def test_certificate_of_another_ca(faults):
    here, there = faults(trusts=False)
    assert "is of a CA that this board does not trust: enrol the board again" in here
    assert there[0][1] == "it does not know the CA of this server's certificate: enrol the device again"


def test_certificate_for_another_name(faults):
    here, there = faults(names=("server.lan",))
    assert here.startswith("the server's certificate is not for 127.0.0.1: start it with --host-name 127.0.0.1")
    assert "for other names than it uses" in there[0][1]


def test_client_without_tls(faults):
    here, there = faults(scheme="mqtt")
    assert here.endswith("closed the connection before it answered: it may speak TLS alone, for which the URL begins "
                         "with mqtts://")  # fmt: skip
    assert there[0][1].startswith("it speaks no TLS")


def test_broker_without_tls(faults):
    here, there = faults(has_tls=False)
    assert "speaks no TLS" in here or "closed the connection before it was made" in here
    assert there == []


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("TLSV1_ALERT_UNKNOWN_CA", "does not know the CA"),
        ("SSL/TLS alert unknown ca", "does not know the CA"),
        ("SSLV3_ALERT_CERTIFICATE_UNKNOWN", "its own log says why"),
        ("HTTP_REQUEST", "it speaks HTTP"),
        ("NO_SHARED_CIPHER", "TLS older than 1.2"),
        ("SOMETHING_ELSE", None),
        (None, None),
    ],
)
def test_fault_of_a_handshake_by_its_reason(reason, words):
    exc = ssl.SSLError(1, "text")
    exc.reason = reason
    found = handshake_fault(exc)
    assert found is None if words is None else words in found


def test_fault_of_a_client_that_went_away_is_none():
    assert handshake_fault(ConnectionResetError()) is None
    assert handshake_fault(TimeoutError()) is None
