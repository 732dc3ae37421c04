"""A recording as a CSV file: a line for each reading, written as it comes, so that a power cut loses one at most."""

# coverage: every branch

import csv
import math
from pathlib import Path
from typing import TextIO

from devices.health import Health
from edge_runtime.energy.recording.recording import PowerReading

COLUMNS = ("seconds", "unix_s", "watts", "mark", "source", "temperature_c", "cpu_mhz", "throttled")
MAX_ROWS = 10_000_000


class SheetInvalid(ValueError):
    """A file is no recording, or a recording may not be written there; the sentence states why."""


class Sheet:
    """A recording that is being written. Raises SheetInvalid if the file is there already or cannot be made."""

    def __init__(self, path: Path, source: str) -> None:
        self._source = source
        try:
            self._file: TextIO = path.open("x", encoding="utf-8", newline="")
        except FileExistsError as exc:
            raise SheetInvalid(f"{path} is there already: give another name, so that no measurement is lost") from exc
        except OSError as exc:
            raise SheetInvalid(f"{path} cannot be written: {exc.strerror}") from exc
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(COLUMNS)

    def add(self, reading: PowerReading, unix_s: float, health: Health | None) -> None:
        """Write a reading and the board's health."""
        words: list[str] = ["", "", ""]
        if health is not None:
            words = [
                "" if health.temperature_c is None else f"{health.temperature_c:.1f}",
                "" if health.cpu_hz is None else f"{health.cpu_hz / 1e6:.0f}",
                "" if health.throttled is None else "+".join(health.throttled) or "no",
            ]
        start = [f"{reading.seconds:.4f}", f"{unix_s:.3f}", f"{reading.watts:.4f}", reading.mark, self._source]
        self._writer.writerow([*start, *words])
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: Path) -> tuple[str, list[PowerReading]]:
    """Return a recording's source and readings. Raises SheetInvalid, also for a file with two sources."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return _readings(path, csv.DictReader(file))
    except OSError as exc:
        raise SheetInvalid(f"{path} cannot be read: {exc.strerror}") from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise SheetInvalid(f"{path} is no recording: {exc}") from exc


def _readings(path: Path, lines: "csv.DictReader[str]") -> tuple[str, list[PowerReading]]:
    readings: list[PowerReading] = []
    sources: set[str] = set()
    for number, line in enumerate(lines, 2):
        try:
            reading = PowerReading(seconds=float(line["seconds"]), watts=float(line["watts"]), mark=str(line["mark"]))
            sources.add(str(line["source"]))
        except (KeyError, TypeError, ValueError) as exc:
            if readings and None in line.values():
                break  # the last line of a recording that was cut off
            raise SheetInvalid(
                f"{path}, line {number}, is no reading: `python -m edge_runtime energy record --csv` makes them"
            ) from exc
        if not (math.isfinite(reading.seconds) and math.isfinite(reading.watts)) or len(readings) >= MAX_ROWS:
            raise SheetInvalid(f"{path}, line {number}, cannot be a reading")
        readings.append(reading)
    if len(readings) < 2 or len(sources) != 1:
        raise SheetInvalid(f"{path} holds {len(readings)} readings of {len(sources)} sources: two of one are needed")
    return sources.pop(), readings
