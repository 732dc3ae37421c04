import io
import os
import sys

import msgspec
import pytest

from edge_runtime.general.pipe import (
    MAX_FRAME_BYTES,
    HostProcess,
    Open,
    PipeChannel,
    PipeClosed,
    Rounds,
    read_frame,
    serve,
    write_frame,
)
from edge_runtime.general.remote import HostUnavailable
from edge_runtime.wire.messages import Training

SETTINGS = Training(epochs=1, first_epoch=0, batch=4, lr=0.1, momentum=0.9, weight_decay=0.0, seed=0, probe_every=0)


def rounds():
    """No message comes, so no graph is ever asked for."""
    return Rounds(None, None, None)


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
    with pytest.raises(PipeClosed, match="a frame of 1073741825 bytes"):
        read_frame(io.BytesIO(b"m" + (MAX_FRAME_BYTES + 1).to_bytes(4, "little")))


@pytest.mark.parametrize(
    "frame",
    [(b"m", b"a\0x"), (b"m", b"\xff\0x"), (b"x", b""), (b"o", b"{}"), (b"o", b"nonsense")],
    ids=["early", "name", "tag", "empty", "json"],
)
def test_frames_that_nobody_may_send_end_the_host(frame):
    with pytest.raises(PipeClosed):
        rounds().received(frame, 0.0)


def test_host_says_how_much_memory_it_has_had():
    ((tag, data),) = rounds().received((b"p", b""), 0.0)
    assert tag == b"p"
    assert msgspec.json.decode(data)["peak_rss_bytes"] > 1_000_000


def test_host_without_a_round_has_nothing_to_do_as_time_passes():
    assert rounds().tick(1e9) == []


def test_serve_answers_until_its_input_ends():
    ours, theirs = os.pipe(), os.pipe()
    with (
        os.fdopen(ours[0], "rb", buffering=0) as given,
        os.fdopen(ours[1], "wb", buffering=0) as to_it,
        os.fdopen(theirs[0], "rb", buffering=0) as from_it,
        os.fdopen(theirs[1], "wb", buffering=0) as out,
    ):
        for _ in range(2):
            write_frame(to_it, (b"p", b""))
        to_it.close()
        serve(rounds(), given, out)
        assert [read_frame(from_it)[0] for _ in range(2)] == [b"p", b"p"]


def test_host_process_that_ends_is_told_from_one_that_is_slow():
    gone = HostProcess([sys.executable, "-c", "pass"])
    with pytest.raises(HostUnavailable, match="has ended"):
        gone.receive(b"m", None)
    with pytest.raises(HostUnavailable, match="has ended"):
        gone.send((b"m", bytes(10_000_000)))
    gone.close()
    slow = HostProcess([sys.executable, "-c", "import sys; sys.stdin.read()"])
    assert PipeChannel(slow, "a").receive(0.05) is None
    slow.close()


def test_both_sides_may_write_at_once():
    """More than a pipe holds: the host says a megabyte while this side is still sending."""
    script = (
        "import sys\n"
        "i, o = sys.stdin.buffer, sys.stdout.buffer\n"
        "while head := i.read(5):\n"
        "    o.write(b'm' + (10**6).to_bytes(4, 'little') + bytes(10**6))\n"
        "    o.flush()\n"
        "    i.read(int.from_bytes(head[1:], 'little'))\n"
    )
    host = HostProcess([sys.executable, "-c", script])
    for _ in range(3):
        host.send((b"m", bytes(10**6)))
    assert [len(host.receive(b"m", 60.0)) for _ in range(3)] == [10**6] * 3
    host.close()


def test_host_process_that_does_not_end_is_killed():
    deaf = HostProcess([sys.executable, "-c", "import time; time.sleep(600)"])
    deaf.close(patience_s=0.1)
    assert deaf._process.returncode == -9


def test_host_process_that_says_nonsense_is_given_up():
    script = "import sys; sys.stdout.buffer.write(b'm' + b'\\xff' * 4); sys.stdout.flush(); sys.stdin.read()"
    host = HostProcess([sys.executable, "-c", script])
    with pytest.raises(HostUnavailable, match="a frame of 4294967295 bytes"):
        host.receive(b"m", 60.0)
    host.close()


def test_channel_names_its_device_counts_bytes_and_passes_over_other_frames():
    script = (
        "import sys; i, o = sys.stdin.buffer, sys.stdout.buffer; head = i.read(5); "
        "data = i.read(int.from_bytes(head[1:], 'little')); "
        "o.write(b'p' + bytes(4) + head + data); o.flush(); i.read()"
    )
    host = HostProcess([sys.executable, "-c", script])
    channel = PipeChannel(host, "board-1")
    channel.send(b"hello")
    assert channel.receive(60.0) == b"hello"
    assert (channel.bytes_up, channel.bytes_down) == (5, 5)
    host.close()


def test_open_is_small_typed_json():
    opened = Open(round=3, training=SETTINGS, precision="int8", after="a")
    assert msgspec.json.decode(msgspec.json.encode(opened), type=Open) == opened
