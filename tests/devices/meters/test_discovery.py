import pytest

from devices.meters import discover, open_source

INLET = {"in1_label": "VDD_IN", "in1_input": 5000, "curr1_input": 1000}


def source_of(found):
    assert found.meter is not None, found.reasons
    found.meter.close()
    return found.meter.facts.source


def test_board_with_nothing_gives_every_reason(board):
    found = discover(board.root)
    assert found.meter is None
    assert [reason.split(":")[0] for reason in found.reasons] == ["hwmon", "pmic", "iio", "rapl"]
    assert all("\n" not in reason for reason in found.reasons)


@pytest.mark.process
def test_nearest_to_the_whole_board_comes_first(board, pmic_text):
    board.hwmon(0, "amdgpu", power1_average=9_000_000)
    found = discover(board.root)
    assert (found.meter, found.others) == (None, ("hwmon:amdgpu",))
    board.rapl("0", "package-0", 1)
    assert source_of(discover(board.root)) == "rapl"
    board.write("sys/bus/iio/devices/iio:device0", in_power0_input=700)
    assert source_of(discover(board.root)) == "iio"
    board.write("recorded", pmic=pmic_text)
    board.vcgencmd(f'pmic_read_adc) cat "{board.root}/recorded/pmic";;')
    assert source_of(discover(board.root)) == "pmic"
    board.hwmon(1, "power_meter", power1_average=9_000_000)
    assert source_of(discover(board.root)) == "hwmon:power_meter"
    board.hwmon(2, "ina3221", **INLET)
    assert source_of(discover(board.root)) == "hwmon:ina3221"
    board.hwmon(3, "ina238", power1_input=9_000_000, in1_label="VIN")
    assert source_of(discover(board.root)) == "hwmon:ina238"


def test_broken_sensor_is_passed_over_with_its_reason(board):
    board.hwmon(2, "ina226", power1_input="?")
    board.rapl("0", "package-0", 1)
    found = discover(board.root)
    assert source_of(found) == "rapl"
    assert "hwmon:ina226: the sensor gives no number" in found.reasons[0]
    assert found.others == ("hwmon:ina226",)


def test_source_is_opened_by_its_name(board, pmic_text):
    board.rapl("0", "package-0", 1)
    board.hwmon(2, "ina226", power1_input=4_000_000)
    board.hwmon(5, "ina219", power1_input=3_000_000)
    board.hwmon(1, "amdgpu", power1_input=9_000_000)
    board.write("proc", stat="cpu 1 2 3 4 5 6 7 8")
    for source, opened in [
        ("auto", "hwmon:ina226"),
        ("rapl", "rapl"),
        ("hwmon", "hwmon:ina226"),
        ("hwmon:ina219", "hwmon:ina219"),
        ("hwmon:hwmon5", "hwmon:ina219"),
        ("hwmon:amdgpu", "hwmon:amdgpu"),
        ("model:2.5,6", "model"),
    ]:
        assert source_of(open_source(source, root=board.root)) == opened


@pytest.mark.parametrize("source", ["rapl", "iio", "pmic", "hwmon", "hwmon:ina226", "i2c:ina260@0x40", "model:1,2"])
def test_source_that_is_not_here_is_none_with_one_reason(board, source):
    found = open_source(source, root=board.root)
    assert found.meter is None
    (reason,) = found.reasons
    assert reason.startswith(source.split(":")[0])


@pytest.mark.parametrize(
    "source",
    [
        "",
        "sun",
        "rapl:0",
        "i2c:",
        "i2c:ina226",
        "model:",
        "model:1",
        "model:a,b",
        "model:5,1",
        "model:1,2,machine",
        "mqtt:",
        "auto:1",
    ],
)
def test_source_that_is_none_is_refused(board, source):
    board.write("proc", stat="cpu 1 2 3 4 5 6 7 8")
    with pytest.raises(ValueError, match=r"model|source|ina226"):
        open_source(source, root=board.root)


def test_plug_is_heard_through_the_client_at_hand():
    heard, closed = [], []

    def listen(url, topic, take):
        heard.append((url, topic))
        take(b'{"sensor":{"w":7.5}}')
        return lambda: closed.append(1)

    found = open_source("mqtts://plugs.local:8883/tele/desk/SENSOR#sensor.w", listen=listen)
    assert heard == [("mqtts://plugs.local:8883", "tele/desk/SENSOR")]
    assert found.meter.read() == (7.5,)
    found.meter.close()
    assert closed == [1]


def test_plug_that_says_nothing_is_none_and_closed():
    closed = []
    found = open_source("mqtt://h/t", listen=lambda *_: lambda: closed.append(1), first_s=0.01)
    assert found.meter is None
    assert "no watts came on t" in found.reasons[0]
    assert closed == [1]


def test_plug_that_publishes_rarely_is_not_waited_for():
    found = open_source("mqtt://h/t?every=300", listen=lambda *_: lambda: None, first_s=0.01)
    assert "each value held for up to 450 s" in found.meter.facts.covers
    assert found.meter.facts.gain_error == 0.25


def test_plug_without_a_client_is_none():
    assert "no MQTT client" in open_source("mqtt://h/t").reasons[0]


@pytest.mark.parametrize(
    "source", ["mqtt://h", "mqtt://h/", "mqtt:///t", "mqtt://h/+/x", "mqtt://h/t?x=1", "mqtt://h/t?every=0"]
)
def test_plug_without_host_or_topic_is_refused(source):
    with pytest.raises(ValueError, match="names no plug"):
        open_source(source, listen=lambda *_: lambda: None)


def test_none_is_no_meter_and_no_reason(board):
    board.rapl("0", "package-0", 1)
    found = open_source("none", root=board.root)
    assert (found.meter, found.reasons) == (None, ())
