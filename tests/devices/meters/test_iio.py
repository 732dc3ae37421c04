import pytest

from devices.meters.iio import open_iio
from devices.meters.meter import MeterAbsent


def test_jetson_nano_s_inlet_is_the_board(board):
    board.write(
        "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0",
        name="ina3221x",
        rail_name_0="POM_5V_IN",
        in_power0_input=2520,
        rail_name_1="POM_5V_GPU",
        in_power1_input=40,
        rail_name_2="POM_5V_CPU",
        in_power2_input=400,
    )
    meter = open_iio(board.root)
    assert meter.read() == (pytest.approx(2.52),)
    assert meter.facts.rate_hz >= 50
    meter.close()


def test_device_that_shows_in_two_places_counts_once(board):
    real = board.write("sys/devices/i2c-0/0-0040/iio:device0", rail_name_0="VDD_SYS_GPU", in_power0_input=1000)
    for place in ("sys/bus/iio/devices/iio:device0", "sys/bus/i2c/drivers/ina3221x/0-0040/iio_device"):
        link = board.root / place
        link.parent.mkdir(parents=True)
        link.symlink_to(real)
    assert open_iio(board.root).read() == (1.0,)


def test_rails_without_an_inlet_add_up(board):
    board.write(
        "sys/bus/iio/devices/iio:device0",
        rail_name_0="GPU",
        in_power0_input=1000,
        rail_name_1="CPU",
        in_power1_input=500,
    )
    board.write("sys/bus/iio/devices/iio:device1", rail_name_0="SYS5V", in_power0_input=250, rail_name_1="NC")
    assert open_iio(board.root).read() == (1.75,)


def test_mainline_driver_s_raw_values_are_scaled(board):
    board.write("sys/bus/iio/devices/iio:device0", name="ina226", in_power2_raw=180, in_power2_scale="25.000000")
    meter = open_iio(board.root)
    assert meter.read() == (4.5,)
    assert "ina226 power2" in meter.facts.covers


def test_what_is_no_power_is_absent(board):
    board.write(
        "sys/bus/iio/devices/iio:device0",
        in_voltage0_raw=5,
        in_power0_raw=5,
        in_power1_raw=5,
        in_power1_scale="large",
        in_power2_sampling=4,
        rail_name_3="NC",
        in_power3_input=900,
    )
    with pytest.raises(MeterAbsent, match="iio"):
        open_iio(board.root)


def test_sensor_without_a_number_is_absent(board):
    board.write("sys/bus/iio/devices/iio:device0", in_power0_input="busy")
    with pytest.raises(MeterAbsent, match="no number"):
        open_iio(board.root)


def test_file_that_cannot_be_opened_is_left_out(board):
    folder = board.write("sys/bus/iio/devices/iio:device0", in_power0_input=700)
    (folder / "in_power1_input").symlink_to("/nowhere")
    assert open_iio(board.root).read() == (pytest.approx(0.7),)
