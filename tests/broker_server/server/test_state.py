import pytest

from broker_server.rounds.journal import JournalInvalid
from broker_server.server.keys import load_or_create
from broker_server.server.state import StateBusy, StateFolder, read_url
from edge_runtime.wire.signing import public_hex


def test_state_folder_is_for_one_server_at_a_time(tmp_path):
    first = StateFolder(tmp_path)
    with pytest.raises(StateBusy, match="--state"):
        StateFolder(tmp_path)
    first.close()
    StateFolder(tmp_path).close()


def test_state_folder_cleared_keeps_the_key(tmp_path):
    folder = StateFolder(tmp_path)
    key = public_hex(load_or_create(tmp_path))
    journal, blobs = folder.open()
    journal.set_fact("k", "1")
    blobs.add(b"x")
    journal.close()
    folder.clear()
    journal, blobs = folder.open()
    assert journal.fact("k") is None
    assert list(blobs.digests()) == []
    assert public_hex(load_or_create(tmp_path)) == key
    journal.close()
    folder.close()


@pytest.mark.parametrize("how", ["empty", "gone"])
def test_state_folder_with_blobs_and_no_journal_is_damaged_and_not_begun_anew(tmp_path, how):
    folder = StateFolder(tmp_path)
    journal, blobs = folder.open()
    blobs.add(b"weights")
    journal.close()
    path = tmp_path / "federation.sqlite3"
    path.unlink()
    if how == "empty":
        path.touch()
    with pytest.raises(JournalInvalid, match=f"federation.sqlite3 is {how}, but .* has the weights of a federation"):
        folder.open()
    folder.clear()
    folder.open()[0].close()
    folder.close()


def test_read_url(tmp_path):
    assert read_url(tmp_path) is None
