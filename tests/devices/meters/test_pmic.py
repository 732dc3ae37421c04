import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.firmware import FirmwareSilent, open_firmware
from devices.meters.meter import MeterAbsent
from devices.meters.pmic import PmicMeter, rails_w


def test_both_formats_give_the_same_rails(pmic_text, pmic_w):
    rails = rails_w(pmic_text)
    assert set(rails) == {"3V7_WL_SW", "3V3_SYS", "DDR_VDDQ", "VDD_CORE", "HDMI"}
    assert sum(rails.values()) == pytest.approx(pmic_w)


@pytest.mark.process
def test_meter_reads_through_the_program(board, pmic_text, pmic_w):
    board.write("recorded", pmic=pmic_text)
    board.vcgencmd(f'pmic_read_adc) cat "{board.root}/recorded/pmic";;')
    meter = PmicMeter(open_firmware(board.root))
    assert meter.read() == (pytest.approx(pmic_w),)
    assert meter.facts.rate_hz >= 10
    assert not meter.facts.estimated
    meter.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        'error=1 error_msg="Command not registered"',
        "VDD_CORE_A current(7)=1.0A\n",
        "VDD_CORE_A current(7)=1.0V\nVDD_CORE_V volt(15)=0.8A\n",
        "VDD_CORE_A current(7)=nanA\nVDD_CORE_V volt(15)=0.8V\n",
        "VDD_CORE_A current(7)=1.2.3A\nVDD_CORE_V volt(15)=0.8V\n",
        "VDD_CORE_A current(7)=-1A\nVDD_CORE_V volt(15)=0.8V\n",
        f"VDD_CORE_A={'9' * 400}A\nVDD_CORE_V=1V\n",
    ],
)
def test_output_without_a_whole_rail_is_no_meter(text):
    assert rails_w(text) == {}
    with pytest.raises(MeterAbsent, match="measures no currents"):
        PmicMeter(lambda _: text)


def test_firmware_that_does_not_answer_is_absent_with_its_reason():
    def ask(_):
        raise FirmwareSilent("not here")

    with pytest.raises(MeterAbsent, match="pmic: not here"):
        PmicMeter(ask)


def test_reading_that_is_cut_or_fails_is_none(pmic_text):
    answers = [pmic_text, pmic_text[: len(pmic_text) // 2], pmic_text]

    def ask(_):
        if not answers:
            raise FirmwareSilent("gone")
        return answers.pop(0)

    meter = PmicMeter(ask)
    assert meter.read() is None
    assert meter.read() is not None
    assert meter.read() is None


@given(st.text(max_size=200))
def test_arbitrary_output_is_read_without_an_error(text):
    assert all(power >= 0 for power in rails_w(text).values())
