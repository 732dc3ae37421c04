import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.wire.envelope import (
    COMMAND_BYTES,
    EVENT_BYTES,
    Scope,
    check_event,
    open_command,
    raw_public,
    read_event,
    seal_command,
    seal_event,
)
from edge_runtime.wire.errors import MessageInvalid, SignatureInvalid

KEY, OTHER = Ed25519PrivateKey.from_private_bytes(b"k" * 32), Ed25519PrivateKey.from_private_bytes(b"o" * 32)
SCOPE = Scope(federation="home", device="x")
BOOT, CODE = b"b" * 16, b"c" * 16
COMMAND = seal_command(KEY, SCOPE, boot=BOOT, counter=7, body=b"plan")
EVENT = seal_event(KEY, SCOPE, code=CODE, boot=BOOT, counter=7, body=b"hello")


def test_command_envelope_has_what_was_sealed():
    opened = open_command(KEY.public_key(), SCOPE, COMMAND)
    assert (opened.boot, opened.counter, opened.body) == (BOOT, 7, b"plan")
    assert len(COMMAND) == COMMAND_BYTES + len(b"plan")


def test_event_envelope_has_what_was_sealed():
    event = read_event(EVENT)
    check_event(event, SCOPE)
    assert (event.key, event.boot, event.counter, event.body) == (raw_public(KEY), BOOT, 7, b"hello")
    assert event.proof == SCOPE.proof(CODE, event.key) != SCOPE.proof(b"d" * 16, event.key)
    assert len(EVENT) == EVENT_BYTES + len(b"hello")


@pytest.mark.parametrize(
    "scope",
    [Scope(federation="home", device="y"), Scope(federation="away", device="x"), Scope(federation="h", device="omex")],
)
def test_envelope_of_another_device_or_federation_is_not_taken(scope):
    with pytest.raises(SignatureInvalid):
        open_command(KEY.public_key(), scope, COMMAND)
    with pytest.raises(SignatureInvalid):
        check_event(read_event(EVENT), scope)


def test_envelope_of_another_key_or_direction_is_not_taken():
    with pytest.raises(SignatureInvalid, match="not signed by the key that is trusted here"):
        open_command(OTHER.public_key(), SCOPE, COMMAND)
    event = read_event(EVENT)
    as_command = event.boot + (7).to_bytes(8, "big") + event.signature + event.body
    with pytest.raises(SignatureInvalid):
        open_command(KEY.public_key(), SCOPE, as_command)


@given(st.integers(0, len(COMMAND) - 1), st.integers(1, 255))
def test_command_with_any_byte_altered_is_not_taken(at, change):
    altered = COMMAND[:at] + bytes([COMMAND[at] ^ change]) + COMMAND[at + 1 :]
    with pytest.raises(SignatureInvalid):
        open_command(KEY.public_key(), SCOPE, altered)


@given(st.integers(0, len(EVENT) - 1), st.integers(1, 255))
def test_event_with_any_byte_altered_is_not_taken(at, change):
    with pytest.raises((SignatureInvalid, ValueError)):
        check_event(read_event(EVENT[:at] + bytes([EVENT[at] ^ change]) + EVENT[at + 1 :]), SCOPE)


@pytest.mark.parametrize("size", [0, 1, COMMAND_BYTES - 1])
def test_envelope_that_is_too_short_is_not_taken(size):
    with pytest.raises(MessageInvalid, match="no room for its signature"):
        open_command(KEY.public_key(), SCOPE, bytes(size))
    with pytest.raises(MessageInvalid, match="no room for its signature"):
        read_event(bytes(size))


@given(st.binary(max_size=400))
def test_envelope_of_anything_else_is_not_taken(data):
    with pytest.raises((MessageInvalid, SignatureInvalid)):
        open_command(KEY.public_key(), SCOPE, data)
    with pytest.raises((MessageInvalid, SignatureInvalid)):
        check_event(read_event(data), SCOPE)
