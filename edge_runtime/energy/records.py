"""The journal's records and their lines: `<CRC-32 in hexadecimal> <JSON>`, one record a line.

A line that a crash has torn does not match its checksum, or does not end, and is left out. The tags and the order of
the fields are the file's format: a device reads the journal that an older version left.
"""

# coverage: every branch

from zlib import crc32

import msgspec

from devices.meters.meter import MeterFacts
from edge_runtime.wire.energy import Phase


class PhaseTotals(msgspec.Struct, kw_only=True, array_like=True):
    """The time and energy of one phase of one round so far.

    `seconds` is its length, `measured_s` the part of it between readings, `gap_s` the part of `measured_s` that bridges
    gaps. `low_w` and `high_w` are the least and the most power; infinite, the wrong way round, is written as null.
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


class BoardConditions(msgspec.Struct, kw_only=True, array_like=True):
    """A board's conditions during a round. None is what the board does not state."""

    temperature_max_c: float | None = None
    cpu_min_hz: float | None = None
    throttled: tuple[str, ...] | None = None
    at_first: tuple[str, ...] | None = None
    """The names that had held the board back between its boot and the round, which are not the round's."""


class Start(msgspec.Struct, frozen=True, array_like=True, tag="start"):
    """The start of a process's records: nothing is known about the time before. `facts` None: there is no meter."""

    t_s: float
    facts: MeterFacts | None


class Reading(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """A meter's reading at a time of the monotonic clock."""

    t_s: float
    values: tuple[float, ...]


class Mark(msgspec.Struct, frozen=True, array_like=True, tag="mark"):
    """The phase that time and energy belong to from this record on; `round` None: to no round."""

    t_s: float
    round: int | None
    group: str
    phase: Phase


class HealthReading(msgspec.Struct, frozen=True, array_like=True, tag="health"):
    """A board's health at one moment: the fields of `devices.health.Health`."""

    t_s: float
    temperature_c: float | None
    cpu_hz: float | None
    throttled: tuple[str, ...] | None
    throttled_since_boot: tuple[str, ...] | None


class Baseline(msgspec.Struct, frozen=True, array_like=True, tag="idle"):
    """The power of the idle board by one source, measured before the work."""

    source: str
    idle_w: float


class Total(msgspec.Struct, frozen=True, array_like=True, tag="total"):
    """A phase's totals, in place of the readings that they came from."""

    round: int
    group: str
    phase: Phase
    totals: PhaseTotals


class RoundConditions(msgspec.Struct, frozen=True, array_like=True, tag="weather"):
    """A round's conditions, in place of the health readings that they came from."""

    round: int
    group: str
    conditions: BoardConditions


class DropRound(msgspec.Struct, frozen=True, array_like=True, tag="forget"):
    """The end of a round's figures: it has been reported, and they are no longer needed."""

    round: int
    group: str


Record = Start | Reading | Mark | HealthReading | Baseline | Total | RoundConditions | DropRound

_ENCODER = msgspec.json.Encoder()
_DECODER: "msgspec.json.Decoder[Record]" = msgspec.json.Decoder(Record)
_PREFIX = 9


def to_line(record: Record) -> bytes:
    """Return a record as its line, with the line's end."""
    text = _ENCODER.encode(record)
    return b"%08x %s\n" % (crc32(text), text)


def from_line(line: bytes) -> Record | None:
    """Return the record of a line without its end; None if the line is torn or not of this format."""
    prefix, text = line[:_PREFIX], line[_PREFIX:]
    if prefix != b"%08x " % crc32(text):
        return None
    try:
        return _DECODER.decode(text)
    except msgspec.MsgspecError:
        return None


def from_lines(content: bytes) -> tuple[list[Record], int]:
    """Return all records of a journal, and how many lines were torn; a last line without an end is torn."""
    *lines, rest = content.split(b"\n")
    records = [record for line in lines if (record := from_line(line)) is not None]
    return records, len(lines) - len(records) + (rest != b"")
