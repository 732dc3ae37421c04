import pytest

from edge_runtime.agent.uplink import SHORT_S, Uplink
from edge_runtime.wire.blob import Blob, ChunkRun

BLOB = Blob(digest="a" * 64, size_bytes=10_500, chunk_bytes=1024)
OTHER = Blob(digest="b" * 64, size_bytes=2048, chunk_bytes=1024)
ALL = (ChunkRun(0, 11),)


def upload(uplink, took_s, blob=BLOB, runs=ALL, start_s=100.0):
    uplink.on_runs_requested(blob, runs, start_s)
    return uplink.on_acknowledged(start_s + took_s)


def test_uplink_is_unknown_at_first():
    assert Uplink().bytes_per_s is None
    assert Uplink(5.0).bytes_per_s == 5.0


def test_uplink_measures_from_the_first_chunk_asked_for_to_the_acknowledgement():
    uplink = Uplink()
    uplink.on_runs_requested(BLOB, (ChunkRun(0, 4),), 10.0)
    uplink.on_runs_requested(BLOB, (ChunkRun(3, 1), ChunkRun(4, 7)), 12.0)  # chunk 3 was lost, and counts once
    assert uplink.on_acknowledged(14.0)
    assert uplink.bytes_per_s == 10_500 / 4


def test_uplink_means_over_uploads():
    uplink = Uplink()
    upload(uplink, 10.5)
    assert uplink.bytes_per_s == 1000
    assert upload(uplink, 3.5)
    assert uplink.bytes_per_s == 2000


@pytest.mark.parametrize("before", [None, 20_000.0])
def test_uplink_is_not_slow_for_a_short_upload(before):
    uplink = Uplink(before)
    assert not upload(uplink, 0.99 * SHORT_S)
    assert uplink.bytes_per_s == before


def test_uplink_is_fast_where_a_short_upload_was_faster():
    uplink = Uplink(1000.0)
    assert upload(uplink, 0.5)
    assert uplink.bytes_per_s == 21_000


def test_uplink_without_an_upload_measures_nothing():
    uplink = Uplink()
    assert not uplink.on_acknowledged(5.0)
    uplink.on_runs_requested(BLOB, ALL, 1.0)
    uplink.on_upload_lost()
    assert not uplink.on_acknowledged(5.0)
    assert not upload(uplink, 0.0)
    assert uplink.bytes_per_s is None


def test_uplink_begins_again_with_another_update():
    uplink = Uplink()
    uplink.on_runs_requested(BLOB, ALL, 1.0)
    assert upload(uplink, 2.0, OTHER, (ChunkRun(0, 2),), start_s=50.0)
    assert uplink.bytes_per_s == 1024
    assert not uplink.on_acknowledged(60.0)  # an acknowledgement counts once


def test_uplink_counts_what_this_connection_has_sent():
    uplink = Uplink()
    assert upload(uplink, 2.0, runs=(ChunkRun(9, 2),))
    assert uplink.bytes_per_s == (1024 + 260) / 2
