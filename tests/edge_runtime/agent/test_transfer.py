import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.agent.transfer import MAX_RETRY_S, RETRY_S, MissingBlob, Transfers
from edge_runtime.wire.blob import WINDOW, Blob


def wanted(chunks, *, digest="a" * 64, missing=None):
    blob = Blob(digest=digest, size_bytes=1024 * chunks, chunk_bytes=1024)
    return MissingBlob(blob, tuple(range(chunks)) if missing is None else missing)


def test_ask_fills_one_window_over_all_blobs():
    transfers = Transfers([wanted(3), wanted(20, digest="b" * 64)], 0.0)
    assert transfers.next_requests(0.0) == [("a" * 64, (0, 1, 2)), ("b" * 64, (0, 1, 2, 3, 4))]
    assert transfers.next_requests(0.1) == []
    assert (transfers.done, transfers.total) == (0, 23)


def test_ask_goes_on_when_half_of_the_window_has_come():
    transfers = Transfers([wanted(20)], 0.0)
    transfers.next_requests(0.0)
    for index in range(WINDOW // 2 - 1):
        assert transfers.on_chunk("a" * 64, index, 0.1)
        assert transfers.next_requests(0.1) == []
    transfers.on_chunk("a" * 64, WINDOW // 2 - 1, 0.1)
    assert transfers.next_requests(0.1) == [("a" * 64, (8, 9, 10, 11))]
    assert transfers.done == 4


def test_requests_repeat_with_growing_pauses_when_nothing_arrives():
    transfers, now_s, pauses = Transfers([wanted(1)], 0.0), 0.0, []
    assert transfers.next_requests(0.0)
    for _ in range(8):
        before = now_s
        while not transfers.next_requests(now_s):
            now_s += 0.5
        pauses.append(now_s - before)
    assert pauses == [RETRY_S, 4.0, 8.0, 16.0, 32.0, MAX_RETRY_S, MAX_RETRY_S, MAX_RETRY_S]


def test_ask_waits_longer_on_a_slow_link():
    transfers = Transfers([wanted(20)], 0.0)
    transfers.next_requests(0.0)
    transfers.on_chunk("a" * 64, 0, 5.0)
    assert transfers.wait_s == 20.0
    assert transfers.next_requests(24.0) == []
    assert transfers.next_requests(25.0)


def test_ask_again_at_once_after_the_link_was_lost():
    transfers = Transfers([wanted(2)], 0.0)
    transfers.next_requests(0.0)
    transfers.on_link_lost()
    assert transfers.next_requests(0.1) == [("a" * 64, (0, 1))]


def test_arrived_counts_chunks_that_others_asked_for():
    transfers = Transfers([wanted(20)], 0.0)
    transfers.next_requests(0.0)
    assert transfers.on_chunk("a" * 64, 19, 0.0)
    assert transfers.on_chunk("a" * 64, 19, 0.0)
    assert transfers.done == 1


def test_on_chunk_returns_false_when_nothing_is_missing():
    transfers = Transfers([wanted(5, missing=(2,))], 0.0)
    assert transfers.next_requests(0.0) == [("a" * 64, (2,))]
    assert not transfers.on_chunk("a" * 64, 2, 0.0)


def test_restart_asks_for_everything_again():
    transfers = Transfers([wanted(3, missing=(2,)), wanted(1, digest="b" * 64)], 0.0)
    transfers.next_requests(0.0)
    transfers.on_blob_dropped("a" * 64)
    assert transfers.next_requests(0.0) == [("a" * 64, (0, 1, 2))]
    transfers.on_blob_complete("b" * 64)
    assert transfers.digests == ("a" * 64,)


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    loss=st.integers(0, 2**32).map(random.Random),
    share=st.floats(0, 0.9),
)
def test_transfers_end_on_any_link_that_lets_something_through(sizes, loss, share):
    blobs = [wanted(size, digest=str(i) * 64) for i, size in enumerate(sizes)]
    transfers, now_s, rounds = Transfers(blobs, 0.0), 0.0, 0
    while transfers.digests:
        rounds += 1
        assert rounds < 10_000
        asked = transfers.next_requests(now_s)
        assert sum(len(chunks) for _, chunks in asked) <= WINDOW
        for digest, chunks in asked:
            for index in chunks:
                if loss.random() >= share and not transfers.on_chunk(digest, index, now_s):
                    transfers.on_blob_complete(digest)
        now_s += 1.0


def test_completing_an_unknown_blob_is_a_mistake():
    with pytest.raises(KeyError):
        Transfers([], 0.0).on_blob_complete("a" * 64)
