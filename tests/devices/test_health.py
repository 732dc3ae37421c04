import pytest

from devices.health import Health, HealthProbe


def test_board_that_says_nothing_is_none(board):
    assert HealthProbe(board.root)() == Health(
        temperature_c=None, cpu_hz=None, throttled=None, throttled_since_boot=None
    )


@pytest.mark.process
def test_raspberry_pi_says_what_holds_it_back(board):
    board.vcgencmd('get_throttled) echo "throttled=0x50005";;')
    board.write("sys/class/thermal/thermal_zone0", type="cpu-thermal", temp=81250)
    board.write("sys/devices/system/cpu/cpufreq/policy0", scaling_cur_freq=1500000)
    assert HealthProbe(board.root)() == Health(
        temperature_c=81.25,
        cpu_hz=1.5e9,
        throttled=("under_voltage", "throttled"),
        throttled_since_boot=("under_voltage", "throttled"),
    )


@pytest.mark.process
@pytest.mark.parametrize(
    ("text", "now", "since"),
    [
        ("0x0", (), ()),
        ("throttled=0xE0008", ("soft_temperature_limit",), ("frequency_capped", "throttled", "soft_temperature_limit")),
        ("throttled=nonsense", None, None),
        ("", None, None),
        ("throttled=0x123456789", None, None),
    ],
)
def test_flags_are_read_or_left_out(board, text, now, since):
    board.vcgencmd(f'*) echo "{text}";;')
    health = HealthProbe(board.root)()
    assert (health.throttled, health.throttled_since_boot) == (now, since)


@pytest.mark.process
def test_flags_come_from_sysfs_where_the_program_fails(board):
    board.vcgencmd("*) exit 1;;")
    board.write("sys/devices/platform/soc/soc:firmware", get_throttled="50002")
    assert HealthProbe(board.root)().throttled == ("frequency_capped",)


def test_jetson_s_processor_zone_is_found_among_others(board):
    for number, (kind, milli) in enumerate([("gpu-thermal", 40000), ("soc0-thermal", 45000), ("cpu-thermal", 51500)]):
        board.write(f"sys/class/thermal/thermal_zone{number}", type=kind, temp=milli)
    for number, khz in enumerate([1200000, 600000]):
        board.write(f"sys/devices/system/cpu/cpufreq/policy{4 * number}", scaling_cur_freq=khz)
    health = HealthProbe(board.root)()
    assert (health.temperature_c, health.cpu_hz) == (51.5, 9e8)


@pytest.mark.parametrize("temperature", ["", "hot", "-999999999", "999999999"])
def test_temperature_that_makes_no_sense_is_none(board, temperature):
    board.write("sys/class/thermal/thermal_zone0", type="x86_pkg_temp", temp=temperature)
    board.write("sys/devices/system/cpu/cpufreq/policy0", scaling_cur_freq="<unknown>")
    health = HealthProbe(board.root)()
    assert (health.temperature_c, health.cpu_hz) == (None, None)
