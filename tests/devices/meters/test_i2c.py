import pytest

from devices.meters.i2c import InaMeter, open_i2c
from devices.meters.meter import MeterAbsent


class FakeBus:
    def __init__(self, **registers):
        self.registers = {int(name[1:]): value for name, value in registers.items()}
        self.closed = False

    def word(self, register):
        if register not in self.registers:
            raise OSError(121, "Remote I/O error")
        return self.registers[register]

    def close(self):
        self.closed = True


@pytest.mark.parametrize(
    ("kind", "registers", "shunt_ohm", "power_w"),
    [
        ("ina219", {"r1": 8000, "r2": (1250 << 3) | 2}, 0.1, 0.8 * 5.0),  # 80 mV over 0.1 Ω
        ("ina226", {"r1": 4000, "r2": 4000}, 0.01, 1.0 * 5.0),  # 10 mV over 10 mΩ
        ("INA260", {"r1": 800, "r2": 4000}, None, 1.0 * 5.0),
    ],
)
def test_registers_become_watts(kind, registers, shunt_ohm, power_w):
    bus = FakeBus(**registers)
    meter = InaMeter(kind, bus, shunt_ohm)
    assert meter.read() == (pytest.approx(power_w),)
    assert meter.facts.rate_hz >= 50
    meter.close()
    assert bus.closed


@pytest.mark.parametrize(
    ("kind", "registers", "shunt_ohm", "said"),
    [
        ("ina219", {"r1": 0x10000 - 6000, "r2": 1250 << 3}, 0.1, "its current is below zero: the two wires"),
        ("ina219", {"r1": 32000, "r2": 1250 << 3}, 0.1, r"saturated at 3\.2 A: .* smaller shunt"),
        ("ina226", {"r1": 0x7FFF, "r2": 4000}, 0.1, r"saturated at 0\.819 A"),
        ("ina219", {"r1": 0, "r2": 0}, 0.1, r"it is at 0\.00 V: that is a battery or a rail"),
        ("ina219", {"r1": 0xFFFF, "r2": 0xFFFF}, 0.1, "below zero"),  # nothing there, and the bus floats high
        ("ina219", {"r1": 18000, "r2": 4080, "r254": 0x5449, "r255": 0x2260}, 0.02, "is ina226, not ina219"),
        ("ina219", {"r1": 18000, "r2": 4080, "r254": 0x5449, "r255": 0x2381}, 0.02, "is ina238, not ina219"),
        ("ina260", {"r1": 800, "r2": 4000, "r254": 0x5449, "r255": 0x9990}, None, "is another chip, not ina260"),
        ("ina226", {"r1": 6000, "r2": 1250 << 3, "r254": 0xFFFF, "r255": 0xFFFF}, 0.1, "is no ina226"),
    ],
)
def test_chip_that_cannot_be_in_the_feed_is_absent_with_what_is_likely_wrong(kind, registers, shunt_ohm, said):
    with pytest.raises(MeterAbsent, match=said):
        InaMeter(kind, FakeBus(**registers), shunt_ohm)


def test_chip_says_its_shunt_and_its_range():
    meter = InaMeter("ina226", FakeBus(r1=4000, r2=4000, r254=0x5449, r255=0x2260), 0.01)
    assert meter.facts.covers.endswith("; shunt 0.01 ohm, up to 8.19 A")


@pytest.mark.parametrize("current", [0, 0x10000 - 5, 0x7FFF])
def test_chip_that_measures_no_current_or_too_much_later_reads_none(current):
    bus = FakeBus(r1=4000, r2=4000)
    meter = InaMeter("ina226", bus, 0.01)
    bus.registers[1] = current
    assert meter.read() is None


def test_chip_that_stops_answering_reads_none():
    bus = FakeBus(r1=1, r2=4000)
    meter = InaMeter("ina260", bus, None)
    bus.registers.clear()
    assert meter.read() is None


@pytest.mark.parametrize(
    ("kind", "shunt_ohm", "sentence"),
    [("ina999", 0.1, "not known"), ("ina219", None, "shunt"), ("ina226", 0.0, "shunt"), ("ina260", None, "answers")],
)
def test_chip_that_cannot_be_used_is_absent(kind, shunt_ohm, sentence):
    with pytest.raises(MeterAbsent, match=sentence):
        InaMeter(kind, FakeBus(), shunt_ohm)


@pytest.mark.parametrize("spec", ["", "ina226", "ina226@64", "ina226@0x40,shunt=x", "ina226@0x40;bus=1"])
def test_description_of_another_form_is_refused(spec):
    with pytest.raises(ValueError, match="ina226@0x40,bus=1"):
        open_i2c(spec)


def test_bus_that_is_not_there_is_absent(board):
    with pytest.raises(MeterAbsent, match=r"i2c-3.*No such file"):
        open_i2c("ina226@0x40,bus=3,shunt=0.1", board.root)


def test_file_that_is_no_bus_is_absent(board, open_files):
    board.write("dev", **{"i2c-1": ""})
    before = open_files()
    with pytest.raises(MeterAbsent, match="cannot be used"):
        open_i2c("ina226@0x40", board.root)
    assert open_files() == before
