import sqlite3

import msgspec
import pytest

from broker_server.rounds.journal import FederationJournal, JournalInvalid


def test_journal_refuses_a_file_that_is_no_database(tmp_path):
    path = tmp_path / "s.sqlite3"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(JournalInvalid, match="move it away"):
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
