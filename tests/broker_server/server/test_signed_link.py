"""Both ends of a signed link over a broker that does whatever it likes."""

from collections import deque
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker_server.server.enrolments import CODE_S, Enrolments
from broker_server.server.keys import RetiredKey
from broker_server.server.signed_link import MAX_BOOTS, SignedServerLink
from edge_runtime.agent.identity import ServerKey
from edge_runtime.agent.signed_link import AGAIN_S, SignedDeviceLink
from edge_runtime.wire.counter import Counter
from edge_runtime.wire.envelope import Scope, raw_public, seal_command
from edge_runtime.wire.link import Connected, Delivery, LinkFull
from edge_runtime.wire.messages import Status, encode
from edge_runtime.wire.topics import Topics

TOPICS = Topics("home")


class Pipe:
    """One end's plain link: what it publishes, and what the broker gives it."""

    def __init__(self):
        self.sent, self.inbox, self.filters = [], deque(), set()
        self.bytes_in, self.bytes_out = 1, 2
        self.calls = []

    def publish(self, topic, payload, *, retain=False):
        self.sent.append((topic, payload, retain))

    def subscribe(self, *filters):
        self.filters |= set(filters)

    def receive(self, timeout_s):
        return self.inbox.popleft() if self.inbox else None

    def interrupt(self):
        self.calls.append("interrupt")

    def close(self):
        self.calls.append("close")


class Wire:
    def __init__(self, root):
        self.root, self.now_s = root, 1000.0
        self.key = self.pinned = Ed25519PrivateKey.generate()
        self.retired, self.locks, self.renewals = [], False, []
        self.enrolments = Enrolments(root / "state", clock=lambda: self.now_s)
        self.notes, self.number = [], 0
        self.boot_server()

    def boot_server(self):
        self.plain = Pipe()
        self.server = SignedServerLink(
            self.plain,
            TOPICS,
            key=self.key,
            enrolments=self.enrolments,
            counter=Counter(self.root / "state" / "counter", self.tick),
            retired=self.retired,
            lock_out_clones=self.locks,
            renewals=self.renewals,
            clock=lambda: self.now_s,
        )
        self.server.note = self.notes.append
        self.server.refuse = lambda who, why: self.notes.append(f"refused {who}: {why}")

    def folder(self, name):
        folder = self.root / "devices" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def roll(self):
        """The server has another key from its next start on."""
        self.now_s += 100.0
        before, self.key = self.key, Ed25519PrivateKey.generate()
        self.retired.append(RetiredKey(before, raw_public(self.key), self.now_s))
        self.boot_server()

    def tick(self):
        self.number += 1
        return self.number

    def device(self, name="x", *, code=None, key=None, server_key=None, folder=None):
        """A device's link after a start, with the key of its state folder or another one."""
        found = self.enrolments.find(name) or self.enrolments.enrol(name)
        plain = Pipe()
        link = SignedDeviceLink(
            plain,
            Scope(federation="home", device=name),
            key=key or Ed25519PrivateKey.from_private_bytes((name.encode() * 32)[:32]),
            code=bytes.fromhex(code or found.code),
            server_key=ServerKey(self.folder(name), raw_public(server_key or self.pinned).hex()),
            counter=Counter(self.root / (folder or name), self.tick),
            clock=lambda: self.now_s,
        )
        return SimpleNamespace(link=link, plain=plain, name=name)

    def say(self, device, body, name=None):
        """Publish an event and pass it on; what the server gets of it."""
        device.link.publish(TOPICS.event(device.name), body)
        return self.pass_up(device.plain.sent[-1][1], name or device.name)

    def pass_up(self, payload, name="x"):
        self.plain.inbox.append(Delivery(TOPICS.event(name), payload))
        event = self.server.receive(0.0)
        return None if event is None else event.payload

    def command(self, body, name="x"):
        """A command as it is on the wire."""
        self.server.publish(TOPICS.command(name), body)
        return self.plain.sent[-1][1]

    @staticmethod
    def pass_down(device, payload):
        device.plain.inbox.append(Delivery(TOPICS.command(device.name), payload))
        event = device.link.receive(0.0)
        return event.payload if isinstance(event, Delivery) else event


@pytest.fixture
def wire(tmp_path):
    (tmp_path / "state").mkdir()
    return Wire(tmp_path)


