"""A recording as a CSV file: a line for each reading, written as it comes, so that a power cut costs one at most."""

# coverage: every branch

import csv
import math
from pathlib import Path
from typing import TextIO

from devices.health import Health
from edge_runtime.energy.recording.recording import Row

COLUMNS = ("seconds", "unix_s", "watts", "mark", "source", "temperature_c", "cpu_mhz", "throttled")
MAX_ROWS = 10_000_000


class SheetInvalid(ValueError):
    """A file is no recording, or one may not be written there; the sentence says why."""


class Sheet:
    """Writes a recording. Raises SheetInvalid if the file is there already or cannot be made."""

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

    def add(self, row: Row, unix_s: float, health: Health | None) -> None:
        """A reading, and how the board is."""
        words: list[str] = ["", "", ""]
        if health is not None:
            words = [
                "" if health.temperature_c is None else f"{health.temperature_c:.1f}",
                "" if health.cpu_hz is None else f"{health.cpu_hz / 1e6:.0f}",
                "" if health.throttled is None else "+".join(health.throttled) or "no",
            ]
        start = [f"{row.seconds:.4f}", f"{unix_s:.3f}", f"{row.watts:.4f}", row.mark, self._source]
        self._writer.writerow([*start, *words])
        self._file.flush()

    def close(self) -> None:
        """No more readings."""
        self._file.close()


def read(path: Path) -> tuple[str, list[Row]]:
    """A recording and its source. Raises SheetInvalid, also for one of two sources."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return _rows(path, csv.DictReader(file))
    except OSError as exc:
        raise SheetInvalid(f"{path} cannot be read: {exc.strerror}") from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise SheetInvalid(f"{path} is no recording: {exc}") from exc


def _rows(path: Path, lines: "csv.DictReader[str]") -> tuple[str, list[Row]]:
    rows: list[Row] = []
    sources: set[str] = set()
    for number, line in enumerate(lines, 2):
        try:
            row = Row(seconds=float(line["seconds"]), watts=float(line["watts"]), mark=str(line["mark"]))
            sources.add(str(line["source"]))
        except (KeyError, TypeError, ValueError) as exc:
            if rows and None in line.values():
                break  # the last line of a recording that was cut off
            raise SheetInvalid(
                f"{path}, line {number}, is no reading: `python -m edge_runtime energy record --csv` makes them"
            ) from exc
        if not (math.isfinite(row.seconds) and math.isfinite(row.watts)) or len(rows) >= MAX_ROWS:
            raise SheetInvalid(f"{path}, line {number}, cannot be a reading")
        rows.append(row)
    if len(rows) < 2 or len(sources) != 1:
        raise SheetInvalid(f"{path} holds {len(rows)} readings of {len(sources)} sources: two of one are needed")
    return sources.pop(), rows
