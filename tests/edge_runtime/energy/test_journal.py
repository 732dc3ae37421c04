import os

import pytest

from edge_runtime.energy.journal import Journal, sync
from edge_runtime.energy.records import DropRound, Reading, to_line


def test_journal_that_is_not_there_is_empty(tmp_path):
    assert Journal(tmp_path / "none").read() == ([], 0)


def test_journal_gives_back_what_was_appended(tmp_path):
    journal = Journal(tmp_path / "deep" / "energy.journal")
    journal.restart([Reading(1.0, (2.0,))])
    for n in range(5):
        journal.append(Reading(float(n), (3.0,)))
    journal.close()
    journal.close()
    records, torn = journal.read()
    assert (len(records), torn) == (6, 0)
    assert journal.size_bytes == (tmp_path / "deep" / "energy.journal").stat().st_size


def test_restart_drops_a_torn_line_and_replaces_the_file_whole(tmp_path):
    path = tmp_path / "energy.journal"
    path.write_bytes(to_line(DropRound(1, "a")) + to_line(DropRound(2, "a"))[:-4])
    journal = Journal(path)
    records, torn = journal.read()
    assert (records, torn) == ([DropRound(1, "a")], 1)
    journal.restart(records)
    journal.append(DropRound(3, "a"))
    assert journal.read() == ([DropRound(1, "a"), DropRound(3, "a")], 0)
    journal.restart([])
    assert journal.read() == ([], 0)
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_is_an_error():
    journal = Journal("/dev/full")
    journal._descriptor = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="space"):
        journal.append(DropRound(3, "a"))
    journal.close()


def test_sync_works_beside_appending_and_closes_what_it_was_given(tmp_path):
    journal = Journal(tmp_path / "energy.journal")
    assert journal.descriptor() is None
    journal.restart([])
    descriptor = journal.descriptor()
    journal.restart([DropRound(1, "a")])
    sync(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    journal.append(DropRound(2, "a"))
    assert len(journal.read()[0]) == 2
    journal.close()
