import threading

import pytest

from broker_server.server.run_writer import ImmediateWriter, ThreadedWriter, Write
from edge_runtime.wire.blob import Assembly, BlobStore, ChunkRun, describe
from edge_runtime.wire.errors import BlobInvalid

PATIENCE_S = 30.0
DATA = bytes(range(256)) * 40
BLOB = describe(DATA, chunk_bytes=1024)
RUNS = [ChunkRun(first, 2) for first in range(0, 10, 2)]


def writes(device, root, data=DATA):
    assembly = Assembly(BlobStore(root / device), BLOB)
    return [Write(device, assembly, run, data[run.first * 1024 : run.end * 1024]) for run in RUNS]


@pytest.fixture
def woken():
    return threading.Event()


@pytest.fixture
def threaded(woken):
    writer = ThreadedWriter(woken.set)
    yield writer
    writer.close()


def until(writer, woken, number):
    done = []
    while len(done) < number:
        assert woken.wait(PATIENCE_S)
        woken.clear()
        done += writer.done()
    return done


def test_what_is_written_at_once_is_done(tmp_path):
    writer = ImmediateWriter()
    for write in writes("x", tmp_path):
        writer.put(write)
    assert [write.is_complete for write in writer.done()] == [False] * 4 + [True]
    assert writer.done() == []


def test_each_devices_runs_are_written_in_their_order_beside_others(tmp_path, threaded, woken):
    for pair in zip(writes("x", tmp_path), writes("y", tmp_path), strict=True):
        for write in pair:
            threaded.put(write)
    done = until(threaded, woken, 2 * len(RUNS))
    for device in "xy":
        own = [write for write in done if write.device == device]
        assert [write.run for write in own] == RUNS
        assert [write.is_complete for write in own] == [False] * 4 + [True]
        assert BlobStore(tmp_path / device).read(BLOB.digest) == DATA


def test_what_cannot_be_written_or_is_another_blob_is_said(tmp_path, threaded, woken):
    (tmp_path / "x").mkdir()
    first, *_ = writes("x", tmp_path)
    (tmp_path / "x").rmdir()
    threaded.put(first)
    (lost,) = until(threaded, woken, 1)
    assert isinstance(lost.fault, OSError)
    for write in writes("y", tmp_path, bytes(len(DATA))):
        threaded.put(write)
    *_, last = until(threaded, woken, len(RUNS))
    assert isinstance(last.fault, BlobInvalid)
    assert not last.is_complete


def test_what_another_assembly_has_completed_is_complete(tmp_path):
    writer, late = ImmediateWriter(), writes("x", tmp_path)
    for write in [*writes("x", tmp_path), late[0]]:
        writer.put(write)
    assert writer.done()[-1].is_complete
