"""Fetching over a line in memory that keeps order, and loses what the test wants it to lose."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.wire.blob import Blob, ChunkRun
from edge_runtime.wire.fetch import MAX_PROBE_S, PROBE_S, Fetch
from edge_runtime.wire.messages import MAX_RUNS, LossProbe, Need
from edge_runtime.wire.pace import FIRST_WINDOW_BYTES, Pace

CHUNK = 4096


def blob_of(chunks, letter="a"):
    return Blob(digest=letter * 64, size_bytes=chunks * CHUNK - 100)


def fetch_of(*wanted, pace=None, **more):
    fetch = Fetch(pace or Pace(), **more)
    for blob in wanted:
        fetch.want(blob, [ChunkRun(0, blob.chunks)])
    return fetch


def runs(requests):
    return [(need.digest[0], run.first, run.count) for need in requests for run in need.runs]


def test_a_window_is_asked_for_and_more_when_a_third_is_left():
    fetch = fetch_of(blob_of(20))
    assert runs(fetch.requests(0.0)) == [("a", 0, 4), ("a", 4, 4)]
    assert fetch.asked_bytes == FIRST_WINDOW_BYTES
    assert fetch.requests(0.1) == []
    assert fetch.on_run("a" * 64, ChunkRun(0, 4), 10.0)
    assert fetch.requests(10.0) == []  # half of it is still under way
    assert fetch.on_run("a" * 64, ChunkRun(4, 4), 20.0)
    assert runs(fetch.requests(20.0))[0] == ("a", 8, 2)  # 3 kB/s: shorter messages
    assert fetch.done_bytes == 8 * CHUNK
    assert fetch.total_bytes == 20 * CHUNK - 100


def test_one_window_is_shared_by_all_blobs_and_each_has_its_need():
    fetch = fetch_of(blob_of(2), blob_of(3, "b"), blob_of(9, "c"))
    requests = fetch.requests(0.0)
    assert [need.digest[0] for need in requests] == ["a", "b", "c"]
    assert runs(requests) == [("a", 0, 2), ("b", 0, 3), ("c", 0, 3)]
    assert fetch.lacks("c" * 64)
    assert not fetch.lacks("d" * 64)
    fetch.drop("c" * 64)
    assert not fetch.lacks("c" * 64)
    assert fetch.asked_bytes == 5 * CHUNK - 200
    assert fetch.done_bytes + fetch.asked_bytes == fetch.total_bytes


def test_a_need_has_no_more_runs_than_a_message_takes():
    many = Fetch(Pace(1e9))
    blob = blob_of(200)
    many.want(blob, [ChunkRun(index, 1) for index in range(0, 200, 2)])
    (need,) = many.requests(0.0)
    assert len(need.runs) == MAX_RUNS


def test_what_arrives_proves_that_what_was_asked_for_before_is_lost():
    fetch = fetch_of(blob_of(8))
    fetch.requests(0.0)
    assert fetch.on_run("a" * 64, ChunkRun(5, 1), 0.1)  # 0 to 3 were lost, and 4
    assert fetch.asked_bytes == 2 * CHUNK - 100
    assert [run[1:] for run in runs(fetch.requests(0.1))] == [(0, 4), (4, 1)]
    assert not fetch.on_run("a" * 64, ChunkRun(5, 1), 2.0)  # a second copy proves nothing


def test_what_another_process_asked_for_is_not_asked_for_again():
    fetch = fetch_of(blob_of(20), blob_of(2, "b"))
    fetch.requests(0.0)
    assert not fetch.on_run("a" * 64, ChunkRun(10, 2), 0.5)
    assert not fetch.on_run("b" * 64, ChunkRun(0, 2), 0.5)
    assert not fetch.lacks("b" * 64)
    fetch.on_run("a" * 64, ChunkRun(0, 4), 1.0)
    fetch.on_run("a" * 64, ChunkRun(4, 4), 1.0)
    asked = [index for _, first, count in runs(fetch.requests(1.0)) for index in range(first, first + count)]
    assert asked == [8, 9, 12, 13, 14, 15, 16, 17, 18, 19]
    assert not fetch.on_run("z" * 64, ChunkRun(0, 1), 1.0)


def test_a_silence_is_no_proof_and_its_probe_s_answer_is():
    fetch = fetch_of(blob_of(8), first_probe=41)
    fetch.requests(0.0)
    assert fetch.requests(PROBE_S - 0.1) == []
    assert fetch.requests(PROBE_S) == [LossProbe(digest="a" * 64, number=42)]
    assert fetch.requests(PROBE_S + 0.1) == []
    fetch.on_run("a" * 64, ChunkRun(0, 4), PROBE_S + 1)
    fetch.on_marker(41, PROBE_S + 1)  # an earlier process's
    assert fetch.requests(PROBE_S + 1) == []
    fetch.on_marker(42, PROBE_S + 2)
    assert runs(fetch.requests(PROBE_S + 2))[0][1] == 4


def test_probes_grow_rarer_while_nothing_comes():
    fetch, now_s, pauses, last_s = fetch_of(blob_of(8)), 0.0, [], 0.0
    fetch.requests(0.0)
    while len(pauses) < 6:
        now_s += 1.0
        if fetch.requests(now_s):
            pauses.append(now_s - last_s)
            last_s = now_s
    assert pauses == [PROBE_S, 20.0, 40.0, 80.0, MAX_PROBE_S, MAX_PROBE_S]


def test_a_connection_that_was_lost_is_probed_at_once_and_once():
    fetch = fetch_of(blob_of(8))
    fetch.doubt()
    assert all(isinstance(request, Need) for request in fetch.requests(0.0))  # nothing was under way
    fetch.doubt()
    (probe,) = fetch.requests(1.0)
    assert fetch.requests(1.0) == []
    fetch.on_marker(probe.number, 2.0)
    assert fetch.asked_bytes == 0
    assert runs(fetch.requests(2.0)) == [("a", 0, 4), ("a", 4, 4)]


@pytest.mark.parametrize(("most", "chunks"), [(0, 0), (3 * CHUNK, 3), (10**9, 8)])
def test_no_more_is_under_way_than_there_is_room_for(most, chunks):
    fetch = fetch_of(blob_of(20))
    assert sum(count for _, _, count in runs(fetch.requests(0.0, most))) == chunks


@settings(max_examples=60)
@given(data=st.data())
def test_whatever_is_lost_all_of_it_comes_and_only_what_was_lost_comes_twice(data):
    """The line keeps order. It loses requests, runs, probes and markers, and the sender cuts runs as it likes."""
    fetch, wire, have, lost, sent = fetch_of(blob_of(40), blob_of(7, "b")), deque(), set(), 0, 0
    now_s = 0.0
    for step in range(600):
        now_s += 1.0
        lossy = step < 100
        for request in fetch.requests(now_s):
            if lossy and data.draw(st.integers(0, 9)) == 0:
                lost += 50
            elif isinstance(request, LossProbe):
                wire.append(request)
            else:
                for run in request.runs:
                    for first in range(run.first, run.end, 3):
                        wire.append((request.digest, ChunkRun(first, min(3, run.end - first))))
        if wire:
            item = wire.popleft()
            if lossy and data.draw(st.integers(0, 9)) == 0:
                lost += 1 if isinstance(item, LossProbe) else item[1].count
            elif isinstance(item, LossProbe):
                fetch.on_marker(item.number, now_s)
            else:
                digest, run = item
                sent += run.count
                have |= {(digest, index) for index in range(run.first, run.end)}
                fetch.on_run(digest, run, now_s)
        if fetch.done_bytes == fetch.total_bytes:
            break
    assert len(have) == 47
    assert sent == 47  # what arrives was never asked for again
