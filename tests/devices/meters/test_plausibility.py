"""Boards whose sensors are wrong in the ways that people's are: the right reading, or the reason why there is none."""

import re

import pytest

from devices.meters import discover, open_source
from devices.meters.plausibility import power_doubt, power_range
from devices.profile import load

NAMES = {
    "rpi4": "raspberrypi,4-model-b",
    "rpi5": "raspberrypi,5-model-b",
    "orin-nano": "nvidia,p3767-0005",
    "tx2": "nvidia,p2597-0000+p3310-1000",
    "agx-thor": "nvidia,p3971-0080+p3834-0008",
}


@pytest.fixture
def a(board):
    """A board of a kind, with these sensors: (name, attributes) each."""

    def make(kind, *chips):
        if kind in NAMES:
            folder = board.root / "proc/device-tree"
            folder.mkdir(parents=True)
            (folder / "compatible").write_bytes(NAMES[kind].encode() + b"\0")
        for number, (name, attributes) in enumerate(chips):
            board.hwmon(number, name, **attributes)
        return board.root

    return make


def chip(name, volts, amperes, *, shunt_ohm=0.1, watts=None):
    attributes = {"in1_input": round(volts * 1e3), "curr1_input": round(amperes * 1e3)}
    attributes["power1_input"] = round((volts * abs(amperes) if watts is None else watts) * 1e6)
    return name, {**attributes, "shunt_resistor": round(shunt_ohm * 1e6)}


def rails(**watts):
    labels = list(watts)
    attributes = {f"in{n}_label": label for n, label in enumerate(labels, 1)}
    attributes |= {f"in{n}_input": 5000 for n in range(1, len(labels) + 1)}
    return "ina3221", attributes | {f"curr{n}_input": round(watts[label] * 200) for n, label in enumerate(labels, 1)}


READ = [
    ("rpi4", [chip("ina219", 5.0, 0.6)], 3.0),
    ("rpi4", [chip("ina260", 5.02, 0.7)], 3.514),
    (
        "rpi4",
        [chip("ina226", 5.0, 0.1, shunt_ohm=0.02), chip("ina226", 5.0, 0.9, shunt_ohm=0.02)],
        4.5,
    ),  # a fan's comes first
    ("orin-nano", [rails(VDD_IN=5.0, VDD_CPU_GPU_CV=1.0, VDD_SOC=1.5)], 5.0),
    ("agx-thor", [rails(VDD_GPU=4.0, VDD_CPU_SOC_MSS=8.0), chip("ina238", 19.9, 1.5)], 29.85),
    ("other", [chip("ina231", 1.0, 0.9, shunt_ohm=0.02)], 0.9),  # a rail, on a board of which nothing is known
]


@pytest.mark.parametrize(("kind", "chips", "power_w"), READ)
def test_meter_that_can_be_right_is_taken(a, kind, chips, power_w):
    found = discover(a(kind, *chips))
    assert found.meter is not None, found.reasons
    assert found.meter.read() == pytest.approx((power_w,))


DOUBTED = [
    (
        "rpi4",
        chip("ina219", 5.0, 6.0, shunt_ohm=0.01),
        "reads 30.00 W, and a Raspberry Pi 4 .* shunt has likely 10 times",
    ),
    ("rpi4", chip("ina226", 5.0, 0.06), r"reads 0\.30 W, .* shunt has likely 1/10 of the resistance"),
    ("rpi4", chip("ina219", 5.0, 3.19, watts=16), "saturated at 3.2 A"),
    ("rpi4", chip("ina226", 5.0, -0.9, shunt_ohm=0.01), "its current is below zero: the two wires at its shunt are"),
    ("rpi4", chip("ina226", 5.0, 0.0), "or 0 W, which no board takes"),
    ("rpi4", chip("ina219", 4.228, 0.9), r"it is at 4\.23 V: that is a battery or a rail"),
    ("rpi4", rails(CH1=-4.5, CH2=0, CH3=0), "or 0 W, which no board takes"),
    ("rpi5", chip("ina260", 12.0, 6.0), "reads 72.00 W, and a Raspberry Pi 5 .* it measures something else"),
    ("orin-nano", rails(VDD_IN=400.0), "reads 400.00 W, and a Jetson Orin Nano"),
]


@pytest.mark.parametrize(("kind", "sensor", "said"), DOUBTED, ids=[said for *_, said in DOUBTED])
@pytest.mark.parametrize("source", ["auto", "hwmon"])
def test_meter_that_cannot_be_right_is_refused_with_what_is_likely_wrong(a, kind, sensor, said, source, open_files):
    root = a(kind, sensor)
    before = open_files()
    found = open_source(source, root=root)
    assert found.meter is None
    assert any(re.search(said, reason) for reason in found.reasons), found.reasons
    assert open_files() == before


@pytest.mark.process
def test_pi_5_with_a_battery_s_sensor_takes_its_power_chip(a, board, pmic_text, pmic_w):
    root = a("rpi5", chip("ina219", 4.228, -0.04))
    board.write("recorded", pmic=pmic_text)
    board.vcgencmd(f'pmic_read_adc) cat "{root}/recorded/pmic";;')
    found = discover(root)
    assert found.meter.read() == (pytest.approx(pmic_w),)
    assert found.others == ("hwmon:ina219",)


def test_laptop_whose_counters_are_root_s_has_no_meter(a, board):
    root = a(
        "laptop", ("BAT0", {"in0_input": 12600, "power1_input": 9_000_000}), ("amdgpu", {"power1_average": 9_000_000})
    )
    found = discover(root)
    assert found.meter is None
    assert found.others == ("hwmon:amdgpu",)
    assert open_source("hwmon:amdgpu", root=root).meter.read() == (9.0,)


def test_board_that_was_named_is_the_one_that_is_known(a, board):
    root = a("other", chip("ina219", 5.0, 6.0, shunt_ohm=0.01))
    assert discover(root).meter.read() == (30.0,)
    assert discover(root, "rpi4").meter is None


def test_power_range_of_profiles():
    assert power_range(None) is None
    assert power_range(load("aarch64")) is None
    assert power_range(load("cm3")) is None
    assert power_range(load("rpi4")).most_w == pytest.approx(16.5)
    assert power_range(load("orin-nano")).most_w == pytest.approx(40.0)


def test_power_doubt_without_a_profile_is_of_nothing_at_all():
    assert power_doubt(1e4, None, has_shunt=True) is None
    assert "0 W" in power_doubt(0.0, None, has_shunt=False)


def test_power_doubt_that_no_shunt_explains():
    assert "measures something else" in power_doubt(5e3, power_range(load("rpi4")), has_shunt=True)