def test_signed_links_pass_on_what_the_other_end_has_signed(wire):
    device = wire.device()
    assert wire.say(device, b"hello") == b"hello"
    assert wire.enrolments.find("x").key is not None
    assert wire.say(device, b"update") == b"update"
    assert wire.pass_down(device, wire.command(b"plan")) == b"plan"
    assert wire.pass_down(device, wire.command(b"ack")) == b"ack"
    assert wire.notes == []


def test_signed_links_leave_alone_what_is_no_control_message(wire):
    device = wire.device()
    wire.say(device, b"hello")
    chunk = TOPICS.download("x", "0" * 64, 0)
    for end, topic in ((device, TOPICS.status("x")), (device, TOPICS.upload("x", "0" * 64, 0))):
        end.link.publish(topic, b"plain", retain=True)
        assert end.plain.sent[-1] == (topic, b"plain", True)
        wire.plain.inbox.append(Delivery(topic, b"plain"))
        assert wire.server.receive(0.0) == Delivery(topic, b"plain")
    wire.server.publish(chunk, b"chunk")
    assert wire.plain.sent[-1][:2] == (chunk, b"chunk")
    for event in (Delivery("odd", b""), Connected(), None):
        for link, plain in ((wire.server, wire.plain), (device.link, device.plain)):
            plain.inbox.extend([event] if event else [])
            assert link.receive(0.0) == event
    for link, plain in ((wire.server, wire.plain), (device.link, device.plain)):
        link.subscribe("a", "b")
        link.interrupt()
        link.close()
        assert (plain.filters, plain.calls, link.bytes_in, link.bytes_out) == ({"a", "b"}, ["interrupt", "close"], 1, 2)


def test_device_takes_no_command_that_the_server_s_key_has_not_signed_for_it(wire, caplog):
    device, other = wire.device(), wire.device("y")
    wire.say(device, b"hello")
    wire.say(other, b"hello")
    rogue = Wire(wire.root / "rogue")
    rogue.enrolments.enrol("x")
    for forged in (b'{"type":"finished"}', rogue.command(b"plan"), wire.command(b"plan", "y")):
        assert wire.pass_down(device, forged) is None
    assert device.link.refused == {"forged": 3}
    assert "a command was not taken (forged, 1 so far): " in caplog.text
    assert "3 so far" not in caplog.text


def test_device_takes_a_command_once_and_none_older_than_another(wire):
    device = wire.device()
    wire.say(device, b"hello")
    first, second = wire.command(b"plan 1"), wire.command(b"plan 2")
    assert wire.pass_down(device, second) == b"plan 2"
    for old in (first, second):
        assert wire.pass_down(device, old) is None
    assert device.link.refused == {"repeated": 2}
    wire.boot_server()
    assert wire.pass_down(device, wire.command(b"after the server's restart")) == b"after the server's restart"


def test_device_takes_nothing_that_was_sent_to_an_earlier_process_and_introduces_itself_again(wire):
    device = wire.device()
    wire.say(device, b"hello")
    old = wire.command(b"plan")
    again = wire.device()
    assert wire.pass_down(again, old) == Connected()
    assert wire.pass_down(again, old) is None
    wire.now_s += AGAIN_S
    assert wire.pass_down(again, old) == Connected()
    wire.say(again, b"hello")
    assert wire.pass_down(again, wire.command(b"plan")) == b"plan"


def test_device_of_which_the_server_has_not_heard_introduces_itself(wire):
    device = wire.device()
    assert wire.pass_down(device, wire.command(b"plan")) == Connected()


def test_server_hears_nobody_who_speaks_for_a_device(wire):
    device, mallory = wire.device(), wire.device("mallory")
    wire.say(device, b"hello")
    wire.say(mallory, b"hello")
    assert wire.say(mallory, b"hello", name="x") is None  # on a broker that checks nothing
    assert wire.pass_up(b'{"type":"hello"}') is None
    own = wire.device(key=Ed25519PrivateKey.generate(), folder="stolen")  # the agent.toml on a second card
    assert wire.say(own, b"hello") is None
    assert "refused x: its key is not the one of its enrolment: it lost its state folder" in "".join(wire.notes)
    assert wire.say(device, b"still here") == b"still here"


