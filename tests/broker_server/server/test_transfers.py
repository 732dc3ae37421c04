import errno

import numpy as np
import pytest

from broker_server.rounds.device_uploads import DeviceUploads
from broker_server.server import transfers
from broker_server.server.transfers import MAX_WAITING, UNSTORED_S, Piece, ServedBlobs, Uploads
from edge_runtime.wire.blob import Assembly, ChunkRun, describe
from edge_runtime.wire.errors import BlobInvalid
from edge_runtime.wire.fetch import PROBE_S
from edge_runtime.wire.messages import LossProbe, Need

DATA = np.random.default_rng(0).bytes(30 * 1024 + 100)
BLOB = describe(DATA, chunk_bytes=1024)
ALL = ChunkRun(0, 31)


def part(run):
    return DATA[run.first * 1024 : run.end * 1024]


def need(*runs, digest=BLOB.digest):
    return Need(digest=digest, runs=tuple(ChunkRun(*run) for run in runs))


def served_all(served):
    """What is sent, in order."""
    sent = []
    while (piece := served.next()) is not None:
        sent.append(piece)
        served.sent(piece)
    assert not served
    return sent


@pytest.fixture
def served():
    served = ServedBlobs()
    served.offer(BLOB)
    return served


@pytest.fixture
def uploads(tmp_path):
    return Uploads(DeviceUploads(tmp_path))


# What devices ask for


def test_each_device_has_its_turn_and_its_requests_keep_their_order(served):
    served.on_request("x", need((0, 2), (5, 1)))
    served.on_request("x", LossProbe(digest=BLOB.digest, number=9))
    served.on_request("x", need((7, 1)))
    served.on_request("y", need((0, 2)))
    assert [(piece.device, piece.index, piece.run) for piece in served_all(served)] == [
        ("x", 0, ChunkRun(0, 2)),
        ("y", 0, ChunkRun(0, 2)),
        ("x", 5, ChunkRun(5, 1)),
        ("x", 9, None),
        ("x", 7, ChunkRun(7, 1)),
    ]


def test_what_is_next_stays_so_until_it_was_sent(served):
    served.on_request("x", need((0, 2)))
    assert served.next() == served.next() == Piece("x", BLOB.digest, 0, BLOB, ChunkRun(0, 2))
    assert served


def test_a_run_is_cut_where_a_message_takes_less(served):
    served.most_bytes = 4096
    served.on_request("x", need((1, 9), (20, 2)))
    assert [piece.run for piece in served_all(served)] == [
        ChunkRun(1, 4),
        ChunkRun(5, 4),
        ChunkRun(9, 1),
        ChunkRun(20, 2),
    ]


def test_what_is_not_offered_is_counted_and_passed_over(served):
    served.on_request("x", need((0, 1), (4, 2), digest="0" * 64))
    served.on_request("x", need((30, 2), (3, 1)))
    assert [piece.run for piece in served_all(served)] == [ChunkRun(3, 1)]
    served.on_request("x", need((3, 1)))
    served.withdraw(BLOB.digest)
    served.withdraw(BLOB.digest)
    assert served_all(served) == []
    assert served.counts == {"need of an unknown blob": 3, "need of an unknown chunk": 1}


def test_a_device_that_asks_without_end_is_counted(served):
    for _ in range(MAX_WAITING + 2):
        served.on_request("x", need((0, 1)))
    assert len(served_all(served)) == MAX_WAITING
    assert served.counts == {"need beyond what a device may have waiting": 2}


# What devices send


def complete(uploads):
    """The devices whose blobs have become complete on the disk."""
    return [write.device for write in uploads.written(0.0) if write.is_complete]


def asked(requests):
    return [run for request in requests if isinstance(request, Need) for run in request.runs]


def test_an_upload_is_asked_for_once_and_complete_with_the_last_run(uploads):
    is_here, requests = uploads.begin("x", BLOB, 0.0)
    assert not is_here
    assert asked(requests) == [ALL]
    assert uploads.on_run("x", BLOB.digest, 0, part(ChunkRun(0, 20)), 1.0) == []
    assert uploads.written(1.0) == []
    assert "x" in uploads
    assert uploads.on_run("x", BLOB.digest, 20, part(ChunkRun(20, 11)), 2.0) == []
    assert complete(uploads) == ["x"]
    assert "x" not in uploads
    assert uploads.begin("x", BLOB, 3.0) == (True, [])


def test_a_silent_device_is_probed_and_what_was_lost_is_asked_for_again(uploads):
    uploads.begin("x", BLOB, 0.0)
    assert uploads.tick(PROBE_S - 1) == []
    ((device, probe),) = uploads.tick(10 * PROBE_S)
    assert device == "x"
    uploads.on_run("x", BLOB.digest, 0, part(ChunkRun(0, 5)), 11 * PROBE_S)
    requests = uploads.on_run("x", BLOB.digest, probe.number, b"", 11 * PROBE_S)
    assert asked(requests)[0].first == 5


