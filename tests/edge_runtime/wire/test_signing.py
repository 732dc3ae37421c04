import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.wire.errors import SignatureInvalid
from edge_runtime.wire.signing import public_hex, sign, verify

KEY = Ed25519PrivateKey.generate()
OTHER = Ed25519PrivateKey.generate()
MANIFEST = b'{"format": 1}'


@given(st.binary(max_size=200))
def test_verify_takes_what_the_key_signed(manifest):
    verify(public_hex(KEY), manifest, sign(KEY, manifest))


def test_verify_refuses_another_manifest_and_another_key():
    for key, manifest in ((KEY, MANIFEST + b" "), (OTHER, MANIFEST)):
        with pytest.raises(SignatureInvalid, match="not signed by the server key"):
            verify(public_hex(key), manifest, sign(KEY, MANIFEST))


def test_verify_refuses_a_signature_made_for_something_else():
    with pytest.raises(SignatureInvalid):
        verify(public_hex(KEY), MANIFEST, KEY.sign(MANIFEST).hex())


@given(st.text(max_size=140))
def test_verify_refuses_any_text_as_signature_or_key(text):
    with pytest.raises(SignatureInvalid):
        verify(public_hex(KEY), MANIFEST, text)
    with pytest.raises(SignatureInvalid):
        verify(text, MANIFEST, sign(KEY, MANIFEST))
