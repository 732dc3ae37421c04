import datetime as dt
import socket
import ssl
import threading

import pytest

from broker_server.server.certificates import SERVER_DAYS, Certificates, CertificatesInvalid

NOW = dt.datetime(2026, 11, 30, tzinfo=dt.timezone.utc)
NAMES = {"localhost", "127.0.0.1", "server.lan"}


def test_certificates_are_made_once_and_keys_are_for_their_owner_alone(tmp_path):
    made = Certificates(tmp_path).server(NAMES)
    again = Certificates(tmp_path).server(NAMES)
    assert (made.is_new, again.is_new) == (True, False)
    assert (tmp_path / "tls").stat().st_mode & 0o777 == 0o700
    for key in ("ca.key", "server.key"):
        assert (tmp_path / "tls" / key).stat().st_mode & 0o777 == 0o600
    assert Certificates(tmp_path).ca_pem() == (tmp_path / "tls" / "ca.pem").read_text()


def test_certificate_is_made_again_for_other_names_and_before_it_expires_and_the_ca_stays(tmp_path):
    def certificates(days=0):
        return Certificates(tmp_path, NOW + dt.timedelta(days=days))

    ca = certificates().ca_pem()
    certificates().server(NAMES)
    assert not certificates(SERVER_DAYS / 2).server(NAMES).is_new
    assert certificates(SERVER_DAYS * 0.7).server(NAMES).is_new
    assert not certificates(SERVER_DAYS).server(NAMES).is_new
    assert certificates(SERVER_DAYS).server({"localhost"}).is_new
    assert certificates(SERVER_DAYS).ca_pem() == ca


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "server.lan"])
def test_client_that_pins_the_ca_takes_the_certificate_under_its_names_alone(tmp_path, name):
    made = Certificates(tmp_path).server(NAMES)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(made.certificate, made.key)
    client = ssl.create_default_context(cadata=Certificates(tmp_path).ca_pem())
    stranger = ssl.create_default_context(cadata=Certificates(tmp_path / "other").ca_pem())
    assert shake(server, client, name) == "TLSv1.3"
    for context, called in ((client, "other.lan"), (stranger, name)):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake(server, context, called)


def shake(server, client, name):
    """The version of TLS on which both ends agree."""
    one, two = socket.socketpair()

    def serve():
        try:
            server.wrap_socket(two, server_side=True).close()
        except OSError:
            two.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(one, server_hostname=name) as joined:
            return joined.version()
    finally:
        one.close()
        thread.join()


@pytest.mark.parametrize(("name", "text"), [("ca.pem", "x"), ("ca.key", "x"), ("server.pem", "")])
def test_certificates_that_are_damaged_are_named(tmp_path, name, text):
    Certificates(tmp_path).server(NAMES)
    (tmp_path / "tls" / name).write_text(text)
    with pytest.raises(CertificatesInvalid, match=f"{name} is not a .* restore it from a backup"):
        Certificates(tmp_path).server(NAMES)


def test_certificates_are_not_made_by_a_clock_that_was_never_set(tmp_path):
    with pytest.raises(CertificatesInvalid, match="this machine's clock says 1970-01-02: set it first"):
        Certificates(tmp_path, dt.datetime(1970, 1, 2, tzinfo=dt.timezone.utc)).server(NAMES)
    assert not (tmp_path / "tls").exists()


def test_clock_that_is_behind_the_ca_is_named(tmp_path):
    Certificates(tmp_path, NOW).server(NAMES)
    assert Certificates(tmp_path, NOW).clock_fault() is None
    behind = Certificates(tmp_path, dt.datetime(1970, 1, 2, tzinfo=dt.timezone.utc))
    assert "clock, 1970-01-02, is before the server's CA was made on 2026-11-30: set the clock" in behind.clock_fault()
    assert not behind.server(NAMES).is_new


def test_client_s_certificate_is_none_of_a_server_whose_ca_devices_trust(tmp_path):
    """An enrolled device cannot take the server's place with what it was given."""
    certificates, file = Certificates(tmp_path), Certificates(tmp_path).own_client("127.0.0.1")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(file)
    client = ssl.create_default_context(cadata=certificates.ca_pem())
    client.check_hostname = False
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        shake(server, client, "127.0.0.1")


def test_server_s_own_certificate_at_another_broker_is_kept_until_a_third_of_its_life_is_left(tmp_path):
    first = Certificates(tmp_path, NOW).own_client("server")
    made = first.read_bytes()
    assert first.stat().st_mode & 0o777 == 0o600
    assert Certificates(tmp_path, NOW).own_client("server").read_bytes() == made
    late = NOW + dt.timedelta(days=SERVER_DAYS * 0.7)
    assert Certificates(tmp_path, late).own_client("server").read_bytes() != made
