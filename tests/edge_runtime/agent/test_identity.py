import datetime as dt
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from edge_runtime.agent.identity import (
    CERTIFICATE,
    KEY,
    SERVER_KEY,
    TOKEN,
    HeldCertificate,
    HeldToken,
    ServerKey,
    load_or_create,
    noise_key,
)
from edge_runtime.agent.state import StateUnusable
from edge_runtime.wire.envelope import raw_public


def test_key_is_made_once_and_for_its_owner_alone(tmp_path):
    made = load_or_create(tmp_path)
    assert raw_public(load_or_create(tmp_path)) == raw_public(made)
    assert (tmp_path / KEY).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "zz", "00" * 31])
def test_key_that_is_none_says_what_to_do(tmp_path, text):
    (tmp_path / KEY).write_text(text)
    (tmp_path / KEY).chmod(0o600)
    with pytest.raises(StateUnusable, match="not a device's key: delete it, and enrol the device again"):
        load_or_create(tmp_path)


def test_key_that_others_can_read_is_not_used(tmp_path):
    load_or_create(tmp_path)
    (tmp_path / KEY).chmod(0o644)
    with pytest.raises(StateUnusable, match="can be read by others"):
        load_or_create(tmp_path)


def test_key_in_a_folder_that_is_none(tmp_path):
    (tmp_path / "state").touch()
    with pytest.raises(StateUnusable, match="cannot be used"):
        load_or_create(tmp_path / "state")


def test_server_key_is_the_last_that_was_named_until_the_device_is_enrolled_anew(tmp_path):
    first, second, third = "1" * 64, "2" * 64, "3" * 64
    trusted = ServerKey(tmp_path, first)
    assert trusted.hex == first
    trusted.change(second)
    trusted.change(third)
    again = ServerKey(tmp_path, first)
    assert (again.hex, [again.knows(key) for key in (first, second, third, "4" * 64)]) == (third, [True] * 3 + [False])
    assert ServerKey(tmp_path, second).hex == second
    (tmp_path / SERVER_KEY).write_text(f"{first} short")
    assert ServerKey(tmp_path, first).hex == first


def test_server_key_that_cannot_be_kept_says_so(tmp_path):
    (tmp_path / SERVER_KEY).write_bytes(b"\xff")
    with pytest.raises(StateUnusable, match="cannot be read"):
        ServerKey(tmp_path, "1" * 64)
    trusted = ServerKey(tmp_path / "none", "1" * 64)
    (tmp_path / "none").touch()
    with pytest.raises(StateUnusable, match="cannot be written"):
        trusted.change("2" * 64)


def test_token_is_the_last_that_was_given_until_the_device_is_enrolled_anew(tmp_path):
    held = HeldToken(tmp_path, "enrolled")
    assert held.value == "enrolled"
    held.keep(b"eyJ.a-b_c.d")
    assert held.value == HeldToken(tmp_path, "enrolled").value == "eyJ.a-b_c.d"
    assert (tmp_path / TOKEN).stat().st_mode & 0o777 == 0o600
    assert HeldToken(tmp_path, "enrolled again").value == "enrolled again"


@pytest.mark.parametrize("token", [b"", b"two words", b"line\n", b"\xff", b"x" * 4097])
def test_token_that_is_none_is_not_kept(tmp_path, token):
    held = HeldToken(tmp_path, "enrolled")
    held.keep(token)
    assert held.value == "enrolled"
    held.keep(b"good")
    (tmp_path / TOKEN).write_bytes((tmp_path / TOKEN).read_bytes().replace(b"good", token))
    assert HeldToken(tmp_path, "enrolled").value == "enrolled"


def test_token_that_cannot_be_written_is_good_until_the_process_ends(tmp_path, caplog):
    (tmp_path / TOKEN).mkdir()
    held = HeldToken(tmp_path, "enrolled")
    held.keep(b"new")
    assert held.value == "new"
    assert "the new token is not kept over a restart" in caplog.text


def test_noise_key_is_the_device_s_own_and_stays(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    keys = [noise_key(tmp_path / name) for name in ("a", "a", "b")]
    assert keys[0] == keys[1] != keys[2]
    assert keys[0] != load_or_create(tmp_path / "a").private_bytes_raw()


def certificate_of(key):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    now = dt.datetime(2026, 11, 30, tzinfo=dt.timezone.utc)
    made = x509.CertificateBuilder(name, name, key.public_key(), 7, now, now + dt.timedelta(days=1)).sign(key, None)
    return made.public_bytes(Encoding.PEM)


def test_certificate_is_the_last_that_was_given_until_the_device_is_enrolled_anew(tmp_path):
    key = load_or_create(tmp_path)
    held = HeldCertificate(tmp_path, "enrolled", key)
    assert held.file.read_text().endswith("\nenrolled")
    assert held.file.stat().st_mode & 0o777 == 0o600
    given = certificate_of(key)
    for other in (b"none", certificate_of(Ed25519PrivateKey.generate())):
        held.keep(other)
        assert held.file.read_text().endswith("\nenrolled")
    held.keep(given)
    again = HeldCertificate(tmp_path, "enrolled", key)
    ssl.create_default_context().load_cert_chain(again.file)  # the certificate and its key
    assert again.file.read_bytes().endswith(given)
    assert HeldCertificate(tmp_path, "enrolled again", key).file.read_text().endswith("\nenrolled again")
    assert HeldCertificate(tmp_path, None, key).file is None


def test_certificate_that_cannot_be_kept_says_so(tmp_path, caplog):
    key = load_or_create(tmp_path)
    held = HeldCertificate(tmp_path, "enrolled", key)
    held.file.unlink()
    (tmp_path / CERTIFICATE).mkdir()
    held.keep(certificate_of(key))
    assert "the new certificate is not kept" in caplog.text
    with pytest.raises(StateUnusable, match="cannot be used"):
        HeldCertificate(tmp_path, "enrolled again", key)
