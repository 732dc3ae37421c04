import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.meters.plug import MAX_PAYLOAD_BYTES, PlugMeter, watts


@pytest.mark.parametrize(
    ("payload", "path", "power_w"),
    [
        (b"12.5", None, 12.5),
        (b" 7 ", None, 7.0),
        (b'"8.5"', None, 8.5),
        (b'{"Time":"x","ENERGY":{"Total":1.2,"Power":42}}', None, 42.0),  # Tasmota
        (b'{"id":0,"apower":8.9,"voltage":231}', None, 8.9),  # Shelly, second generation
        (b'{"power":3.5,"state":"ON"}', None, 3.5),  # Zigbee2MQTT
        (b'{"a":[{"w":1},{"w":"2.5"}]}', "a.1.w", 2.5),
        (b"[4]", "0", 4.0),
        (b'{"ENERGY":{"Power":[6,0.5],"Voltage":230}}', None, 6.5),  # Tasmota with two channels
        (b'{"StatusSNS":{"Time":"x","ENERGY":{"Power":7}}}', None, 7.0),
        (b'{"ENERGY":{"Power":"6.4"}}', None, 6.4),
        (b'{"src":"s","method":"NotifyStatus","params":{"ts":1.0,"switch:0":{"id":0,"apower":6.4}}}', None, 6.4),
        (b'{"params":{"ts":1.0,"switch:0":{"apower":6.5},"switch:1":{"apower":1}}}', None, 7.5),
        (b'{"params":{"em:0":{"total_act_power":12.5,"a_act_power":6.0}}}', None, 12.5),
        (b'{"id":0,"a_act_power":6.4,"total_act_power":7.4}', None, 7.4),  # Shelly with three phases
        (b"123.40", None, 123.4),  # Shelly, first generation
        (b'{"power_l1":6,"power_l2":0.25}', None, 6.25),  # Zigbee2MQTT with two sockets
        (b'{"time":1,"value":6.4}', None, 6.4),  # zwave-js
        (b'{"power":{"value":6.4}}', None, 6.4),
        (b"6.4 W", None, 6.4),
        (b'"6,4 W"', None, 6.4),
        (b"6400mW", None, 6.4),
        (b"0.0064 kW", None, 6.4),
    ],
)
def test_watts_are_found(payload, path, power_w):
    assert watts(payload, path) == power_w


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        (b"", None),
        (b"on", None),
        (b"6.4 A", None),
        (b"unavailable", None),
        (b"nan", None),
        (b"-6.4", None),  # the plug is the wrong way round
        (b'{"power":-0.2}', None),
        (b'{"power":null,"state":"ON"}', None),
        (b'{"ENERGY":{"Power":[6,"?"]}}', None),
        (b'{"Time":"x","POWER":"ON","Wifi":{}}', None),
        (b'{"params":{"ts":1.0,"sys":{"mac":1}}}', None),
        (b'{"params":[1]}', None),
        (b'{"dps":{"19":64}}', None),
        (b"[]", None),
        (b'"on"', None),
        (b"NaN", None),
        (b"Infinity", None),
        (b"1e400", None),
        (b"true", None),
        (b"null", None),
        (b"{}", None),
        (b'{"power":true}', None),
        (b'{"power":200000}', None),
        (b'{"power":1}', "other"),
        (b"[1]", "5"),
        (b"[1]", "x"),
        (b"12", "power"),
        (b"[" * 30_000, None),
        (b" " * MAX_PAYLOAD_BYTES + b"1", None),
        (b"\xff\xfe", None),
    ],
)
def test_payload_without_watts_is_none(payload, path):
    assert watts(payload, path) is None


@given(st.binary(max_size=200))
def test_arbitrary_payload_is_read_without_an_error(payload):
    found = watts(payload, None)
    assert found is None or found >= 0


def test_value_holds_until_it_is_stale():
    now = [100.0]
    closed = []
    meter = PlugMeter("tele/plug", every_s=20.0, clock=lambda: now[0], on_close=lambda: closed.append(1))
    assert meter.read() is None
    assert not meter.wait_for_watts(0)
    meter.on_message(b"offline")
    assert meter.read() is None
    meter.on_message(b"5.5")
    assert meter.wait_for_watts(0)
    now[0] = 130.0
    assert meter.read() == (5.5,)
    now[0] = 130.5
    assert meter.read() is None
    meter.close()
    assert closed == [1]
    assert meter.facts.source == "mqtt:tele/plug"
