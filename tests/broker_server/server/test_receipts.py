import base64
import json

import pytest
import samples
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker_server.server.receipts import RECEIPTS, Receipts
from edge_runtime.wire.envelope import Scope, check_event, read_event, seal_event
from edge_runtime.wire.messages import Ack, Finished, encode

KEY = Ed25519PrivateKey.generate()
SCOPE = Scope(federation="home", device="pi")


@pytest.fixture
def receipts(tmp_path):
    return Receipts(tmp_path, clock=lambda: 0.0)


def lines(root):
    return [json.loads(line) for line in (root / RECEIPTS).read_text().splitlines()]


def say(receipts, message, device="pi", key=KEY):
    body = encode(message)
    envelope = seal_event(key, SCOPE, code=bytes(16), boot=bytes(16), counter=1, body=body)
    receipts.heard(device, envelope, body)


def answer(receipts, number, device="pi", **fields):
    receipts.answered(device, encode(Ack(round=number, group="a", **{"accepted": True, **fields})))


def test_result_and_what_became_of_it_are_kept_with_the_device_s_signature(receipts, tmp_path):
    update, evaluation = samples.update(3), samples.evaluation(4)
    say(receipts, update)
    receipts.answered("pi", encode(Finished()))  # no verdict
    answer(receipts, 2)  # of another round
    answer(receipts, 3)
    answer(receipts, 3)  # said again
    say(receipts, evaluation)
    answer(receipts, 4, accepted=False, detail="round 4 is closed")
    first, second = lines(tmp_path)
    signed = read_event(base64.b64decode(first.pop("signed")))
    check_event(signed, SCOPE)
    assert signed.body == encode(update)
    assert first == {
        "at": "1970-01-01T00:00:00Z", "device": "pi", "what": "update", "round": 3, "group": "a", "accepted": True,
        "digest": update.weights.digest,
    }  # fmt: skip
    assert (second["what"], second["accepted"], second["why"]) == ("evaluation", False, "round 4 is closed")
    assert len(second["digest"]) == 64
    assert (tmp_path / RECEIPTS).stat().st_mode & 0o777 == 0o600


def test_hello_is_kept_once_and_again_when_it_says_something_else(receipts, tmp_path):
    for software in ("1", "1", "2"):
        say(receipts, samples.hello(software=software))
    say(receipts, samples.hello(software="2"), key=Ed25519PrivateKey.generate())  # the card was replaced
    say(receipts, samples.hello(software="2"), device="other")
    assert [(line["what"], line["device"]) for line in lines(tmp_path)] == [
        ("hello", "pi"), ("hello", "pi"), ("hello", "pi"), ("hello", "other"),
    ]  # fmt: skip


def test_what_is_no_message_has_no_receipt_and_a_flood_only_so_many(receipts, tmp_path):
    for body in (b"", b"\xff", b"[" * 5000, b'{"type": 3}'):
        receipts.heard("pi", b"", body)
        receipts.answered("pi", body)
    assert not (tmp_path / RECEIPTS).exists()
    for number in range(500):
        say(receipts, samples.hello(software=str(number)))
    assert len(lines(tmp_path)) == 100


def test_receipts_that_cannot_be_written_stop_nothing(tmp_path):
    (tmp_path / RECEIPTS).mkdir()
    say(Receipts(tmp_path), samples.hello())