def test_server_hears_no_strangers_whatever_they_call_themselves(wire):
    device = wire.device()
    for number in range(50):
        assert wire.say(device, b"hello", name=f"stranger-{number}") is None
    assert wire.notes[7] == "refused stranger-7: it is not enrolled here"
    assert wire.server.refused == {"device that is not enrolled": 50}


def test_server_takes_no_first_message_without_the_code_or_after_its_time(wire):
    late = wire.device("late")
    assert wire.say(wire.device(code="0" * 32), b"hello") is None
    assert "refused x: its code is not the one of its enrolment" in wire.notes
    wire.now_s += CODE_S + 1
    assert wire.say(late, b"hello") is None
    assert "refused late: its code has expired before its first message: enrol it again" in wire.notes
    assert wire.enrolments.find("x").key is None


def test_server_takes_no_message_twice_and_none_from_before_its_restart(wire):
    device = wire.device()
    wire.say(device, b"hello")
    sent = [payload for _, payload, _ in device.plain.sent]
    assert wire.pass_up(sent[0]) is None
    wire.boot_server()
    assert wire.pass_up(sent[0]) is None
    assert wire.say(device, b"update") == b"update"
    again = wire.device()
    assert wire.say(again, b"hello") == b"hello"
    assert wire.pass_up(device.plain.sent[-1][1]) is None
    assert any("is older than what came before" in note for note in wire.notes)


def test_device_enrolled_again_is_heard_with_a_new_code_alone(wire):
    device = wire.device()
    wire.say(device, b"hello")
    wire.enrolments.enrol("x")
    assert wire.say(device, b"with the old code") is None
    replaced = wire.device(key=Ed25519PrivateKey.generate(), folder="replaced")
    assert wire.say(replaced, b"hello") == b"hello"
    assert wire.pass_down(replaced, wire.command(b"plan")) == b"plan"
    assert wire.say(device, b"the stolen card") is None


def test_device_that_is_revoked_is_gone_at_once(wire):
    device = wire.device()
    wire.say(device, b"hello")
    wire.enrolments.revoke("x")
    assert wire.say(device, b"update") == encode(Status(state="offline"))
    assert wire.say(device, b"update") is None
    assert "refused x: it was revoked: `enrol x` lets it in again" in wire.notes


def test_two_cards_with_one_key_are_named(wire):
    device, copy = wire.device(), wire.device()
    for each in (device, copy, device):
        assert wire.say(each, b"hello") == b"hello"
    assert wire.notes == ["x is two cards that take turns with one key, for one was copied: enrol x again"]
    for _ in range(MAX_BOOTS + 5):  # a device that starts again and again is one
        assert wire.say(wire.device(), b"hello") == b"hello"
    assert len(wire.notes) == 1


def test_two_cards_with_one_key_are_locked_out_by_choice(wire):
    wire.locks = True
    wire.boot_server()
    device, copy = wire.device(), wire.device()
    for each in (device, copy, device):
        wire.say(each, b"hello")
    assert wire.enrolments.find("x").revoked
    assert wire.say(copy, b"hello") == encode(Status(state="offline"))
    assert wire.say(device, b"hello") is None


def test_enrolment_that_changes_while_a_first_message_is_read_counts(wire, monkeypatch):
    device = wire.device()
    monkeypatch.setattr(wire.enrolments, "pin", lambda *_: False)
    assert wire.say(device, b"hello") is None
    assert wire.notes == ["refused x: it has been enrolled again meanwhile"]


def introduce(wire, device):
    """Say hello, and pass on what the server sends to the device upon it."""
    before = len(wire.plain.sent)
    heard = wire.say(device, b"hello")
    for _, payload, _ in wire.plain.sent[before:]:
        wire.pass_down(device, payload)
    return heard


def test_device_learns_the_server_s_new_key_by_the_one_before_and_then_trusts_the_other_no_longer(wire):
    device, keys = wire.device(), []
    wire.say(device, b"hello")
    old = wire.key
    wire.roll()
    wire.roll()
    assert wire.pass_down(device, wire.command(b"plan")) is None  # before it was introduced again
    again = wire.device()
    again.link.on_key = keys.append
    assert introduce(wire, again) == b"hello"
    assert keys[-1] == raw_public(wire.key).hex()
    assert len(keys) == 2
    assert wire.pass_down(again, wire.command(b"plan")) == b"plan"
    restarted = wire.device()
    assert introduce(wire, restarted) == b"hello"
    assert restarted.link.refused == {}
    assert wire.pass_down(restarted, wire.command(b"plan")) == b"plan"
    wire.key = old
    wire.boot_server()
    assert wire.pass_down(restarted, wire.command(b"plan")) is None
    assert restarted.link.refused == {"forged": 1}