@pytest.mark.parametrize("heard", ["announced", "connected"])
def test_a_device_that_announces_or_connects_again_is_probed(uploads, heard):
    uploads.on_connected("x")
    uploads.begin("x", BLOB, 0.0)
    if heard == "announced":
        _, requests = uploads.begin("x", BLOB, 1.0)
    else:
        uploads.on_connected("x")
        requests = [request for _, request in uploads.tick(1.0)]
    assert [type(request) for request in requests] == [LossProbe]


def test_another_update_takes_the_place_of_the_one_on_its_way(uploads):
    uploads.begin("x", BLOB, 0.0)
    uploads.on_run("x", BLOB.digest, 0, part(ChunkRun(0, 3)), 0.5)
    small = describe(b"other" * 300, chunk_bytes=1024)
    assert asked(uploads.begin("x", small, 1.0)[1]) == [ChunkRun(0, 2)]
    assert uploads.on_run("x", BLOB.digest, 0, part(ALL), 2.0) == []
    assert uploads.counts == {"chunk not asked for": 1}
    assert list(uploads._folders.of("x").digests()) == []  # what had come of the first is gone


def test_uploads_go_on_after_a_restart(uploads, tmp_path):
    uploads.begin("x", BLOB, 0.0)
    uploads.on_run("x", BLOB.digest, 2, part(ChunkRun(2, 3)), 0.0)
    again = Uploads(DeviceUploads(tmp_path))
    assert asked(again.begin("x", BLOB, 0.0)[1]) == [ChunkRun(0, 2), ChunkRun(5, 26)]


def test_a_later_process_begins_with_the_window_of_a_device_s_line(uploads, tmp_path):
    uploads.begin("x", BLOB, 0.0)
    for second in range(1, 11):
        uploads.on_run("x", BLOB.digest, second, part(ChunkRun(second, 1)), float(second))
    assert uploads.rates() == {"x": 1000.0}
    other = describe(DATA[::-1], chunk_bytes=1024)
    again = Uploads(DeviceUploads(tmp_path), rates=uploads.rates())
    assert sum(run.count for run in asked(again.begin("x", other, 0.0)[1])) < BLOB.chunks
    assert asked(again.begin("y", other, 0.0)[1]) == [ALL]


def test_all_devices_together_are_asked_for_no_more_than_there_is_room_for(uploads, monkeypatch):
    monkeypatch.setattr(transfers, "MAX_HELD_BYTES", 40 * 1024)
    assert asked(uploads.begin("x", BLOB, 0.0)[1]) == [ALL]
    assert asked(uploads.begin("y", BLOB, 0.0)[1]) == [ChunkRun(0, 9)]
    assert uploads.begin("z", BLOB, 0.0) == (False, [])
    assert uploads.tick(1.0) == []
    uploads.on_run("x", BLOB.digest, 0, part(ALL), 2.0)
    assert uploads.tick(2.0) == []  # it is not on the disk yet
    assert complete(uploads) == ["x"]
    waiting = uploads.tick(3.0)
    assert [device for device, _ in waiting] == ["y", "z"]
    assert sum(run.count for run in asked([request for _, request in waiting])) == 31


def test_uploads_drop_what_was_not_asked_for(uploads):
    assert uploads.on_run("x", BLOB.digest, 0, part(ALL), 0.0) == []
    uploads.begin("x", BLOB, 0.0)
    for index, data in ((31, part(ChunkRun(0, 1))), (0, b"short"), (30, part(ChunkRun(0, 1)))):
        assert uploads.on_run("x", BLOB.digest, index, data, 0.0) == []
    assert uploads.counts == {"chunk not asked for": 1, "chunk of a wrong index or length": 3}


def test_uploads_end_with_a_wrong_digest(uploads):
    uploads.begin("x", BLOB, 0.0)
    uploads.on_run("x", BLOB.digest, 0, bytes(len(DATA)), 0.0)
    (write,) = uploads.written(0.0)
    assert isinstance(write.fault, BlobInvalid)
    assert "SHA-256" in str(write.fault)
    assert "x" not in uploads


def test_what_could_not_be_stored_is_asked_for_again_after_a_while(uploads, monkeypatch):
    uploads.begin("x", BLOB, 0.0)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Assembly, "accept", full)
        uploads.on_run("x", BLOB.digest, 0, part(ALL), 0.5)
    (write,) = uploads.written(0.5)
    assert "No space" in str(write.fault)
    assert uploads.tick(0.5 + UNSTORED_S - 1) == []
    again = asked([request for _, request in uploads.tick(0.5 + UNSTORED_S)])
    assert sum(run.count for run in again) == ALL.count
    uploads.on_run("x", BLOB.digest, 0, part(ALL), 20.0)
    assert complete(uploads) == ["x"]


def test_uploads_of_the_same_content_by_two_devices(uploads):
    for device in "xy":
        uploads.begin(device, BLOB, 0.0)
    for device in "xy":
        uploads.on_run(device, BLOB.digest, 0, part(ALL), 0.0)
    assert complete(uploads) == ["x", "y"]


def test_uploads_abandoned(uploads):
    uploads.begin("x", BLOB, 0.0)
    uploads.on_run("x", BLOB.digest, 0, part(ALL), 0.0)
    uploads.abandon("x")
    assert uploads.tick(1e6) == []
    assert complete(uploads) == []
