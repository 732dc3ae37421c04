import sqlite3

import pytest

from broker_server.rounds.journal import Store, StoreInvalid


def test_store_refuses_a_file_that_is_no_database(tmp_path):
    path = tmp_path / "s.sqlite3"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreInvalid, match="move it away"):
        Store(path)


def test_store_refuses_another_version(tmp_path):
    path = tmp_path / "s.sqlite3"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version=99")
    with pytest.raises(StoreInvalid, match="another version"):
        Store(path)


def test_store_keeps_facts_and_the_newest_notes(tmp_path):
    store = Store(tmp_path / "s.sqlite3")
    assert store.fact("k") is None
    store.set_fact("k", "1")
    store.set_fact("k", "2")
    store.note("first")
    store.note("second")
    store.close()
    again = Store(tmp_path / "s.sqlite3")
    assert again.fact("k") == "2"
    assert [text for _, text in again.notes()] == ["first", "second"]


def test_store_writes_through_to_the_disk(tmp_path):
    store = Store(tmp_path / "s.sqlite3")
    assert store._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._database.execute("PRAGMA synchronous").fetchone() == (2,)


def test_store_transaction_that_fails_changes_nothing(tmp_path):
    store = Store(tmp_path / "s.sqlite3")
    with pytest.raises(sqlite3.Error):
        store.set_fact("k", None)
    store.set_fact("k", "1")
    assert store.fact("k") == "1"


def test_store_counts_a_result_once(world):
    world = world()
    world.device("x").start()
    world.device("y").start()
    world.until(lambda: len(world.store.results(0)) == 2)
    result = world.store.results(0)["x"]
    assert not world.store.add_result(0, "x", result)
