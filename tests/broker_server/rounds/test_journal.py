import contextlib
import sqlite3

import msgspec
import pytest

from broker_server.rounds.answer_times import Learnt
from broker_server.rounds.journal import LEARNT, UPLOAD_RATES, FederationJournal, JournalInvalid, JournalUnwritable


def test_journal_refuses_a_file_that_is_no_database(tmp_path):
    path = tmp_path / "s.sqlite3"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(JournalInvalid, match="begin again with --new"):
        FederationJournal(path)


def test_journal_refuses_another_version(tmp_path):
    path = tmp_path / "s.sqlite3"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version=99")
    with pytest.raises(JournalInvalid, match="another version"):
        FederationJournal(path)


def test_journal_keeps_facts_and_the_newest_notes(tmp_path):
    journal = FederationJournal(tmp_path / "s.sqlite3")
    assert journal.fact("k") is None
    journal.set_fact("k", "1")
    journal.set_fact("k", "2")
    journal.note("first")
    journal.note("second")
    journal.close()
    again = FederationJournal(tmp_path / "s.sqlite3")
    assert again.fact("k") == "2"
    assert [text for _, text in again.notes()] == ["first", "second"]


def test_journal_writes_through_to_the_disk(tmp_path):
    journal = FederationJournal(tmp_path / "s.sqlite3")
    assert journal._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert journal._database.execute("PRAGMA synchronous").fetchone() == (2,)


def test_journal_transaction_that_fails_changes_nothing(tmp_path):
    journal = FederationJournal(tmp_path / "s.sqlite3")
    with pytest.raises(sqlite3.Error):
        journal.set_fact("k", None)
    journal.set_fact("k", "1")
    assert journal.fact("k") == "1"


def test_journal_writes_what_belongs_together_at_once(tmp_path):
    journal, seen = FederationJournal(tmp_path / "s.sqlite3"), FederationJournal(tmp_path / "s.sqlite3")
    with journal.together():
        journal.set_fact("a", "1")
        with pytest.raises(sqlite3.Error):
            journal.set_fact("a", None)
        journal.set_fact("b", "2")
        assert seen.fact("a") is None  # it is not on the disk
    assert (seen.fact("a"), seen.fact("b")) == ("1", "2")
    with contextlib.suppress(KeyError), journal.together():
        journal.set_fact("a", "3")
        raise KeyError
    assert seen.fact("a") == "1"


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("UPDATE rounds SET body = x'78'", "rounds"),
        ("UPDATE rounds SET members = x'7b7d'", "rounds"),
        ("UPDATE devices SET hello = x'7b7d'", "devices"),
        ("UPDATE weights SET blob = x'00'", "weights"),
        ("UPDATE phases SET body = x'5b'", "phases"),
        ("UPDATE results SET body = x'22ff22'", "results"),
    ],
)
def test_journal_with_a_row_of_something_else_is_said_to_be_damaged(world, statement, table):
    world = world()
    world.device("x").start()
    world.device("y").start()
    world.until(lambda: len(world.journal.results(0)) == 2)
    world.journal.check()
    world.journal._database.execute(statement)
    with pytest.raises(JournalInvalid, match=f"is damaged: a row of its table {table} .* backup, or begin again"):
        world.journal.check()
    with pytest.raises(JournalInvalid, match=f"its table {table}"):
        boot_and_play(world)


def boot_and_play(world):
    world.crash()
    world.until_finished()


@pytest.mark.parametrize("how", ["truncated", "garbage"])
def test_journal_whose_pages_are_damaged_says_so(tmp_path, how):
    path = tmp_path / "s.sqlite3"
    journal = FederationJournal(path)
    for number in range(200):
        journal.note(f"note {number} " + "x" * 200)
    journal.close()
    data = path.read_bytes()
    path.write_bytes(data[:20_000] if how == "truncated" else data[:4096] + b"\xa5" * (len(data) - 4096))
    with pytest.raises(JournalInvalid, match="s.sqlite3 is damaged: .* backup, or begin again with --new"):
        FederationJournal(path).check()


def test_journal_on_a_full_disk_says_so_and_has_all_that_was_acknowledged(tmp_path):
    journal = FederationJournal(tmp_path / "s.sqlite3")
    journal.set_fact("k", "1")
    pages = journal._database.execute("PRAGMA page_count").fetchone()[0]
    journal._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(JournalUnwritable, match="cannot be written: database or disk is full; all that was ack"):
        journal.set_fact("more", "x" * 100_000)
    assert (journal.fact("k"), journal.fact("more")) == ("1", None)
    journal._database.execute("PRAGMA max_page_count = 1000000")
    journal.set_fact("more", "x" * 100_000)
    journal.close()


def test_journal_takes_a_result_out_of_a_round(world):
    world = world()
    world.device("x").start()
    world.device("y").start()
    world.until(lambda: len(world.journal.results(0)) == 2)
    world.journal.remove_result(0, "x")
    assert set(world.journal.results(0)) == {"y"}


def test_journal_counts_a_result_once(world):
    world = world()
    world.device("x").start()
    world.device("y").start()
    world.until(lambda: len(world.journal.results(0)) == 2)
    result = world.journal.results(0)["x"]
    assert not world.journal.add_result(0, "x", result)


def test_journal_reads_the_rounds_of_earlier_versions(tmp_path):
    body = (
        b'{"round":3,"phase":"merge","work":"train","group":"a+b","tasks":["a","b"],"index":1,"rounds":2,'
        b'"probe":true,"data_split":null}'
    )
    journal = FederationJournal(tmp_path / "s.sqlite3")
    journal._database.execute(
        "INSERT INTO rounds (round, body, members, quorum, started_s) VALUES (3, ?, ?, 1, 0.0)", (body, b'["x"]')
    )
    row = journal.row(3)
    assert (row.round.number, row.round.group, row.round.index) == (3, "a+b", 1)
    assert msgspec.json.encode(row.round) == body
    assert journal.row(4) is None


def test_journal_keeps_how_long_devices_took(tmp_path):
    journal = FederationJournal(tmp_path / "journal")
    assert journal.learnt() == Learnt()
    journal.set_fact(LEARNT, '{"times":{"train":[1.5,2.0]},"paces":{"x":0.5}}')
    assert journal.learnt() == Learnt(times={"train": (1.5, 2.0)}, paces={"x": 0.5})
    journal.set_fact(LEARNT, '{"times":"long"}')
    with pytest.raises(JournalInvalid, match="table meta"):
        journal.learnt()


def test_journal_keeps_how_fast_lines_are(tmp_path):
    journal = FederationJournal(tmp_path / "journal")
    assert journal.upload_rates() == {}
    journal.set_fact(UPLOAD_RATES, '{"x":5000.0}')
    assert journal.upload_rates() == {"x": 5000.0}
    journal.set_fact(UPLOAD_RATES, '{"x":-1.0}')
    with pytest.raises(JournalInvalid, match="table meta"):
        journal.upload_rates()
