import msgspec
import pytest
from view_samples import BARE, DEVICE, OPEN, ROUND, STATUS

from broker_server.operator import messages as shown
from broker_server.operator import tables


def test_status_in_lines():
    lines = tables.status(STATUS).splitlines()
    assert lines[:6] == [
        "federation  home, MAS Edge 1",
        "now         round 3 goes on",
        "round       since 12 s; needs 7 results, closes in 59 min 48 s at the latest; 1 refused",
        "waits for   pi-07: working, train 3/10",
        "waits for   pi-08: offline",
        "waits for   10 more",
    ]
    assert "devices     13 of 14 online; a round needs 2" in lines
    assert "phase       merge 3/4 rounds  a+b" in lines
    assert "phase       end 0/2 measured  a   b" in lines
    assert any(line.startswith("time left   about 1 min 40 s in this phase, until ") for line in lines)
    assert "split       a   b   (score 0.5000)" in lines
    assert lines[-3:] == [
        "loss        a 1.0000",
        "refused     3 × device that is revoked",
        "dropped     2 × result late",
    ]


def test_status_says_nothing_of_what_is_not_known():
    change = {
        "open": None,
        "phases": (),
        "phase_left_s": None,
        "split": None,
        "losses": {},
        "dropped": {},
        "refused": {},
    }
    assert len(tables.status(msgspec.structs.replace(STATUS, **change)).splitlines()) == 3
    unknown = msgspec.structs.replace(OPEN, age_s=None, deadline_in_s=None, refused=0, unanswered=2, quorum=1)
    text = tables.status(msgspec.structs.replace(STATUS, open=unknown))
    assert "round       needs 1 result\n" in text
    assert "more" not in text
    assert "waits for" not in tables.status(
        msgspec.structs.replace(STATUS, open=msgspec.structs.replace(OPEN, members=0))
    )


def test_fleet_in_a_table():
    found = shown.FleetView(rows=(DEVICE, BARE), total=2, doing={"new": 1, "working": 1})
    assert tables.fleet(found).splitlines() == [
        "device   doing       round  work        peak         °C  energy       software  why",
        "pi-07    train 3/10  2      1 min 30 s  150/220 MiB  61  12.0 J est.  1.0       held back: heat",
        "new-one  new         –      –           –            –   –            –         start its agent",
        "2 devices: 1 new, 1 working",
    ]
    assert "enrol" in tables.fleet(shown.FleetView(rows=(), total=0, doing={}))
    unplanned = msgspec.structs.replace(DEVICE, budget_bytes=None, is_estimated=False)
    assert "150 MiB" in tables.device_lines([unplanned])


def test_rounds_in_a_table():
    measured = msgspec.structs.replace(ROUND, number=4, test_loss={"a": 0.5}, energy_j=None, is_partial=False)
    nothing = msgspec.structs.replace(ROUND, number=5, train_loss={})
    lines = tables.rounds(shown.Rounds(rows=(ROUND, measured, nothing), total=3)).splitlines()
    assert lines[0].split() == ["round", "phase", "group", "by", "time", "energy", "loss"]
    assert lines[1].split() == ["3", "merge", "3/4", "a+b", "2/3", "12", "s", "≥", "12.0", "J", "a", "1.0000"]
    assert lines[2].endswith("test  a 0.5000")
    assert lines[3].endswith("–")
    assert tables.rounds(shown.Rounds(rows=(ROUND,), total=3), has_head=False).startswith("3")
    assert tables.rounds(shown.Rounds(rows=(), total=0)) == "no round has closed yet"


def test_events_in_lines():
    found = shown.Events(
        rows=(shown.Event(number=1, at_s=0.0, text="one"), shown.Event(number=2, at_s=1.0, text="two"))
    )
    first, second = tables.events(found).splitlines()
    assert first.endswith("  one")
    assert second.endswith("  two")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.26, "0.3 s"),
        (59.0, "59 s"),
        (61.0, "1 min 1 s"),
        (3661.0, "1 h 1 min"),
        (90_000.0, "1 d 1 h"),
    ],
)
def test_duration(seconds, text):
    assert tables.duration(seconds) == text
