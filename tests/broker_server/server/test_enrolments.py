import pytest

from broker_server.server.enrolments import CODE_S, Enrolments, Seen

SEEN = Seen(boot="0" * 32, counter=5)


@pytest.fixture
def enrolments(tmp_path):
    return Enrolments(tmp_path, clock=lambda: 1000.0)


def test_enrolment_is_for_its_owner_alone(enrolments, tmp_path):
    made = enrolments.enrol("pi")
    assert enrolments.find("pi") == made
    assert (made.generation, made.key, made.revoked, made.code_until_s) == (1, None, False, 1000.0 + CODE_S)
    assert (tmp_path / "devices").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "devices" / "pi.json").stat().st_mode & 0o777 == 0o600
    assert enrolments.names() == ["pi"]
    assert enrolments.find("other") is None
    assert enrolments.find("../pi") is None


def test_enrolment_anew_makes_what_was_before_worth_nothing(enrolments):
    first = enrolments.enrol("pi")
    assert enrolments.pin("pi", 1, "a" * 64)
    enrolments.set_seen("pi", SEEN)
    assert enrolments.seen("pi") == SEEN
    again = enrolments.enrol("pi")
    assert (again.generation, again.key, enrolments.seen("pi")) == (2, None, None)
    assert again.code != first.code
    assert not enrolments.is_current("pi", 1)
    assert enrolments.is_current("pi", 2)


def test_enrolment_keeps_the_first_key_alone(enrolments):
    enrolments.enrol("pi")
    assert not enrolments.pin("pi", 2, "a" * 64)
    assert enrolments.pin("pi", 1, "a" * 64)
    assert not enrolments.pin("pi", 1, "b" * 64)
    assert enrolments.find("pi").key == "a" * 64
    assert not enrolments.pin("other", 1, "a" * 64)


def test_enrolment_revoked_by_another_process_holds_at_once(enrolments, tmp_path):
    enrolments.enrol("pi")
    assert enrolments.is_current("pi", 1)
    assert Enrolments(tmp_path).revoke("pi")
    assert not enrolments.is_current("pi", 1)
    assert not enrolments.revoke("other")
    enrolments.enrol("other")
    assert enrolments.names() == ["other", "pi"]
    assert enrolments.current() == ["other"]
    enrolments.enrol("pi")
    assert enrolments.is_current("pi", 2)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"generation":0}'])
def test_enrolment_that_cannot_be_read_is_none(enrolments, tmp_path, data):
    enrolments.enrol("pi")
    (tmp_path / "devices" / "pi.json").write_bytes(data)
    (tmp_path / "devices" / "pi.seen").write_bytes(data)
    assert enrolments.find("pi") is None
    assert enrolments.seen("pi") is None
