import os

import pytest

from devices.meters.hwmon import find_chips, open_chips
from devices.meters.meter import MeterAbsent


def channel(number, label, millivolts, milliamperes):
    return {
        f"in{number}_label": label,
        f"in{number}_input": millivolts,
        f"curr{number}_input": milliamperes,
        f"in{number}_enable": 1,
    }


def opened(board, label="hwmon:x"):
    return open_chips(find_chips(board.root), label)


def test_orin_nano_s_inlet_is_the_board(board):
    """The other rails hang on VDD_IN; channels 4 to 7 are the shunts' own voltages and sums."""
    board.hwmon(
        1,
        "ina3221",
        **channel(1, "VDD_IN", 5000, 1200),
        **channel(2, "VDD_CPU_GPU_CV", 5000, 400),
        **channel(3, "VDD_SOC", 5000, 300),
        in4_input=7,
        in7_label="sum of shunt voltages",
        in7_input=9,
        curr4_input=1900,
        curr7_input=1,
    )
    meter = opened(board)
    assert meter.read() == (pytest.approx(6.0),)
    assert "VDD_IN" in meter.facts.covers
    assert "VDD_SOC" not in meter.facts.covers
    assert meter.facts.rate_hz >= 50
    meter.close()


def test_agx_orin_s_rails_add_up_over_two_chips(board):
    board.hwmon(
        3,
        "ina3221",
        **channel(1, "VDD_GPU_SOC", 5000, 600),
        **channel(2, "VDD_CPU_CV", 5000, 400),
        **channel(3, "VIN_SYS_5V0", 5000, 1000),
    )
    board.hwmon(
        4,
        "ina3221",
        **(channel(1, "NC", 5000, 9000) | {"in1_enable": 0}),
        **channel(2, "VDDQ_VDD2_1V8AO", 5000, 300),
        **channel(3, "NC", 0, 0),
    )
    assert opened(board).read() == (pytest.approx(10.0),)


def test_disabled_channel_is_left_out(board):
    board.hwmon(0, "ina3221", **channel(1, "A", 5000, 100), **(channel(2, "B", 5000, 100) | {"in2_enable": 0}))
    assert opened(board).read() == (pytest.approx(0.5),)


@pytest.mark.parametrize("name", ["ina219", "ina226", "ina260", "ina238"])
def test_ina_with_a_power_of_its_own_reads_it(board, name):
    board.hwmon(0, name, in0_input=1, in1_input=5100, curr1_input=900, power1_input=4_590_000, update_interval=35)
    meter = opened(board)
    assert meter.read() == (pytest.approx(4.59),)
    assert meter.facts.rate_hz >= 50
    assert meter.facts.gain_error == 0.02


def test_average_serves_where_there_is_no_input(board):
    board.hwmon(0, "power_meter", power1_average=65_000_000, power1_average_interval=1000, update_interval=2000)
    meter = opened(board)
    assert meter.read() == (65.0,)
    assert meter.facts.rate_hz == 0.5


def test_input_goes_before_average(board):
    board.hwmon(0, "amdgpu", power1_average=1_000_000, power1_input=2_000_000, power1_label="PPT")
    meter = opened(board)
    assert meter.read() == (2.0,)
    assert meter.facts.covers.startswith("PPT")


def test_attributes_of_an_old_kernel_are_found_below_device(board):
    board.write("sys/class/hwmon/hwmon0/device", name="ina219", power1_input=3_000_000)
    assert opened(board).read() == (3.0,)


def test_offset_below_zero_is_zero(board):
    board.hwmon(0, "ina3221", in1_input=5000, curr1_input=-3, in2_input=5000, curr2_input=700)
    assert opened(board).read() == (3.5,)


def test_sensor_of_a_board_that_takes_nothing_reads_none(board):
    board.hwmon(0, "ina219", power1_input=3_000_000)
    meter = opened(board)
    board.hwmon(0, "ina219", power1_input=0)
    assert meter.read() is None


@pytest.mark.parametrize(
    ("name", "shunt_uohm", "said", "gain_error"),
    [
        ("ina219", 100_000, "; shunt 0.1 ohm, up to 3.2 A", 0.02),
        ("ina226", 2_000, "; shunt 0.002 ohm, up to 41 A", 0.02),
        ("ina260", 2_000, "; shunt 0.002 ohm", 0.02),
        ("ina219", 10_000, "; shunt 0.01 ohm, up to 32 A, as the driver assumes unless it is told", 0.05),
    ],
)
def test_shunt_and_range_are_said_and_what_is_assumed_is_in_the_error(board, name, shunt_uohm, said, gain_error):
    board.hwmon(0, name, power1_input=3_000_000, shunt_resistor=shunt_uohm)
    facts = opened(board).facts
    assert facts.covers.endswith(said)
    assert facts.gain_error == gain_error


@pytest.mark.parametrize(
    "name",
    ["BAT0", "AC", "ADP1", "tcpm_source_psy_4_0022", "ucsi_source_psy_0_00081", "battery", "bq27441", "max17055"],
)
def test_batteries_and_chargers_are_no_chips(board, name):
    board.hwmon(0, name, in0_input=12_000, curr0_input=1, power1_input=9_000_000)
    assert find_chips(board.root) == []


def test_power_supply_of_any_name_is_no_chip(board):
    board.hwmon(0, "mystery", power1_input=9_000_000)
    assert len(find_chips(board.root)) == 1
    board.write("sys/class/hwmon/hwmon0/device", type="Mains")
    assert find_chips(board.root) == []


def test_sensors_without_power_are_no_chips(board):
    board.hwmon(0, "rpi_volt", in0_lcrit_alarm=0)
    board.hwmon(1, "cpu_thermal", temp1_input=40000)
    board.hwmon(2, "odd", curr1_input=5)
    board.hwmon(3, "", power1_input=5)
    board.write("sys/class/hwmon/hwmon4")
    assert find_chips(board.root) == []


def test_chips_are_in_the_order_of_their_numbers(board):
    for number in (10, 2, 1):
        board.hwmon(number, "ina219", power1_input=number)
    assert [chip.folder.name for chip in find_chips(board.root)] == ["hwmon1", "hwmon2", "hwmon10"]


@pytest.mark.parametrize("content", ["", "N/A", "12 W"])
def test_sensor_without_a_number_is_absent_with_a_sentence(board, content, open_files):
    board.hwmon(0, "ina219", power1_input=content)
    before = open_files()
    with pytest.raises(MeterAbsent, match="no number"):
        opened(board)
    assert open_files() == before


def test_sensor_that_goes_bad_later_reads_none(board):
    folder = board.hwmon(0, "ina219", in1_input=5000, curr1_input=3)
    meter = opened(board)
    (folder / "curr1_input").write_text("")
    assert meter.read() is None


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(16, "Device or resource busy")])
@pytest.mark.parametrize("name", ["in1_input", "curr1_input"])
def test_file_that_may_not_be_read_is_one_sentence(board, monkeypatch, open_files, error, name):
    board.hwmon(0, "ina219", in1_input=5000, curr1_input=3)
    real = os.open

    def refuse(path, flags, *rest):
        if str(path).endswith(name):
            raise type(error)(error.errno, error.strerror, str(path))
        return real(path, flags, *rest)

    before = open_files()
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MeterAbsent, match=rf"hwmon:x: .*{name}"):
        opened(board)
    assert open_files() == before