class Renewal:
    """Gives a token for each message but the second."""

    gift = b"token"

    def __init__(self):
        self.asked = []

    def after_proof(self, device, generation, boot, key):
        self.asked.append((device, generation))
        return f"token-{len(self.asked)}" if len(self.asked) != 2 else None


def test_device_whose_signature_was_good_is_given_tokens_and_nobody_else_is(wire):
    wire.renewals = [Renewal()]
    wire.boot_server()
    device, held = wire.device(), []
    device.link.on_gift = {b"token": held.append}
    introduce(wire, device)
    introduce(wire, device)  # it is not time for another
    assert held == [b"token-1"]
    own = wire.device(key=Ed25519PrivateKey.generate(), folder="stolen")
    assert wire.say(own, b"hello") is None
    assert wire.pass_up(device.plain.sent[0][1]) is None  # repeated
    wire.enrolments.revoke("x")
    wire.say(device, b"hello")
    assert wire.renewals[0].asked == [("x", 1)] * 2
    assert device.link.refused == {}


def test_device_takes_no_token_of_another_boot_of_a_stranger_or_twice(wire):
    wire.renewals = [Renewal()]
    wire.boot_server()
    device, held = wire.device(), []
    device.link.on_gift = {b"token": held.append}
    introduce(wire, device)
    sent = wire.plain.sent[-1][1]
    again = wire.device()
    again.link.on_gift = {b"token": held.append}
    wire.pass_down(device, sent)
    wire.pass_down(again, sent)
    scope, boot = Scope(federation="home", device="x"), wire.server._heard["x"].boot
    stranger = Ed25519PrivateKey.generate()
    wire.pass_down(device, seal_command(stranger, scope, boot=boot, counter=2**40, body=b"forged", purpose=b"token"))
    assert held == [b"token-1"]
    assert device.link.refused == {"repeated": 1, "forged": 1}


def test_token_that_finds_no_room_is_given_later(wire):
    wire.renewals = [Renewal()]
    wire.boot_server()
    device = wire.device()

    def full(topic, payload, *, retain=False):
        raise LinkFull

    wire.plain.publish = full
    assert wire.say(device, b"hello") == b"hello"


def test_device_that_is_enrolled_after_a_key_was_rolled_pins_the_new_one(wire):
    wire.roll()
    wire.pinned = wire.key
    wire.now_s += 1.0
    device = wire.device()
    before = len(wire.plain.sent)
    assert wire.say(device, b"hello") == b"hello"
    assert wire.plain.sent[before:] == []
    assert wire.pass_down(device, wire.command(b"plan")) == b"plan"


def test_device_takes_no_new_key_of_another_boot_of_a_stranger_or_of_a_wrong_length(wire):
    device, stranger = wire.device(), Ed25519PrivateKey.generate()
    wire.say(device, b"hello")
    scope, boot = Scope(federation="home", device="x"), wire.server._heard["x"].boot
    wanted = raw_public(stranger)
    for key, where, body in ((stranger, boot, wanted), (wire.key, bytes(16), wanted), (wire.key, boot, wanted + b"x")):
        payload = seal_command(key, scope, boot=where, counter=2**40, body=body, purpose=b"new key")
        wire.pass_down(device, payload)
    assert wire.pass_down(device, b"too short") is None
    earlier = seal_command(wire.key, scope, boot=bytes(16), counter=1, body=b"plan")
    assert wire.pass_down(device, earlier) == Connected()  # a key for another boot was no occasion to introduce itself
    wire.number = 2**41
    wire.boot_server()
    assert wire.pass_down(device, wire.command(b"plan")) == b"plan"


def test_server_whose_link_is_full_names_its_heir_with_the_next_boot(wire):
    device = wire.device()
    wire.say(device, b"hello")
    wire.roll()

    def full(topic, payload, *, retain=False):
        raise LinkFull

    publish, wire.plain.publish = wire.plain.publish, full
    assert wire.say(wire.device(), b"hello") == b"hello"
    wire.plain.publish = publish
    again = wire.device()
    introduce(wire, again)
    assert wire.pass_down(again, wire.command(b"plan")) == b"plan"
