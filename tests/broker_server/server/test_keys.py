import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker_server.server.keys import KEY, KeyInvalid, load_or_create, retired_keys, roll, signing_key
from edge_runtime.wire.signing import public_hex


def test_key_is_made_once_and_readable_by_its_owner_alone(tmp_path):
    first = load_or_create(tmp_path / "state")
    assert (tmp_path / "state" / KEY).stat().st_mode & 0o777 == 0o600
    assert public_hex(load_or_create(tmp_path / "state")) == public_hex(first)


def test_key_that_others_can_read(tmp_path):
    load_or_create(tmp_path)
    (tmp_path / KEY).chmod(0o644)
    with pytest.raises(KeyInvalid, match="chmod 600"):
        load_or_create(tmp_path)


@pytest.mark.parametrize("kind", ["garbage", "other"])
def test_key_that_is_none(tmp_path, kind):
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / KEY).write_bytes(b"garbage" if kind == "garbage" else other)
    (tmp_path / KEY).chmod(0o600)
    with pytest.raises(KeyInvalid):
        load_or_create(tmp_path)


def test_keys_rolled_name_their_heirs_and_leave_tokens_as_they_are(tmp_path):
    first = load_or_create(tmp_path)
    assert public_hex(signing_key(tmp_path)) == public_hex(first)
    assert retired_keys(tmp_path) == []
    second, third = roll(tmp_path), roll(tmp_path)
    assert public_hex(load_or_create(tmp_path)) == public_hex(first)
    assert public_hex(signing_key(tmp_path)) == third
    assert [(public_hex(each.key), each.heir.hex()) for each in retired_keys(tmp_path)] == [
        (public_hex(first), second),
        (second, third),
    ]
    assert (tmp_path / "retired" / "0001.key").stat().st_mode & 0o777 == 0o600
