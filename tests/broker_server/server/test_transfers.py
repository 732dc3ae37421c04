import numpy as np
import pytest

from broker_server.rounds.device_uploads import DeviceUploads
from broker_server.server.transfers import MAX_RETRY_S, RETRY_S, Chunk, ServedBlobs, Uploads
from edge_runtime.wire.blob import WINDOW, describe
from edge_runtime.wire.errors import BlobInvalid
from edge_runtime.wire.messages import Need

DATA = np.random.default_rng(0).bytes(30 * 1024 + 100)
BLOB = describe(DATA, chunk_bytes=1024)


def chunk(index):
    return DATA[index * 1024 : (index + 1) * 1024]


@pytest.fixture
def uploads(tmp_path):
    return Uploads(DeviceUploads(tmp_path))


def test_downloads_one_publish_serves_all():
    downloads = ServedBlobs()
    downloads.offer(BLOB)
    need = Need(digest=BLOB.digest, chunks=(0, 1, 1))
    assert downloads.need("x", need, 0.0) == [Chunk(BLOB, 0), Chunk(BLOB, 1)]
    assert downloads.need("x", Need(digest=BLOB.digest, chunks=(1, 2)), 0.4) == [Chunk(BLOB, 2)]
    assert downloads.need("x", need, 0.6) == [Chunk(BLOB, 0), Chunk(BLOB, 1)]
    assert downloads.counts["need answered by another's chunk"] == 1


def test_downloads_who_comes_too_late_for_a_chunk_gets_it_at_the_next_tick():
    downloads = ServedBlobs()
    downloads.offer(BLOB)
    first = Need(digest=BLOB.digest, chunks=(0, 1))
    assert len(downloads.need("x", first, 0.0)) == 2
    for name in "yz":  # they subscribed after the chunks had gone
        assert downloads.need(name, first, 0.1) == []
    assert downloads.tick(0.2) == [Chunk(BLOB, 0), Chunk(BLOB, 1)]
    assert downloads.tick(0.3) == []
    assert downloads.need("x", first, 0.6) == []  # published again a moment ago
    assert downloads.counts["need answered by another's chunk"] == 2
    following = Need(digest=BLOB.digest, chunks=(2,))
    assert len(downloads.need("x", following, 1.0)) == 1
    assert downloads.need("y", following, 1.1) == []  # it has long subscribed, so that chunk has reached it
    assert downloads.tick(1.2) == []
    downloads.on_connected("y")
    assert downloads.need("y", following, 1.3) == []
    downloads.withdraw(BLOB.digest)
    assert downloads.tick(1.4) == []


def test_downloads_unknown_blob_or_chunk():
    downloads = ServedBlobs()
    need = Need(digest=BLOB.digest, chunks=(31,))
    assert downloads.need("x", need, 0.0) == []
    downloads.offer(BLOB)
    assert downloads.need("x", need, 0.0) == []
    downloads.withdraw(BLOB.digest)
    downloads.withdraw(BLOB.digest)
    assert downloads.need("x", Need(digest=BLOB.digest, chunks=(0,)), 0.0) == []
    assert downloads.counts == {"need of an unknown blob": 2, "need of an unknown chunk": 1}


def test_uploads_fetch_a_blob_window_by_window(uploads, tmp_path):
    whole, need = uploads.begin("x", BLOB, 0.0)
    assert need.chunks == tuple(range(WINDOW))
    wanted, asked = list(need.chunks), list(need.chunks)
    while not whole:
        assert len(wanted) <= WINDOW
        index = wanted.pop(0)
        whole, need = uploads.chunk("x", BLOB.digest, index, chunk(index), 1.0)
        if need:
            wanted += need.chunks
            asked += need.chunks
    assert asked == list(range(31))  # each once
    assert "x" not in uploads
    assert DeviceUploads(tmp_path).of("x").read(BLOB.digest) == DATA
    assert uploads.begin("x", BLOB, 2.0) == (True, None)
    assert uploads.begin("y", BLOB, 2.0)[1] is not None  # what another device has sent is not its own


def test_uploads_ask_again_with_growing_pauses(uploads):
    uploads.begin("x", BLOB, 0.0)
    assert uploads.tick(RETRY_S - 1) == []
    assert uploads.tick(RETRY_S) == [("x", Need(digest=BLOB.digest, chunks=tuple(range(WINDOW))))]
    assert uploads.tick(2 * RETRY_S) == []
    assert len(uploads.tick(3 * RETRY_S)) == 1
    uploads.chunk("x", BLOB.digest, 0, chunk(0), 3 * RETRY_S + 1)
    assert uploads.tick(4 * RETRY_S) == []
    assert uploads.tick(4 * RETRY_S + 1)[0][1].chunks == tuple(range(1, WINDOW + 1))
    for number in range(10):
        assert len(uploads.tick(1e6 * (number + 1))) == 1
    assert len(uploads.tick(1e7 + MAX_RETRY_S)) == 1


