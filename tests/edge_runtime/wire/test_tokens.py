import base64
import contextlib
import json
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.wire.errors import TokenRefused

jwt = pytest.importorskip("jwt")

from edge_runtime.wire.tokens import ISSUER, MAX_TOKEN_BYTES, check, issue  # noqa: E402

pytestmark = pytest.mark.workstation

KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key()


def device_token(**change):
    return issue(KEY, **{"name": "pi-1", "federation": "lab", "role": "device", "lifetime_s": 60, **change})


def signed(**change):
    now = int(time.time())
    claims = {"iss": ISSUER, "sub": "pi-1", "aud": "lab", "role": "device", "iat": now, "exp": now + 60, **change}
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, KEY, algorithm="EdDSA")


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_check_reads_what_was_issued():
    claims = check(PUBLIC, device_token(), federation="lab")
    assert (claims.sub, claims.aud, claims.role) == ("pi-1", "lab", "device")
    assert check(PUBLIC, device_token(role="server").encode(), federation="lab").role == "server"


@pytest.mark.parametrize("change", [{"name": "a/b"}, {"name": "a\n"}, {"federation": "+"}, {"role": "root"}])
def test_issue_refuses_names_that_cannot_travel(change):
    with pytest.raises(TokenRefused, match="no token for"):
        device_token(**change)


@pytest.mark.parametrize(
    ("token", "sentence"),
    [
        (None, "no token"),
        ("", "no token"),
        (b"", "no token"),
        ("x" * (MAX_TOKEN_BYTES + 1), "over the 4096 allowed"),
        ("a.b.c", "not valid"),
        (b"\xff\xfe.\xff.\xff", "not valid"),
        ("\ud800.a.b", "not valid"),
        (encoded(b"[" * 2900) + ".e30.AA", "not valid"),
        (encoded(b'{"alg": "none"}') + ".e30.", "not valid"),
        (encoded(b'{"alg": ["EdDSA"], "crit": 7, "kid": {}}') + ".e30.AA", "not valid"),
    ],
)
def test_check_refuses_what_is_not_a_token(token, sentence):
    with pytest.raises(TokenRefused, match=sentence):
        check(PUBLIC, token, federation="lab")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"exp": 1}, "expired by the server's clock, 20.*: enrol the device again"),
        ({"iat": 4e9}, "not valid yet by the server's clock, 20.*: set the clock"),
        ({"aud": "field"}, "not for federation 'lab'"),
        ({"aud": ["lab", "field"]}, "not valid"),
        ({"iss": "somebody"}, "not valid"),
        ({"sub": None}, "not valid"),
        ({"sub": "a\n"}, "not valid"),
        ({"sub": "#"}, "not valid"),
        ({"exp": None}, "not valid"),
        ({"exp": "soon"}, "not valid"),
        ({"exp": float("inf")}, "not valid"),
        ({"iat": 2**40}, "not valid"),
        ({"role": "root"}, "not valid"),
        ({"role": None}, "not valid"),
    ],
)
def test_check_refuses_claims_of_another_kind(change, sentence):
    with pytest.raises(TokenRefused, match=sentence):
        check(PUBLIC, signed(**change), federation="lab")


def test_check_refuses_another_key_and_another_algorithm():
    with pytest.raises(TokenRefused, match="not valid"):
        check(Ed25519PrivateKey.generate().public_key(), device_token(), federation="lab")
    forged = jwt.encode({"sub": "pi-1", "aud": "lab"}, PUBLIC.public_bytes_raw().hex(), algorithm="HS256")
    with pytest.raises(TokenRefused, match="not valid"):
        check(PUBLIC, forged, federation="lab")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
HEADERS = st.fixed_dictionaries(
    {}, optional={"alg": JSON | st.just("EdDSA"), "typ": JSON, "kid": JSON, "crit": JSON, "b64": JSON, "x": JSON}
)


@given(HEADERS | JSON, JSON, st.binary(max_size=70))
def test_check_refuses_any_unsigned_token_and_raises_nothing_else(header, payload, signature):
    token = ".".join((encoded(json.dumps(header).encode()), encoded(json.dumps(payload).encode()), encoded(signature)))
    with pytest.raises(TokenRefused):
        check(PUBLIC, token, federation="lab")


@given(st.binary(max_size=300))
def test_check_refuses_random_bytes_and_raises_nothing_else(token):
    with pytest.raises(TokenRefused):
        check(PUBLIC, token, federation="lab")


@given(JSON)
def test_check_of_signed_nonsense_raises_nothing_else(value):
    claims = {"iss": ISSUER, "sub": "pi-1", "aud": "lab", "role": "device", "iat": 1, "exp": 2**40}
    for payload in (value, *({**claims, name: value} for name in claims)):
        token = jwt.PyJWS().encode(json.dumps(payload).encode(), KEY, algorithm="EdDSA")
        with contextlib.suppress(TokenRefused):
            assert check(PUBLIC, token, federation="lab").aud == "lab"
