import pytest

from devices.meters import open_source
from edge_runtime.energy.meter import MeterUnusable
from edge_runtime.energy.recording.choice import choose


@pytest.fixture
def opened(board):
    """What was asked for, in order, and the way to ask."""
    asked = []

    def open_(source):
        asked.append(source)
        return open_source(source, root=board.root)

    return asked, open_


def raspberry(board, name):
    folder = board.root / "proc/device-tree"
    folder.mkdir(parents=True)
    (folder / "compatible").write_bytes(name.encode() + b"\0")


@pytest.mark.process
def test_choose_a_board_s_best_meter_first(board, opened, pmic_text):
    raspberry(board, "raspberrypi,5-model-b")
    board.vcgencmd(f"pmic_read_adc) cat <<'END'\n{pmic_text}END\n;;\nversion) echo 1;;")
    asked, open_ = opened
    assert choose("auto", None, board.root, open_).facts.source == "pmic"
    assert asked == []


def test_choose_auto_tries_no_chip_that_nobody_can_see(board, opened):
    raspberry(board, "raspberrypi,4-model-b")
    with pytest.raises(MeterUnusable, match="--source i2c:ina219@0x40") as refused:
        choose("auto", None, board.root, opened[1])
    assert "i2c-1 at" not in str(refused.value)
    with pytest.raises(MeterUnusable, match=r"i2c-1 at 0x40 cannot be used: No such file"):
        choose("rpi4", None, board.root, opened[1])


def test_choose_whatever_else_the_kernel_shows(board, opened):
    raspberry(board, "raspberrypi,4-model-b")
    board.hwmon(0, "ina226", power1_input=3500000)
    assert choose("auto", None, board.root, opened[1]).facts.source.startswith("hwmon")


def test_choose_auto_as_the_agent_does(board, opened):
    raspberry(board, "raspberrypi,4-model-b")
    board.hwmon(0, "ina226", power1_input=3500000)
    chosen = choose("auto", None, board.root, opened[1])
    assert chosen.facts == opened[1]("auto").meter.facts


def test_choose_says_which_sensors_are_no_meter(board, opened):
    board.hwmon(1, "amdgpu", power1_average=9_000_000)
    with pytest.raises(MeterUnusable, match="not taken, as none of them measures the board: hwmon:amdgpu"):
        choose("auto", None, board.root, opened[1])


def test_choose_a_source_as_it_was_said(board, opened):
    with pytest.raises(MeterUnusable, match="rapl"):
        choose("auto", "rapl", board.root, opened[1])
    with pytest.raises(ValueError, match="no source"):
        choose("auto", "magic", board.root, opened[1])
