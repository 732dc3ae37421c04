import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker_server.server.keys import KEY, KeyInvalid, load_or_create
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
