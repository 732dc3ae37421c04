"""The journal's records and their lines: `<CRC-32 in hexadecimal> <JSON>`, one record a line.

A line that a crash has torn does not match its checksum, or does not end, and is left out.
"""

# coverage: every branch

from zlib import crc32

import msgspec

from edge_runtime.wire.energy import Phase


class Facts(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A meter's own words: MeterFacts as a record."""

    source: str
    covers: str
    rate_hz: float
    resolution: float
    gain_error: float
    estimated: bool
    counter_ranges_j: tuple[float, ...] | None


class Tally(msgspec.Struct, kw_only=True, array_like=True):
    """What one phase of one round has cost so far.

    `seconds` is its length, `measured_s` the part between readings, `gap_s` the part of that which bridges gaps.
    `low_w` and `high_w` are the least and the most power; infinite, the wrong way round, is written as null.
    """

    seconds: float = 0.0
    measured_s: float = 0.0
    gap_s: float = 0.0
    energy_j: float = 0.0
    uncertainty_j: float = 0.0
    readings: int = 0
    low_w: float | None = None
    high_w: float | None = None
    sources: tuple[str, ...] = ()
    estimated: bool = False


class Weather(msgspec.Struct, kw_only=True, array_like=True):
    """How the board was during a round. None is what it did not say."""

    temperature_max_c: float | None = None
    cpu_min_hz: float | None = None
    throttled: tuple[str, ...] | None = None
    at_first: tuple[str, ...] | None = None
    """What had happened since boot when the round began: no fault of the round."""


class Start(msgspec.Struct, frozen=True, array_like=True, tag="start"):
    """A process begins to record: nothing is known about the time before."""

    t_s: float
    facts: Facts | None


class Sample(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """A meter's reading."""

    t_s: float
    values: tuple[float, ...]


class Mark(msgspec.Struct, frozen=True, array_like=True, tag="mark"):
    """From now on time and energy belong to this phase; `round` None: to none."""

    t_s: float
    round: int | None
    group: str
    phase: Phase


class Condition(msgspec.Struct, frozen=True, array_like=True, tag="health"):
    """A board's health."""

    t_s: float
    temperature_c: float | None
    cpu_hz: float | None
    throttled: tuple[str, ...] | None
    throttled_since_boot: tuple[str, ...] | None


class Baseline(msgspec.Struct, frozen=True, array_like=True, tag="idle"):
    """Power of the idle board by one source, measured before the work."""

    source: str
    idle_w: float


class Total(msgspec.Struct, frozen=True, array_like=True, tag="total"):
    """A phase's tally, in place of the readings that made it."""

    round: int
    group: str
    phase: Phase
    tally: Tally


class Outlook(msgspec.Struct, frozen=True, array_like=True, tag="weather"):
    """A round's weather, in place of the conditions that made it."""

    round: int
    group: str
    weather: Weather


class Forget(msgspec.Struct, frozen=True, array_like=True, tag="forget"):
    """A round has been reported and is no longer needed."""

    round: int
    group: str


Record = Start | Sample | Mark | Condition | Baseline | Total | Outlook | Forget

_ENCODER = msgspec.json.Encoder()
_DECODER: "msgspec.json.Decoder[Record]" = msgspec.json.Decoder(Record)
_PREFIX = 9


def to_line(record: Record) -> bytes:
    """A record as its line, ended."""
    text = _ENCODER.encode(record)
    return b"%08x %s\n" % (crc32(text), text)


def from_line(line: bytes) -> Record | None:
    """The record of a line without its end; None if the line is torn or not of this format."""
    prefix, text = line[:_PREFIX], line[_PREFIX:]
    if prefix != b"%08x " % crc32(text):
        return None
    try:
        return _DECODER.decode(text)
    except msgspec.MsgspecError:
        return None


def from_lines(content: bytes) -> tuple[list[Record], int]:
    """All records of a journal, and how many lines were torn. What follows the last line's end counts as torn."""
    *lines, rest = content.split(b"\n")
    records = [record for line in lines if (record := from_line(line)) is not None]
    return records, len(lines) - len(records) + (rest != b"")