def test_uploads_wait_for_a_slow_link_as_long_as_its_chunks_take(uploads):
    """Each chunk takes longer than RETRY_S: once the first has come, nothing is asked for twice."""
    now_s, asked = 0.0, list(uploads.begin("x", BLOB, 0.0)[1].chunks)
    for index in range(BLOB.chunks - 1):
        now_s += 0.9 * RETRY_S if index == 0 else 1.5 * RETRY_S
        _, need = uploads.chunk("x", BLOB.digest, index, chunk(index), now_s)
        asked += need.chunks if need else ()
        assert uploads.tick(now_s + 1.4 * RETRY_S) == []
    assert asked == list(range(BLOB.chunks))


def test_uploads_that_are_announced_again_go_on(uploads):
    uploads.begin("x", BLOB, 0.0)
    for index in range(3):
        uploads.chunk("x", BLOB.digest, index, chunk(index), 1.0)
    assert uploads.begin("x", BLOB, 2.0) == (False, None)  # most of the window is on its way
    _, need = uploads.chunk("x", BLOB.digest, 3, chunk(3), 3.0)
    assert need.chunks == tuple(range(WINDOW, WINDOW + 4))
    assert uploads.begin("x", BLOB, 4.0) == (False, None)


def test_uploads_of_a_device_that_has_connected_again_ask_for_what_was_on_its_way(uploads):
    uploads.on_connected("x")
    uploads.begin("x", BLOB, 0.0)
    uploads.chunk("x", BLOB.digest, 1, chunk(1), 1.0)
    uploads.on_connected("x")
    assert uploads.begin("x", BLOB, 2.0) == (False, Need(digest=BLOB.digest, chunks=(0, *range(2, WINDOW + 1))))


def test_uploads_begin_anew_when_other_weights_are_announced(uploads):
    uploads.begin("x", BLOB, 0.0)
    small = describe(b"other" * 300, chunk_bytes=1024)
    assert uploads.begin("x", small, 1.0) == (False, Need(digest=small.digest, chunks=(0, 1)))
    assert uploads.chunk("x", BLOB.digest, 0, chunk(0), 2.0) == (False, None)


def test_uploads_go_on_after_a_restart(uploads, tmp_path):
    uploads.begin("x", BLOB, 0.0)
    uploads.chunk("x", BLOB.digest, 0, chunk(0), 0.0)
    uploads.chunk("x", BLOB.digest, 2, chunk(2), 0.0)
    again = Uploads(DeviceUploads(tmp_path))
    assert again.begin("x", BLOB, 0.0)[1].chunks == (1, *range(3, WINDOW + 2))


def test_uploads_drop_what_was_not_asked_for(uploads):
    assert uploads.chunk("x", BLOB.digest, 0, chunk(0), 0.0) == (False, None)
    uploads.begin("x", BLOB, 0.0)
    assert uploads.chunk("x", "0" * 64, 0, chunk(0), 0.0) == (False, None)
    assert uploads.chunk("x", BLOB.digest, 31, chunk(0), 0.0) == (False, None)
    assert uploads.chunk("x", BLOB.digest, 0, b"short", 0.0) == (False, None)
    assert uploads.counts == {"chunk not asked for": 2, "chunk of a wrong index or length": 2}


def test_uploads_end_with_a_wrong_digest(uploads):
    small = describe(b"right" * 300, chunk_bytes=1024)
    uploads.begin("x", small, 0.0)
    uploads.chunk("x", small.digest, 0, b"w" * 1024, 0.0)
    with pytest.raises(BlobInvalid, match="SHA-256"):
        uploads.chunk("x", small.digest, 1, b"w" * 476, 0.0)
    assert "x" not in uploads


def test_uploads_of_the_same_content_by_two_devices(uploads):
    small = describe(b"same" * 300, chunk_bytes=1024)
    uploads.begin("x", small, 0.0)
    uploads.begin("y", small, 0.0)
    for index in (0, 1):
        data = (b"same" * 300)[1024 * index : 1024 * (index + 1)]
        x = uploads.chunk("x", small.digest, index, data, 0.0)
        y = uploads.chunk("y", small.digest, index, data, 0.0)
    assert x == y == (True, None)


def test_uploads_abandoned(uploads):
    uploads.begin("x", BLOB, 0.0)
    uploads.abandon("x")
    assert uploads.tick(1e6) == []
