import pytest

from devices.health import HealthProbe
from devices.throttling import Throttling


def test_kernel_without_anything_to_tell_by_is_none(board):
    board.write("sys/class/thermal/cooling_device0", type="pwm-fan", cur_state=3)
    board.hwmon(0, "soctherm_oc")
    board.hwmon(1, "other", oc1_event_cnt=3)
    assert Throttling(board.root)() is None
    assert HealthProbe(board.root)().throttled is None


def test_counters_name_what_has_happened_since_they_were_looked_at(board):
    cores = [board.write(f"sys/devices/system/cpu/cpu{n}/thermal_throttle", core_throttle_count=7) for n in (0, 1)]
    alarms = board.hwmon(2, "soctherm_oc", oc1_event_cnt=0, oc3_event_cnt=12, oc1_throt_en=1)
    throttling = Throttling(board.root)
    assert throttling() == ()  # what was before is nobody's
    (cores[1] / "core_throttle_count").write_text("9\n")
    assert throttling() == ("throttled",)
    assert throttling() == ()
    (alarms / "oc3_event_cnt").write_text("13\n")
    (cores[0] / "core_throttle_count").write_text("8\n")
    assert throttling() == ("over_current", "throttled")


@pytest.mark.parametrize("kind", ["thermal-cpufreq-0", "cpufreq-cpu0", "Processor"])
def test_cooling_device_at_work_caps_the_frequency(board, kind):
    folder = board.write("sys/class/thermal/cooling_device3", type=kind, cur_state=0)
    throttling = Throttling(board.root)
    assert throttling() == ()
    (folder / "cur_state").write_text("2\n")
    assert throttling() == throttling() == ("frequency_capped",)
    (folder / "cur_state").unlink()
    assert throttling() == ()


@pytest.mark.process
def test_board_s_health_has_what_the_firmware_and_the_kernel_say(board):
    board.vcgencmd('get_throttled) echo "throttled=0x50002";;')
    board.write("sys/class/thermal/cooling_device0", type="cpufreq-cpu0", cur_state=1)
    alarms = board.hwmon(0, "soctherm_oc", oc1_event_cnt=0)
    probe = HealthProbe(board.root)
    assert probe().throttled == ("frequency_capped",)
    (alarms / "oc1_event_cnt").write_text("1\n")
    health = probe()
    assert health.throttled == ("frequency_capped", "over_current")
    assert health.throttled_since_boot == ("under_voltage", "throttled")
