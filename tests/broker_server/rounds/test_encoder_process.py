import sys
import time

import numpy as np
import pytest

from broker_server.rounds.encoder_process import RESTARTS, Apart, EncoderSupervisor, EncoderUnavailable
from edge_runtime.wire.encoder_pipe import EncoderServerProcess, result_file
from edge_runtime.wire.errors import TensorsInvalid
from edge_runtime.wire.messages import SplitLearning, Training
from edge_runtime.wire.split_learning import EVALUATION_SAMPLES
from edge_runtime.wire.tensors import TensorTable, pack

TRAINING = Training(epochs=1, first_epoch=0, batch=4, lr=0.1, momentum=0.9, weight_decay=0.0, seed=0, probe_every=0)
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


def apart(folder, **changes):
    settings = {"settings": SplitLearning(precision="fp16"), "most_devices": 3, "idle_s": 9.0} | changes
    return Apart(results=folder / "general", **settings)


def test_host_is_told_of_a_round(tmp_path):
    opened = apart(tmp_path).open(0, TRAINING, tmp_path / "weights")
    assert (opened.round, opened.samples, opened.previous) == (0, 4, None)
    assert (opened.precision, opened.max_devices, opened.idle_s) == ("fp16", 3, 9.0)
    later = apart(tmp_path).open(5, Training(**{**_fields(TRAINING), "first_epoch": 2}), tmp_path / "weights")
    assert later.previous == str(tmp_path / "general" / "4")
    measured = apart(tmp_path).open(6, None, tmp_path / "weights")
    assert (measured.samples, measured.training, measured.previous) == (EVALUATION_SAMPLES, None, None)


def _fields(training):
    return {name: getattr(training, name) for name in training.__struct_fields__}


def test_what_a_device_has_taught_is_read_until_the_next_round_is_closed(tmp_path):
    general, taught = apart(tmp_path), np.arange(3, dtype=np.float32)
    general.sweep(0)  # there is nothing yet
    for number in (3, 4):
        path = result_file(tmp_path / "general" / str(number), "attic")
        path.parent.mkdir(parents=True)
        path.write_bytes(pack(TABLE, taught))
    (tmp_path / "general" / "notes").mkdir()
    np.testing.assert_array_equal(general.read(3, "attic", TABLE), taught)
    with pytest.raises(TensorsInvalid, match="nothing of this device"):
        general.read(3, "cellar", TABLE)
    general.sweep(4)
    with pytest.raises(TensorsInvalid, match="nothing of this device"):
        general.read(3, "attic", TABLE)
    general.read(4, "attic", TABLE)
    assert (tmp_path / "general" / "notes").is_dir()


class Starts:
    def __init__(self, *command):
        self.command, self.count = command, 0

    def __call__(self):
        self.count += 1
        return EncoderServerProcess(list(self.command))


@pytest.fixture
def host():
    made = EncoderSupervisor(Starts(sys.executable, "-c", ECHO))
    yield made
    made.close()


def answers(host, count):
    said, until_s = [], time.monotonic() + LIMIT_S
    while len(said) < count:
        assert time.monotonic() < until_s
        said += host.poll()
    return said


def test_pieces_go_to_the_host_and_its_answers_to_their_devices(host, tmp_path):
    general = apart(tmp_path)
    assert host.poll() == []  # there is none before it is needed
    for number in (0, 1):
        opened = general.open(number, TRAINING, tmp_path)
        assert host.hear(opened, "attic", b"piece")
        assert host.hear(opened, "cellar", b"")
        assert answers(host, 2) == [("attic", b"piece"), ("cellar", b"")]
    assert host._start.count == 1


def test_a_host_that_ends_is_started_anew_for_a_while(host, tmp_path):
    opened = apart(tmp_path).open(0, TRAINING, tmp_path)
    for times in range(RESTARTS):
        host.hear(opened, "attic", b"die")
        until_s = time.monotonic() + LIMIT_S
        while host._process is not None:
            assert time.monotonic() < until_s
            assert host.poll() == []
        assert host._start.count == times + 1
    host.hear(opened, "attic", b"piece")
    assert answers(host, 1) == [("attic", b"piece")]
    host.hear(opened, "attic", b"die")
    with pytest.raises(EncoderUnavailable, match=r"has ended.*, 4 times in round 0"):
        answers(host, 1)
    host.hear(apart(tmp_path).open(1, TRAINING, tmp_path), "attic", b"piece")  # another round, another chance
    assert answers(host, 1) == [("attic", b"piece")]


def test_a_host_that_cannot_be_started_is_said_to_be_so(tmp_path):
    host = EncoderSupervisor(Starts(str(tmp_path / "python")))
    with pytest.raises(EncoderUnavailable, match="cannot be started: No such file"):
        host.hear(apart(tmp_path).open(0, TRAINING, tmp_path), "attic", b"")
