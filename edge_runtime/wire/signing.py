"""Ed25519 signatures of manifests: made with the server's key, checked against the key a device was given."""

# coverage: every branch

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edge_runtime.wire.errors import SignatureInvalid

_PURPOSE = b"mas-edge manifest 1\n"
"""Signed in front of the content, so that a signature made for another purpose never fits a manifest."""


def public_hex(key: Ed25519PrivateKey) -> str:
    """Return the public half of a key, which devices pin, in hexadecimal."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def sign(key: Ed25519PrivateKey, manifest: bytes) -> str:
    """Return the signature of a manifest, in hexadecimal."""
    return key.sign(_PURPOSE + manifest).hex()


def verify(public_key_hex: str, manifest: bytes, signature_hex: str) -> None:
    """Raise SignatureInvalid unless the key's owner signed this manifest."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key_hex))
        key.verify(bytes.fromhex(signature_hex), _PURPOSE + manifest)
    except (InvalidSignature, ValueError) as exc:
        raise SignatureInvalid("the manifest was not signed by the server key that this device trusts") from exc
