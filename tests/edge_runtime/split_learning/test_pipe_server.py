import os
import sys

import msgspec
import pytest

from edge_runtime.split_learning.client import EncoderServerUnavailable
from edge_runtime.split_learning.pipe_channel import PipeChannel
from edge_runtime.split_learning.pipe_server import PipeServer, serve
from edge_runtime.wire.encoder_pipe import EncoderRound, EncoderServerProcess, PipeClosed, read_frame, write_frame


def server():
    """Return a server; no message comes, so it never needs a graph."""
    return PipeServer(None, None)


@pytest.mark.parametrize(
    "frame",
    [(b"m", b"a\0x"), (b"m", b"\xff\0x"), (b"x", b""), (b"o", b"{}"), (b"o", b"nonsense")],
    ids=["early", "name", "tag", "empty", "json"],
)
def test_frames_that_nobody_may_send_end_the_encoder_server(frame):
    with pytest.raises(PipeClosed):
        server().on_frame(frame, 0.0)


def test_server_reports_its_peak_memory():
    ((tag, data),) = server().on_frame((b"p", b""), 0.0)
    assert tag == b"p"
    assert msgspec.json.decode(data)["peak_rss_bytes"] > 1_000_000


def test_server_without_a_round_has_nothing_to_do():
    assert server().on_tick(1e9) == []


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
        serve(server(), given, out)
        assert [read_frame(from_it)[0] for _ in range(2)] == [b"p", b"p"]


ECHO = (
    "import sys; i, o = sys.stdin.buffer, sys.stdout.buffer\n"
    "while head := i.read(5):\n"
    "    data = i.read(int.from_bytes(head[1:], 'little'))\n"
    "    o.write(b'x' + bytes(4) + (b'o' + bytes(4) if head[:1] == b'o' else head + data)); o.flush()\n"
)
"""Sends the same frame back, after another one that nobody requested."""


def open_of(size):
    return EncoderRound(round=3, samples=size, training=None, weights="", results="")


@pytest.mark.process
def test_channel_names_its_device_counts_bytes_and_passes_over_other_frames():
    process = EncoderServerProcess([sys.executable, "-c", ECHO])
    channel = PipeChannel(process, "board-1")
    channel.open(open_of(1), max_message_bytes=600_000)
    for data in (b"hello", bytes(600_000)):
        channel.send(data)
        assert channel.receive(60.0) == data
    assert (channel.bytes_up, channel.bytes_down) == (600_005, 600_005)
    assert channel.receive(0.01) is None
    process.close()


@pytest.mark.process
def test_channel_to_a_process_that_has_ended_raises():
    gone = EncoderServerProcess([sys.executable, "-c", "pass"])
    with pytest.raises(EncoderServerUnavailable, match="has ended"):
        PipeChannel(gone, "a").open(open_of(1), max_message_bytes=1)
    gone.close()
