import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.operator import messages as shown
from edge_runtime.wire.errors import MessageInvalid


@pytest.mark.parametrize(
    "request_",
    [
        shown.AskStatus(),
        shown.AskFleet(after="pi", most=3),
        shown.AskRounds(after=7),
        shown.AskEvents(after=9, most=1000),
        shown.Act(act="drop", device="pi"),
    ],
)
def test_request_comes_back_from_its_line(request_):
    line = shown.line(request_)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert shown.read_request(line) == request_


def test_answer_comes_back_from_its_line():
    answer = shown.Events(rows=(shown.Event(number=1, at_s=2.0, text="a\nb"),))
    assert shown.line(answer).count(b"\n") == 1
    assert shown.read_answer(shown.line(answer)) == answer


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"\xff",
        b'{"type":"askfleet","most":1001}',
        b'{"type":"askfleet","most":0}',
        b'{"type":"askstatus","more":1}',
        b'{"type":"act","act":"burn"}',
        b'{"type":"act","act":"drop","device":"../x"}',
        b'{"type":"done","says":"an answer"}',
        b"[" * 4000,
        b" " * 5000,
    ],
)
def test_request_that_is_none(line):
    with pytest.raises(MessageInvalid):
        shown.read_request(line)


@given(st.binary(max_size=200))
def test_request_of_any_bytes(data):
    try:
        shown.read_request(data)
    except MessageInvalid as exc:
        assert "\n" not in str(exc)


def test_every_message_is_frozen():
    for kind in (*shown.Request.__args__, *shown.Answer.__args__, shown.DeviceView, shown.RoundView, shown.RoundNow):
        assert kind.__struct_config__.frozen
