import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.meters.meter import MeterFacts
from edge_runtime.energy.records import (
    Baseline,
    BoardConditions,
    DropRound,
    HealthReading,
    Mark,
    PhaseTotals,
    Reading,
    RoundConditions,
    Start,
    Total,
    from_line,
    from_lines,
    to_line,
)

FACTS = MeterFacts(
    source="rapl",
    covers="package-0\nand more",
    rate_hz=10.0,
    resolution=0.001,
    gain_error=0.03,
    estimated=False,
    counter_ranges_j=(262143.3,),
)
ALL = [
    Start(1.0, FACTS),
    Start(1.0, None),
    Reading(1.5, (2.0, 3.0)),
    Mark(2.0, 7, "depth+edges", "train"),
    Mark(2.0, None, "", "idle"),
    HealthReading(2.0, 51.5, None, ("throttled",), None),
    Baseline("rapl", 3.5),
    Total(7, "depth", "probe", PhaseTotals(seconds=2.0, sources=("rapl",), low_w=1.0)),
    RoundConditions(7, "depth", BoardConditions(throttled=("under_voltage",), at_first=())),
    DropRound(7, "depth"),
]


@pytest.mark.parametrize("record", ALL)
def test_record_comes_back_from_its_line(record):
    line = to_line(record)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert from_line(line[:-1]) == record


@pytest.mark.parametrize("record", ALL)
def test_torn_line_is_no_record(record):
    line = to_line(record)[:-1]
    for length in range(len(line)):
        assert from_line(line[:length]) is None


def test_whole_line_of_another_format_is_no_record():
    import zlib

    text = b'["from the future",1]'
    assert from_line(b"%08x %s" % (zlib.crc32(text), text)) is None


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_read_without_an_error(content):
    records, torn = from_lines(content)
    assert records == []
    assert torn == content.count(b"\n") + (not content.endswith(b"\n") and content != b"")


@given(st.integers(0, 500))
def test_file_cut_anywhere_loses_the_last_line_alone(cut):
    content = b"".join(map(to_line, ALL))
    cut = min(cut, len(content))
    records, torn = from_lines(content[:cut])
    assert records == ALL[: len(records)]
    assert len(records) == content[:cut].count(b"\n")
    assert torn == (cut > 0 and content[cut - 1 : cut] != b"\n")


def test_damage_in_the_middle_costs_that_line():
    lines = [to_line(record) for record in ALL]
    lines[3] = b"x" + lines[3][1:]
    records, torn = from_lines(b"".join(lines))
    assert records == ALL[:3] + ALL[4:]
    assert torn == 1


OLDER_JOURNAL = b"""\
5f765dff ["start",1.0,["rapl","package-0",10.0,0.001,0.03,false,[262143.3]]]
8ee1c0c9 ["s",1.5,[2.0,3.0]]
e9b7094b ["mark",2.0,7,"depth+edges","train"]
c7a715fe ["health",2.0,51.5,null,["throttled"],null]
e649d5b2 ["idle","rapl",3.5]
d6047939 ["total",7,"depth","probe",[2.0,0.0,0.0,0.0,0.0,0,1.0,null,["rapl"],false]]
aafdd50a ["weather",7,"depth",[null,null,["under_voltage"],[]]]
f66545b8 ["forget",7,"depth"]
"""


def test_journal_of_an_older_version_is_read_and_written_as_it_was():
    records, torn = from_lines(OLDER_JOURNAL)
    assert torn == 0
    assert [type(record) for record in records] == [
        Start,
        Reading,
        Mark,
        HealthReading,
        Baseline,
        Total,
        RoundConditions,
        DropRound,
    ]
    assert b"".join(map(to_line, records)) == OLDER_JOURNAL
