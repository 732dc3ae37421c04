import pytest

from broker_server.server import outgoing
from broker_server.server.outgoing import Outgoing
from broker_server.server.transfers import Chunk
from edge_runtime.wire.blob import BlobStore, describe
from edge_runtime.wire.link import LinkFull
from edge_runtime.wire.topics import Topics

TOPICS = Topics("home")


class Room:
    """A link that takes so many messages."""

    def __init__(self, room=10**6):
        self.room = room
        self.taken = []

    def publish(self, topic, payload, *, retain=False):
        if len(self.taken) == self.room:
            raise LinkFull
        self.taken.append((topic, payload))


@pytest.fixture
def blobs(tmp_path):
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def link():
    return Room()


@pytest.fixture
def waiting(link, blobs):
    return Outgoing(link, TOPICS, blobs)


def chunks(blob, *indices):
    return [Chunk(blob, index) for index in indices]


def test_messages_go_before_pieces_and_pieces_before_chunks(waiting, link, blobs):
    blob = blobs.add(b"data")
    waiting.chunks(chunks(blob, 0))
    waiting.fragment("pi", b"fragment")
    waiting.message("pi", b"message")
    waiting.flush()
    assert link.taken == [
        (TOPICS.command("pi"), b"message"),
        (TOPICS.down("pi"), b"fragment"),
        (TOPICS.download(blob.digest, 0), b"data"),
    ]
    assert waiting.is_empty


def test_what_the_link_has_no_room_for_goes_later_and_once(waiting, link, blobs):
    blob = blobs.add(bytes(range(200)) * 100, chunk_bytes=4096)
    waiting.message("pi", b"first")
    waiting.message("pi", b"second")
    waiting.chunks(chunks(blob, 1, 0))
    for room in range(1, 5):
        link.room = room
        waiting.flush()
        assert len(link.taken) == room
        assert waiting.is_empty == (room == 4)
    assert [payload for _, payload in link.taken] == [b"first", b"second", blobs.chunk(blob, 1), blobs.chunk(blob, 0)]


def test_of_too_many_messages_the_newest_are_kept(waiting, link):
    for number in range(outgoing.MAX_MESSAGES + 3):
        waiting.message("pi", b"%d" % number)
    waiting.flush()
    assert [int(payload) for _, payload in link.taken] == list(range(3, outgoing.MAX_MESSAGES + 3))


def test_of_too_many_chunks_the_first_are_kept_and_the_others_counted(waiting, link, blobs):
    blob = blobs.add(b"data")
    waiting.chunks(chunks(blob, *[0] * (outgoing.MAX_CHUNKS - 1)))
    waiting.chunks(chunks(blob, 0, 0, 0))
    waiting.flush()
    assert len(link.taken) == outgoing.MAX_CHUNKS
    assert waiting.counts["chunk that the link had no room for"] == 2


def test_the_host_may_not_say_more_while_too_much_of_it_waits(waiting, link):
    link.room = 0
    while waiting.takes_fragments:
        waiting.fragment("pi", b"fragment")
    assert not waiting.is_empty
    link.room = 1
    waiting.flush()
    assert waiting.takes_fragments


def test_a_blob_that_is_gone_is_counted_and_the_next_one_goes(waiting, link, blobs):
    kept = blobs.add(b"kept")
    waiting.chunks([*chunks(describe(b"gone"), 0), *chunks(kept, 0)])
    waiting.flush()
    assert [payload for _, payload in link.taken] == [b"kept"]
    assert waiting.counts["need of a blob that is no longer kept"] == 1


def test_with_the_connection_chunks_are_lost_and_messages_are_not(waiting, link, blobs):
    waiting.message("pi", b"message")
    waiting.fragment("pi", b"fragment")
    waiting.chunks(chunks(blobs.add(b"data"), 0))
    waiting.drop_chunks()
    waiting.flush()
    assert [payload for _, payload in link.taken] == [b"message", b"fragment"]


def test_a_chunk_that_the_system_does_not_read_is_counted_and_the_next_one_goes(waiting, link, blobs):
    unread, kept = blobs.add(b"unread"), blobs.add(b"kept")
    path = blobs.path(unread.digest)
    path.unlink()
    path.mkdir()  # reading it is an error of the system's
    waiting.chunks([*chunks(unread, 0), *chunks(kept, 0)])
    waiting.flush()
    assert [payload for _, payload in link.taken] == [b"kept"]
    assert waiting.counts["chunk that could not be read"] == 1
