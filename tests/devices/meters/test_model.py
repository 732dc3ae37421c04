import pytest

from devices.meters import open_source
from devices.meters.meter import MeterAbsent
from devices.meters.model import ModelMeter


def stat(board, busy, idle):
    board.write("proc", stat=f"cpu  {busy} 0 0 {idle} 0 0 0 0 7 7\ncpu0 1 2 3 4")


def test_power_follows_utilisation_and_is_estimated(board):
    stat(board, 100, 1000)
    meter = ModelMeter(2.0, 6.0, board.root)
    assert meter.facts.estimated
    assert meter.read() == (2.0,)
    stat(board, 150, 1050)
    assert meter.read() == (4.0,)
    assert meter.read() == (4.0,)  # no tick of the kernel's clock since
    stat(board, 250, 1050)
    assert meter.read() == (6.0,)
    stat(board, 240, 1160)  # counters of a core that was taken away
    assert meter.read() == (2.0,)
    meter.close()


@pytest.mark.parametrize("watts", [(-1, 2), (3, 2), (0, float("inf")), (float("nan"), 2)])
def test_watts_that_make_no_sense_are_refused(board, watts):
    with pytest.raises(ValueError, match="idle"):
        ModelMeter(*watts, board.root)


@pytest.mark.parametrize("text", ["", "cpu", "cpu 1 2 3", "cpu a b c d e", "intr 5"])
def test_kernel_that_does_not_say_is_absent(board, text):
    board.write("proc", stat=text)
    with pytest.raises(MeterAbsent, match="proc/stat"):
        ModelMeter(1.0, 2.0, board.root)


def test_file_that_goes_away_reads_none(board):
    stat(board, 1, 1)
    meter = ModelMeter(1.0, 2.0, board.root)
    (board.root / "proc/stat").unlink()
    assert meter.read() is None


def test_process_has_its_own_share_alone(board):
    found = open_source("model:0,6,process", root=board.root)
    assert "by this process's share of the processor" in found.meter.facts.covers
    assert found.meter.facts.estimated
    sum(range(3_000_000))
    (busy_w,) = found.meter.read()
    assert 0.0 < busy_w <= 6.0
