import pytest

from broker_server.server import outgoing
from broker_server.server.outgoing import Outgoing
from broker_server.server.transfers import ServedBlobs
from edge_runtime.wire.blob import BlobStore, ChunkRun, describe
from edge_runtime.wire.link import LinkFull
from edge_runtime.wire.messages import LossProbe, Need
from edge_runtime.wire.topics import Topics

TOPICS = Topics("home")


class Room:
    """A link that takes so many messages."""

    def __init__(self, room=10**6):
        self.room = room
        self.taken = []
        self.bytes_out = self.bytes_acknowledged = 0

    def publish(self, topic, payload, *, retain=False):
        if len(self.taken) == self.room:
            raise LinkFull
        self.taken.append((topic, payload))
        self.bytes_out += len(payload)


@pytest.fixture
def blobs(tmp_path):
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def link():
    return Room()


@pytest.fixture
def served():
    return ServedBlobs()


@pytest.fixture
def waiting(link, blobs, served):
    return Outgoing(link, TOPICS, blobs, served, lambda: 0.0)


def want(served, blob, *runs, device="pi"):
    served.offer(blob)
    served.on_request(device, Need(digest=blob.digest, runs=tuple(ChunkRun(*run) for run in runs)))


def test_messages_go_before_fragments_and_fragments_before_chunks(waiting, link, blobs, served):
    blob = blobs.add(b"data")
    want(served, blob, (0, 1))
    served.on_request("pi", LossProbe(digest=blob.digest, number=7))
    waiting.fragment("pi", b"fragment")
    waiting.message("pi", b"message")
    waiting.flush()
    assert link.taken == [
        (TOPICS.command("pi"), b"message"),
        (TOPICS.down("pi"), b"fragment"),
        (TOPICS.download("pi", blob.digest, 0), b"data"),
        (TOPICS.download("pi", blob.digest, 7), b""),
    ]
    assert waiting.is_empty


def test_what_the_link_has_no_room_for_goes_later_and_once(waiting, link, blobs, served):
    blob = blobs.add(bytes(range(200)) * 100)
    waiting.message("pi", b"first")
    waiting.message("pi", b"second")
    want(served, blob, (1, 2), (0, 1))
    for room in range(1, 5):
        link.room = room
        waiting.flush()
        assert len(link.taken) == room
        assert waiting.is_empty == (room == 4)
    assert [payload for _, payload in link.taken[2:]] == [
        blobs.run(blob, ChunkRun(1, 2)),
        blobs.run(blob, ChunkRun(0, 1)),
    ]


def test_no_more_chunks_are_before_a_message_than_pass_in_a_moment(waiting, link, blobs, served):
    blob = blobs.add(bytes(200_000))
    want(served, blob, *((index, 2) for index in range(0, 48, 2)))
    waiting.flush()
    assert 0 < link.bytes_out < 50_000
    link.bytes_acknowledged = link.bytes_out
    waiting.message("pi", b"message")
    waiting.flush()
    assert waiting.is_empty
    assert link.taken[4][1] == b"message"  # of a link that acknowledged all in no time there is much room


def test_of_too_many_messages_the_newest_are_kept(waiting, link):
    for number in range(outgoing.MAX_MESSAGES + 3):
        waiting.message("pi", b"%d" % number)
    waiting.flush()
    assert [int(payload) for _, payload in link.taken] == list(range(3, outgoing.MAX_MESSAGES + 3))


def test_the_encoder_server_may_not_say_more_while_too_much_of_it_waits(waiting, link):
    link.room = 0
    while waiting.takes_fragments:
        waiting.fragment("pi", b"fragment")
    assert not waiting.is_empty
    link.room = 1
    waiting.flush()
    assert waiting.takes_fragments


def test_a_blob_that_is_gone_is_counted_and_the_next_one_goes(waiting, link, blobs, served):
    kept = blobs.add(b"kept")
    want(served, describe(b"gone"), (0, 1))
    want(served, kept, (0, 1))
    waiting.flush()
    assert [payload for _, payload in link.taken] == [b"kept"]
    assert waiting.counts["need of a blob that is no longer kept"] == 1


def test_a_chunk_that_the_system_does_not_read_is_counted_and_the_next_one_goes(waiting, link, blobs, served):
    unread, kept = blobs.add(b"unread"), blobs.add(b"kept")
    path = blobs.path(unread.digest)
    path.unlink()
    path.mkdir()  # reading it is an error of the system's
    want(served, unread, (0, 1))
    want(served, kept, (0, 1))
    waiting.flush()
    assert [payload for _, payload in link.taken] == [b"kept"]
    assert waiting.counts["chunk that could not be read"] == 1
