import sys
import time

import numpy as np
import pytest
import samples

from broker_server.rounds.encoder_process import RESTARTS, EncoderRounds, EncoderSupervisor, EncoderUnavailable
from edge_runtime.wire.encoder_pipe import EncoderServerProcess, result_file
from edge_runtime.wire.errors import TensorsInvalid
from edge_runtime.wire.messages import SplitLearning
from edge_runtime.wire.split_learning import EVALUATION_SAMPLES
from edge_runtime.wire.tensors import TensorTable, pack

TRAINING = samples.TRAINING
TABLE = TensorTable.of({"encoder.w": (3,)})
ECHO = """
import sys
i, o = sys.stdin.buffer, sys.stdout.buffer
while head := i.read(5):
    data = i.read(int.from_bytes(head[1:], "little"))
    if data.endswith(b"die"):
        sys.exit(1)
    o.write(head + data)
    o.flush()
"""
LIMIT_S = 60.0


def shared(folder, **changes):
    settings = {"settings": SplitLearning(precision="fp16"), "most_devices": 3, "idle_s": 9.0} | changes
    return EncoderRounds(results=folder / "general", **settings)


def test_shared_encoder_describes_a_round(tmp_path):
    opened = shared(tmp_path).encoder_round(0, TRAINING, tmp_path / "weights")
    assert (opened.round, opened.samples, opened.previous) == (0, 4, None)
    assert (opened.precision, opened.max_devices, opened.idle_s) == ("fp16", 3, 9.0)
    later = shared(tmp_path).encoder_round(5, samples.training(first_epoch=2), tmp_path / "weights")
    assert later.previous == str(tmp_path / "general" / "4")
    measured = shared(tmp_path).encoder_round(6, None, tmp_path / "weights")
    assert (measured.samples, measured.training, measured.previous) == (EVALUATION_SAMPLES, None, None)


def test_shared_encoder_a_trained_one_is_read_until_the_next_round_is_closed(tmp_path):
    encoder, trained = shared(tmp_path), np.arange(3, dtype=np.float32)
    encoder.delete_before(0)  # there is nothing yet
    for number in (3, 4):
        path = result_file(tmp_path / "general" / str(number), "attic")
        path.parent.mkdir(parents=True)
        path.write_bytes(pack(TABLE, trained))
    (tmp_path / "general" / "notes").mkdir()
    np.testing.assert_array_equal(encoder.read(3, "attic", TABLE), trained)
    with pytest.raises(TensorsInvalid, match="no trained encoder of this device"):
        encoder.read(3, "cellar", TABLE)
    encoder.delete_before(4)
    with pytest.raises(TensorsInvalid, match="no trained encoder of this device"):
        encoder.read(3, "attic", TABLE)
    encoder.read(4, "attic", TABLE)
    assert (tmp_path / "general" / "notes").is_dir()


class Starts:
    def __init__(self, *command):
        self.command, self.count = command, 0

    def __call__(self):
        self.count += 1
        return EncoderServerProcess(list(self.command))


@pytest.fixture
def supervisor():
    made = EncoderSupervisor(Starts(sys.executable, "-c", ECHO))
    yield made
    made.close()


def send(supervisor, encoder, fragment, *, device="attic", number=0):
    """Pass on a fragment of a round; how often the round had to be worked out for it."""
    opened = []

    def opening():
        opened.append(encoder.encoder_round(number, TRAINING, encoder.results))
        return opened[-1]

    assert supervisor.send(number, opening, device, fragment)
    return len(opened)


def answers(supervisor, count):
    received, until_s = [], time.monotonic() + LIMIT_S
    while len(received) < count:
        assert time.monotonic() < until_s
        received += supervisor.receive()
    return received


@pytest.mark.process
def test_supervisor_passes_fragments_to_the_process_and_its_answers_to_their_devices(supervisor, tmp_path):
    encoder = shared(tmp_path)
    assert supervisor.receive() == []  # there is none before it is needed
    for number in (0, 1):
        # The round is worked out once: for its first fragment.
        assert send(supervisor, encoder, b"fragment", number=number) == 1
        assert send(supervisor, encoder, b"", device="cellar", number=number) == 0
        assert answers(supervisor, 2) == [("attic", b"fragment"), ("cellar", b"")]
    assert supervisor._start.count == 1


@pytest.mark.process
def test_supervisor_starts_a_process_that_ends_again_for_a_while(supervisor, tmp_path):
    encoder = shared(tmp_path)
    for times in range(RESTARTS):
        assert send(supervisor, encoder, b"die") == 1
        until_s = time.monotonic() + LIMIT_S
        while supervisor._process is not None:
            assert time.monotonic() < until_s
            assert supervisor.receive() == []
        assert supervisor._start.count == times + 1
    send(supervisor, encoder, b"fragment")
    assert answers(supervisor, 1) == [("attic", b"fragment")]
    send(supervisor, encoder, b"die")
    with pytest.raises(EncoderUnavailable, match=r"has ended.*, 4 times in round 0"):
        answers(supervisor, 1)
    send(supervisor, encoder, b"fragment", number=1)  # another round, another chance
    assert answers(supervisor, 1) == [("attic", b"fragment")]


@pytest.mark.process
def test_supervisor_a_process_that_cannot_be_started_is_reported(tmp_path):
    supervisor = EncoderSupervisor(Starts(str(tmp_path / "python")))
    with pytest.raises(EncoderUnavailable, match="cannot be started: No such file"):
        send(supervisor, shared(tmp_path), b"")
