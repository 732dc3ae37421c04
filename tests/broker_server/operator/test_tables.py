import msgspec
import pytest

from broker_server.operator import messages as shown
from broker_server.operator import tables

OPEN = shown.RoundNow(
    number=3, phase="merge", work="train", group="a+b", index=2, rounds=4, members=14, results=1, quorum=7, refused=1,
    rejected=0, begun_at_s=1.0, age_s=12.0, deadline_in_s=3588.0, unanswered=12,
    waiting_for=(
        shown.Waiting(device="pi-07", doing="working", stage="train", done=3, total=10),
        shown.Waiting(device="pi-08", doing="offline"),
    ),
)  # fmt: skip
STATUS = shown.FederationView(
    at_s=0.0, federation="home", version="1", state="training", says="round 3 goes on", is_paused=False,
    tasks=("a", "b"), open=OPEN, phase_left_s=100.0, split=shown.SplitView(groups=(("a",), ("b",)), score=0.5),
    known=14, online=13, needed=2,
    phases=(
        shown.PhaseView(name="merge", work="train", groups=(("a", "b"),), start=None, done=3, rounds=4),
        shown.PhaseView(name="end", work="evaluate", groups=(("a",), ("b",)), start="merge", done=0, rounds=2),
    ),
    losses={"a": 1.0}, dropped={"result late": 2}, refused={"device that is revoked": 3},
)  # fmt: skip
DEVICE = shown.DeviceView(
    name="pi-07", doing="working", why="", stage="train", done=3, total=10, software="1.0", engine="e", platform="p",
    tasks=("a",), examples=3, memory_bytes=None, round=2, work_s=90.0, peak_bytes=150 << 20, budget_bytes=220 << 20,
    energy_j=12.0, is_estimated=True, temperature_c=61.2, throttled=("heat",),
)  # fmt: skip
BARE = shown.DeviceView(
    name="new-one", doing="new", why="start its agent", stage=None, done=None, total=None, software=None, engine=None,
    platform=None, tasks=(), examples=None, memory_bytes=None, round=None, work_s=None, peak_bytes=None,
    budget_bytes=None, energy_j=None, is_estimated=False, temperature_c=None, throttled=None,
)  # fmt: skip
ROUND = shown.RoundView(
    number=3, phase="merge", work="train", group="a+b", index=2, rounds=4, begun_at_s=0.0, wall_s=12.5, members=3,
    results=2, train_loss={"a": 1.0}, val_loss=None, test_loss=None, bytes_up=1, bytes_down=1, energy_j=12.0,
    is_estimated=False, is_partial=True,
)  # fmt: skip


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
    unknown = msgspec.structs.replace(OPEN, age_s=None, deadline_in_s=None, refused=0, unanswered=2)
    text = tables.status(msgspec.structs.replace(STATUS, open=unknown))
    assert "round       needs 7 results\n" in text
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
