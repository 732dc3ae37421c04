import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker_server.mqtt.auth import TokenAuthorizer
from broker_server.server.token_renewal import TokenRenewal
from edge_runtime.wire import tokens

LIFE_S = 1000.0
BOOT, OTHER = b"b" * 16, b"o" * 16
KEY = b"k" * 32


class Desk:
    """A renewal and its broker's rules, with a clock."""

    def __init__(self):
        self.key, self.now_s = Ed25519PrivateKey.generate(), 0.0
        self.authorizer = TokenAuthorizer(
            self.key.public_key(), "home", now=time.time, life_s=LIFE_S, has_key=lambda _name: True
        )
        self.renewal = TokenRenewal(self.key, "home", self.authorizer, life_s=LIFE_S, clock=lambda: self.now_s)

    def connect(self, token):
        return self.authorizer.authenticate("x", "x", token.encode())

    def enrolled(self):
        return tokens.issue(self.key, name="x", federation="home", role="device", lifetime_s=LIFE_S, generation=1)


@pytest.fixture
def desk():
    return Desk()


def test_token_is_given_for_each_boot_and_at_half_of_its_life(desk):
    first = desk.renewal.after_proof("x", 1, BOOT, KEY)
    claims = tokens.check(desk.key.public_key(), first, federation="home")
    assert (claims.sub, claims.role, claims.gen, claims.renewed) == ("x", "device", 1, True)
    assert claims.exp == pytest.approx(time.time() + LIFE_S, abs=10)
    assert not desk.connect(first).is_limited
    assert desk.renewal.after_proof("x", 1, BOOT, KEY) is None
    desk.now_s = LIFE_S / 2
    assert desk.renewal.after_proof("x", 1, BOOT, KEY) is not None
    assert desk.renewal.after_proof("x", 1, BOOT, KEY) is None
    assert desk.renewal.after_proof("x", 1, OTHER, KEY) is not None
    assert desk.renewal.after_proof("x", 2, OTHER, KEY) is not None
    assert desk.renewal.after_proof("y", 2, OTHER, KEY) is not None


def test_device_that_lost_the_token_on_its_way_is_given_another(desk):
    assert desk.renewal.after_proof("x", 1, BOOT, KEY) is not None
    assert desk.connect(desk.enrolled()).is_limited  # the other one did not arrive
    token = desk.renewal.after_proof("x", 1, BOOT, KEY)
    assert not desk.connect(token).is_limited
    assert desk.renewal.after_proof("x", 1, BOOT, KEY) is None
