import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker_server.mqtt.auth import LEAVE_S, LIMITED_S, Certified, TokenAuthorizer
from edge_runtime.wire import tokens
from edge_runtime.wire.errors import TokenRefused

KEY = Ed25519PrivateKey.generate()
AUTHORIZER = TokenAuthorizer(KEY.public_key(), "fed", now=time.time)


def token(name="dev1", federation="fed", role="device", lifetime_s=60.0, key=KEY):
    return tokens.issue(key, name=name, federation=federation, role=role, lifetime_s=lifetime_s).encode()


def test_token_of_a_device_lets_it_in_under_its_own_name_for_as_long_as_it_is_good():
    principal = AUTHORIZER.authenticate("dev1", "dev1", token())
    assert (principal.name, principal.role) == ("dev1", "device")
    assert 0 < principal.valid_for_s <= 60
    topic = "mas/4/fed/device/{}/status"
    assert AUTHORIZER.may_publish(principal, topic.format("dev1"))
    assert not AUTHORIZER.may_publish(principal, topic.format("dev2"))
    assert not AUTHORIZER.may_publish(principal, topic.format("dev1").replace("/4/", "/3/"))  # an older device's will
    assert AUTHORIZER.may_subscribe(principal, topic.format("dev1"))
    assert not AUTHORIZER.may_subscribe(principal, "#")


@pytest.mark.parametrize("client_id", ["monitor", "monitor/7"])
def test_token_of_a_server_is_good_for_its_name_and_names_below(client_id):
    assert AUTHORIZER.authenticate(client_id, "monitor", token("monitor", role="server")).role == "server"


@pytest.mark.parametrize(
    ("client_id", "username", "password"),
    [
        ("dev1", "dev1", None),
        ("dev1", "dev1", b""),
        ("dev1", "dev1", b"\xff\xfe not a token"),
        ("dev1", "dev1", token(lifetime_s=-60)),
        ("dev1", "dev1", token(federation="other")),
        ("dev1", "dev1", token(key=Ed25519PrivateKey.generate())),
        ("dev2", "dev2", token()),
        ("dev2", "dev1", token()),
        ("dev1/x", "dev1", token()),
        ("dev1", "dev2", token()),
        ("dev1", None, token()),
        ("other", "monitor", token("monitor", role="server")),
    ],
)
def test_token_missing_bad_expired_foreign_or_of_another_name_is_refused(client_id, username, password):
    with pytest.raises(TokenRefused):
        AUTHORIZER.authenticate(client_id, username, password)


def test_token_of_an_earlier_enrolment_is_refused_and_ends_a_connection():
    current = {"pi": 2}
    authorizer = TokenAuthorizer(KEY.public_key(), "fed", now=time.time, is_current=lambda n, g: current.get(n) == g)

    def issued(name, generation, role="device"):
        return tokens.issue(KEY, name=name, federation="fed", role=role, lifetime_s=60, generation=generation).encode()

    principal = authorizer.authenticate("pi", "pi", issued("pi", 2))
    assert authorizer.may_stay(principal)
    current["pi"] = 3
    assert not authorizer.may_stay(principal)
    for name, generation in (("pi", 2), ("stranger", 0)):
        with pytest.raises(TokenRefused, match="was revoked, or has been enrolled again since"):
            authorizer.authenticate(name, name, issued(name, generation))
    assert authorizer.authenticate("server", "server", issued("server", 0, "server")).role == "server"


class Clock:
    def __init__(self):
        self.now_s = time.time()

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def renewing(clock, keys=(), is_current=lambda _name, _generation: True):
    return TokenAuthorizer(
        KEY.public_key(), "fed", now=clock, life_s=100.0, has_key=lambda name: name in keys, is_current=is_current
    )


def renewed(lifetime_s=3600.0):
    return tokens.issue(KEY, name="dev1", federation="fed", role="device", lifetime_s=lifetime_s, renewed=True).encode()


@pytest.mark.parametrize(
    ("password", "keys", "is_limited"),
    [
        (token(lifetime_s=3600), (), False),  # its first start
        (token(lifetime_s=3600), ("dev1",), True),  # the file's token has done its work
        (renewed(), ("dev1",), False),
        (renewed(-3600), ("dev1",), True),
        (token(lifetime_s=-3600), (), True),
    ],
)
def test_token_that_has_expired_or_served_is_good_for_asking_for_another_alone(clock, password, keys, is_limited):
    authorizer = renewing(clock, keys)
    principal = authorizer.authenticate("dev1", "dev1", password)
    assert principal.is_limited == authorizer.is_limited("dev1") == is_limited
    assert principal.valid_for_s <= (LIMITED_S if is_limited else 100.0)
    own = "mas/4/fed/device/dev1"
    assert all(authorizer.may_publish(principal, f"{own}/{kind}") for kind in ("event", "status"))
    assert authorizer.may_subscribe(principal, f"{own}/command")
    blob = f"{own}/download/+/+"
    assert authorizer.may_publish(principal, f"{own}/upload/{'0' * 64}/1") != is_limited
    assert authorizer.may_subscribe(principal, blob) != is_limited


def test_limited_connection_ends_once_its_device_has_a_token_and_the_next_one_is_whole(clock):
    authorizer = renewing(clock, ("dev1",))
    authorizer.on_renewed("dev1")  # of a connection that is whole nothing is ended
    principal = authorizer.authenticate("dev1", "dev1", token())
    assert authorizer.may_stay(principal)
    authorizer.on_renewed("dev1")
    assert authorizer.may_stay(principal)
    clock.now_s += LEAVE_S
    assert not authorizer.may_stay(principal)
    after = authorizer.authenticate("dev1", "dev1", renewed())
    assert authorizer.may_stay(after)
    assert not authorizer.is_limited("dev1")


def test_revoked_device_and_a_server_whose_token_has_expired_get_no_limited_connection(clock):
    gone = renewing(clock, ("dev1",), is_current=lambda _name, _generation: False)
    with pytest.raises(TokenRefused, match="was revoked"):
        gone.authenticate("dev1", "dev1", renewed(-60))
    assert not gone.is_limited("dev1")
    with pytest.raises(TokenRefused, match="the server's token has expired"):
        renewing(clock).authenticate("server", "server", token("server", role="server", lifetime_s=-60))


def test_token_needs_the_certificate_of_its_device_and_enrolment_where_clients_need_one():
    authorizer = TokenAuthorizer(KEY.public_key(), "fed", now=time.time, needs_certificate=True)
    good = Certified("dev1", 0)
    assert authorizer.authenticate("dev1", "dev1", token(), good).name == "dev1"
    for shown in (None, Certified("dev2", 0), Certified("dev1", 1)):
        with pytest.raises(TokenRefused, match="'dev1', enrolment 0, needs a certificate of its own: "):
            authorizer.authenticate("dev1", "dev1", token(), shown)
    with pytest.raises(TokenRefused, match="of its own: there is none"):
        authorizer.authenticate("server", "server", token("server", role="server"))
