import io
import sys
import threading

import msgspec
import pytest
import samples

from edge_runtime.wire.encoder_pipe import (
    MAX_FRAME_BYTES,
    WAITING_BYTES,
    EncoderRound,
    EncoderServerProcess,
    PipeClosed,
    read_frame,
    result_file,
    write_frame,
)

pytestmark = pytest.mark.process

SETTINGS = samples.TRAINING
OPEN = EncoderRound(round=3, samples=4, training=SETTINGS, weights="w", results="r", previous="b", precision="int8")


class Slow(io.BytesIO):
    """Takes and gives a byte at a time, as a pipe may."""

    def read(self, length):
        return super().read(min(length, 1))

    def write(self, data):
        return super().write(data[:1])


@pytest.mark.parametrize("frame", [(b"p", b""), (b"m", b"a\0" + bytes(1000))])
def test_frames_come_as_they_went(frame):
    stream = Slow()
    write_frame(stream, frame)
    stream.seek(0)
    assert read_frame(stream) == frame
    assert read_frame(stream) is None


def test_half_a_frame_or_a_giant_one_is_refused():
    whole = b"m" + (4).to_bytes(4, "little") + b"abcd"
    for end in range(1, len(whole)):
        with pytest.raises(PipeClosed):
            read_frame(io.BytesIO(whole[:end]))
    with pytest.raises(PipeClosed, match="a frame of 1048577 bytes"):
        read_frame(io.BytesIO(b"m" + (MAX_FRAME_BYTES + 1).to_bytes(4, "little")))


def test_process_that_has_ended_is_distinguished_from_a_slow_one():
    received = threading.Event()
    gone = EncoderServerProcess([sys.executable, "-c", "pass"], received.set)
    for _ in range(2):
        with pytest.raises(PipeClosed, match="has ended"):
            gone.receive(None)
    assert received.wait(60)
    gone.send((b"m", bytes(10_000_000)))  # nobody reads it, and nobody waits for it
    gone.close()
    slow = EncoderServerProcess([sys.executable, "-c", "import sys; sys.stdin.read()"])
    assert slow.receive(0.05) is None
    slow.close()


def test_both_sides_may_write_at_once():
    """More than a pipe holds: the process writes a megabyte while this side is still sending."""
    script = (
        "import sys\n"
        "i, o = sys.stdin.buffer, sys.stdout.buffer\n"
        "while head := i.read(5):\n"
        "    o.write(b'm' + (10**6).to_bytes(4, 'little') + bytes(10**6))\n"
        "    o.flush()\n"
        "    i.read(int.from_bytes(head[1:], 'little'))\n"
    )
    process = EncoderServerProcess([sys.executable, "-c", script])
    for _ in range(3):
        assert process.send((b"m", bytes(10**6)))
    assert [len(process.receive(60.0)[1]) for _ in range(3)] == [10**6] * 3
    process.close()


def test_frames_that_wait_for_the_process_are_bounded():
    stuck = EncoderServerProcess([sys.executable, "-c", "import time; time.sleep(600)"])
    frame = b"m", bytes(WAITING_BYTES // 2)
    assert stuck.send(frame)
    assert stuck.send(frame)
    assert not stuck.send(frame)
    stuck.close(patience_s=0.1)
    assert stuck._process.returncode == -9


def test_process_that_sends_nonsense_is_given_up():
    script = "import sys; sys.stdout.buffer.write(b'm' + b'\\xff' * 4); sys.stdout.flush(); sys.stdin.read()"
    process = EncoderServerProcess([sys.executable, "-c", script])
    with pytest.raises(PipeClosed, match="a frame of 4294967295 bytes"):
        process.receive(60.0)
    process.close()


def test_open_is_small_typed_json():
    script = (
        "import sys; i, o = sys.stdin.buffer, sys.stdout.buffer; head = i.read(5); "
        "o.write(head + i.read(int.from_bytes(head[1:], 'little'))); o.flush(); i.read()"
    )
    process = EncoderServerProcess([sys.executable, "-c", script])
    process.open(OPEN)
    tag, data = process.receive(60.0)
    process.close()
    assert tag == b"o"
    assert msgspec.json.decode(data, type=EncoderRound) == OPEN


def test_command_of_a_bundles_encoder_server_names_threads_and_provider(tmp_path):
    """There is no bundle: the process ends."""
    for threads in (None, 2):
        process = EncoderServerProcess.of_bundle(tmp_path, threads)
        assert ("--threads" in process._process.args) == (threads is not None)
        with pytest.raises(PipeClosed, match="has ended"):
            process.receive(120.0)
        process.close()


def test_result_files_are_of_one_device_and_in_the_folder(tmp_path):
    names = ["a", "A", "a.b", "..", "x" * 64]
    files = [result_file(tmp_path, name) for name in names]
    assert len(set(files)) == len(names)
    assert all(file.parent == tmp_path for file in files)
