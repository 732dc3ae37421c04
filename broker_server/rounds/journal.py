"""The state of a federation in SQLite, journalled before anything is acknowledged.

Rules
- Every method that changes something is one transaction, on the disk when it returns (WAL, synchronous FULL). Within
  `together` all of them are one, so that one flush does for many.
- Blobs are in the folder beside the database and are there, complete, before a row names them. They are deleted only
  after the transaction that makes them needless. What a crash leaves between the two is swept at the next start.
- Rows hold the typed structures of the wire and of the planner, as JSON. Tables and keys keep the names of the first
  version: `memories` has the aggregation state, `official` the ONNX Runtime training artifacts.
- A result is in the round that counts it, in the order of arrival; in a buffered one it may have begun from an earlier
  version. `versions` has the weights of those that may still come, `asked` the version that each device has.
- Times are seconds since the epoch, for people; no decision is made by them.
- A database that cannot be read is JournalInvalid, one that cannot be written JournalUnwritable: a damaged file and a
  full disk are said in one sentence, and what was acknowledged before is still in the file.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import msgspec
from msgspec import Meta

from broker_server.rounds.answer_times import Learnt
from broker_server.strategies.planner import Phase, Round
from edge_runtime.wire.blob import Blob
from edge_runtime.wire.energy import Energy
from edge_runtime.wire.errors import reason
from edge_runtime.wire.manifest import Artifacts
from edge_runtime.wire.messages import Evaluation, FinalEnergy, Hello, Update

T = TypeVar("T")
SCHEMA = 3
_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS devices (device TEXT PRIMARY KEY, hello BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS phases (number INTEGER PRIMARY KEY, first_round INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS weights (phase TEXT, grp TEXT, blob BLOB NOT NULL, PRIMARY KEY (phase, grp)) STRICT;
CREATE TABLE IF NOT EXISTS device_weights (
    phase TEXT, grp TEXT, device TEXT, blob BLOB NOT NULL, PRIMARY KEY (phase, grp, device)
) STRICT;
CREATE TABLE IF NOT EXISTS memories (phase TEXT, grp TEXT, blob BLOB NOT NULL, PRIMARY KEY (phase, grp)) STRICT;
CREATE TABLE IF NOT EXISTS rounds (
    round INTEGER PRIMARY KEY, body BLOB NOT NULL, members BLOB NOT NULL, quorum INTEGER NOT NULL,
    started_s REAL NOT NULL, closed_s REAL, bytes_up INTEGER, bytes_down INTEGER
) STRICT;
CREATE TABLE IF NOT EXISTS results (
    round INTEGER, device TEXT, body BLOB NOT NULL, PRIMARY KEY (round, device)
) STRICT;
CREATE TABLE IF NOT EXISTS energy (
    round INTEGER, device TEXT, body BLOB NOT NULL, PRIMARY KEY (round, device)
) STRICT;
CREATE TABLE IF NOT EXISTS versions (round INTEGER PRIMARY KEY, blob BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS asked (
    device TEXT PRIMARY KEY, round INTEGER NOT NULL, share REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS official (grp TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY, at_s REAL NOT NULL, text TEXT NOT NULL
) STRICT;
"""
MAX_EVENTS = 10_000
LEARNT = "learnt"
"""The fact that has how long devices took."""
UPLOAD_RATES = "upload_rates"
"""The fact that has how fast devices' lines are, in bytes a second."""
_RESTORE = "restore the state folder from a backup, or begin again with --new"
_UNWRITABLE = ("is full", "readonly", "unable to open", "disk I/O")
"""In SQLite's words: the file or its disk takes nothing, whatever is in it."""
_RESULT = cast("type[Update | Evaluation]", Update | Evaluation)
_ARTIFACTS = cast("type[Artifacts | str]", Artifacts | str)
_NAMES = tuple[str, ...]
Rate = Annotated[float, Meta(gt=0)]


class JournalInvalid(ValueError):
    """The state folder's database cannot be used."""


class JournalUnwritable(OSError):
    """The state folder's database takes no more: the disk is full, or the folder cannot be written."""


class RoundRow(msgspec.Struct, frozen=True, kw_only=True):
    """A round's row. `closed_s` is None while it is open; bytes are None where nobody counted."""

    round: Round
    members: tuple[str, ...]
    quorum: int
    started_s: float
    closed_s: float | None
    bytes_up: int | None
    bytes_down: int | None


class RoundFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A round with the devices' results and the energy that they have used."""

    row: RoundRow
    results: dict[str, Update | Evaluation]
    energy: dict[str, Energy]


class FederationJournal:
    """A federation's journal. Used from one thread. `clock` is in seconds, since the epoch or a simulation's start."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None)
        try:
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            if version in {0, SCHEMA}:
                self._database.executescript(_TABLES)
                self._database.execute(f"PRAGMA user_version={SCHEMA}")
        except sqlite3.DatabaseError as exc:
            self._database.close()
            raise self._fault(exc) from exc
        if version not in {0, SCHEMA}:
            self._database.close()
            raise JournalInvalid(
                f"{path} was written by another version of MAS Edge (schema {version}, this one reads {SCHEMA}): "
                "finish the federation with that version, or move the file away to start again"
            )

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def fact(self, key: str) -> str | None:
        """Return a fact about the federation; None if it is not known."""
        rows = self._rows("SELECT value FROM meta WHERE key = ?", key)
        return str(rows[0][0]) if rows else None

    def set_fact(self, key: str, value: str) -> None:
        """Keep a fact about the federation."""
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def learnt(self) -> Learnt:
        """Return how long devices took in earlier processes."""
        known = self.fact(LEARNT)
        return Learnt() if known is None else self._decoded(known.encode(), Learnt, "meta")

    def upload_rates(self) -> dict[str, Rate]:
        """Return how fast devices' lines were in earlier processes, in bytes a second."""
        known = self.fact(UPLOAD_RATES)
        return {} if known is None else self._decoded(known.encode(), dict[str, Rate], "meta")

    def set_hello(self, device: str, hello: Hello) -> None:
        """Keep a device's newest Hello."""
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO devices VALUES (?, ?)", (device, _json(hello)))

    def hellos(self) -> dict[str, Hello]:
        """Return the newest Hello of every device."""
        rows = self._rows("SELECT device, hello FROM devices ORDER BY device")
        return {device: self._decoded(body, Hello, "devices") for device, body in rows}

    def begin_phase(self, phase: Phase, first_round: int, weights: dict[str, Blob]) -> None:
        """Begin a phase from `weights`, by group; aggregation state and versions of earlier phases are dropped."""
        with self._transaction() as database:
            for table in ("memories", "versions", "asked"):
                database.execute(f"DELETE FROM {table}")  # noqa: S608
            number = database.execute("SELECT count(*) FROM phases").fetchone()[0]
            database.execute("INSERT INTO phases VALUES (?, ?, ?)", (number, first_round, _json(phase)))
            for group, blob in weights.items():
                database.execute("INSERT INTO weights VALUES (?, ?, ?)", (phase.name, group, _json(blob)))

    def phases(self) -> list[tuple[Phase, int]]:
        """Return every phase that has begun, with the ordinal of its first round."""
        rows = self._rows("SELECT body, first_round FROM phases ORDER BY number")
        return [(self._decoded(body, Phase, "phases"), first) for body, first in rows]

    def weights(self) -> dict[tuple[str, str], Blob]:
        """Return the newest weights of every phase and group."""
        rows = self._rows("SELECT phase, grp, blob FROM weights")
        return {(phase, group): self._decoded(blob, Blob, "weights") for phase, group, blob in rows}

    def device_weights(self) -> dict[tuple[str, str], dict[str, Blob]]:
        """Return the newest weights of devices that have their own, of every phase and group."""
        found: dict[tuple[str, str], dict[str, Blob]] = {}
        for phase, group, device, blob in self._rows("SELECT phase, grp, device, blob FROM device_weights"):
            found.setdefault((phase, group), {})[device] = self._decoded(blob, Blob, "device_weights")
        return found

    def aggregation_states(self) -> dict[tuple[str, str], Blob]:
        """Return the aggregation state that the last round of a phase and group left for the next one."""
        rows = self._rows("SELECT phase, grp, blob FROM memories")
        return {(phase, group): self._decoded(blob, Blob, "memories") for phase, group, blob in rows}

    def versions(self) -> dict[int, Blob]:
        """Return the weights that earlier rounds began with, by round, where results of them may still come."""
        return {number: self._decoded(blob, Blob, "versions") for number, blob in self._rows("SELECT * FROM versions")}

    def asked(self) -> dict[str, tuple[int, float]]:
        """Return the round whose plan each device of a buffered round was sent last, and which share of it."""
        return {device: (number, share) for device, number, share in self._rows("SELECT * FROM asked")}

    def open_round(
        self, opened: Round, members: tuple[str, ...], quorum: int, asked: Mapping[str, float] | None = None
    ) -> None:
        """Journal that a round has begun, or has other members, some `asked` for shares of its plan now."""
        with self._transaction() as database:
            database.execute(
                "INSERT INTO rounds (round, body, members, quorum, started_s) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (round) DO UPDATE SET members = excluded.members, quorum = excluded.quorum",
                (opened.number, _json(opened), _json(members), quorum, self._clock()),
            )
            rows = [(device, opened.number, share) for device, share in (asked or {}).items()]
            database.executemany("INSERT OR REPLACE INTO asked VALUES (?, ?, ?)", rows)

    def add_result(self, round_number: int, device: str, result: Update | Evaluation) -> bool:
        """Keep a device's result of a round; return False if one is here already."""
        with self._transaction() as database:
            cursor = database.execute(
                "INSERT OR IGNORE INTO results VALUES (?, ?, ?)", (round_number, device, _json(result))
            )
            return cursor.rowcount == 1

    def remove_result(self, round_number: int, device: str) -> None:
        """Take a device's result out of an open round, because its weights are no longer here: it is asked again."""
        with self._transaction() as database:
            database.execute("DELETE FROM results WHERE round = ? AND device = ?", (round_number, device))

    def results(self, round_number: int) -> dict[str, Update | Evaluation]:
        """Return the results that a round has, by device, in order."""
        rows = self._rows("SELECT device, body FROM results WHERE round = ? ORDER BY device", round_number)
        return {device: self._decoded(body, _RESULT, "results") for device, body in rows}

    def last_results(self, first_round: int, before: int) -> dict[str, int]:
        """Return the last round from `first_round` on, and before another, that each device has a result of."""
        rows = self._rows(
            "SELECT device, MAX(round) FROM results WHERE round >= ? AND round < ? GROUP BY device ORDER BY device",
            first_round,
            before,
        )
        return {str(device): int(number) for device, number in rows}

    def set_energy(self, spent: FinalEnergy, device: str) -> bool:
        """Keep the energy that a device has used for a plan in all; return False if it was not in that round."""
        with self._transaction() as database:
            row = database.execute("SELECT body, members FROM rounds WHERE round = ?", (spent.round,)).fetchone()
            if row is None or self._decoded(row[0], Round, "rounds").group != spent.group:
                return False
            if device not in self._decoded(row[1], _NAMES, "rounds"):
                return False
            database.execute(
                "INSERT OR REPLACE INTO energy VALUES (?, ?, ?)",
                (self._counted_in(spent.round, device), device, _json(spent.energy)),
            )
            return True

    def _counted_in(self, round_number: int, device: str) -> int:
        """Return the round that counts what a device did for a round's plan: that one itself where none does."""
        rows = self._rows("SELECT round, body FROM results WHERE device = ? AND round >= ?", device, round_number)
        found = (number for number, body in rows if self._decoded(body, _RESULT, "results").round == round_number)
        return next(found, round_number)

    def energy(self, round_number: int) -> dict[str, Energy]:
        """Return the energy that each device has used for a round's plan, where it has reported any."""
        rows = self._rows("SELECT device, body FROM energy WHERE round = ?", round_number)
        spent = {device: self._decoded(body, Energy, "energy") for device, body in rows}
        results = self.results(round_number).items()
        return {device: result.energy for device, result in results if result.energy is not None} | spent

    def close_round(
        self,
        closed: Round,
        weights: Blob | None,
        *,
        bytes_up: int | None,
        bytes_down: int | None,
        aggregation_state: Blob | None = None,
        max_age: int = 0,
        device_weights: Mapping[str, Blob] | None = None,
        fact: tuple[str, str] | None = None,
    ) -> None:
        """Close a round that has made `weights` of its group, None for an evaluation.

        `aggregation_state` goes on to the group's next round, and so do `device_weights`, those of single devices, and
        a `fact` by its key. The weights that it began with are kept as long as there are results of them, which may be
        `max_age` versions behind.
        """
        with self._transaction() as database:
            database.execute(
                "UPDATE rounds SET closed_s = ?, bytes_up = ?, bytes_down = ? WHERE round = ?",
                (self._clock(), bytes_up, bytes_down, closed.number),
            )
            if max_age:
                database.execute(
                    "INSERT INTO versions SELECT ?, blob FROM weights WHERE phase = ? AND grp = ?",
                    (closed.number, closed.phase, closed.group),
                )
            for table in ("versions", "asked"):
                database.execute(f"DELETE FROM {table} WHERE round <= ?", (closed.number - max_age,))  # noqa: S608
            if weights is not None:
                database.execute(
                    "INSERT OR REPLACE INTO weights VALUES (?, ?, ?)",
                    (closed.phase, closed.group, _json(weights)),
                )
            _set_device_weights(database, closed, device_weights or {})
            if fact is not None:
                database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", fact)
            if aggregation_state is None:
                database.execute("DELETE FROM memories WHERE phase = ? AND grp = ?", (closed.phase, closed.group))
            else:
                database.execute(
                    "INSERT OR REPLACE INTO memories VALUES (?, ?, ?)",
                    (closed.phase, closed.group, _json(aggregation_state)),
                )

    def add_rounds(
        self, rounds: Sequence[RoundFacts], weights: Blob | None, device_weights: Mapping[str, Blob] | None = None
    ) -> None:
        """Journal closed rounds of one group all at once, with the weights that the last of them made."""
        with self._transaction() as database:
            for facts in rounds:
                row = facts.row
                played = row.round
                database.execute(
                    "INSERT INTO rounds VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        played.number,
                        _json(played),
                        _json(row.members),
                        row.quorum,
                        row.started_s,
                        row.closed_s,
                        row.bytes_up,
                        row.bytes_down,
                    ),
                )
                for device, result in facts.results.items():
                    database.execute("INSERT INTO results VALUES (?, ?, ?)", (played.number, device, _json(result)))
                for device, energy in facts.energy.items():
                    database.execute("INSERT INTO energy VALUES (?, ?, ?)", (played.number, device, _json(energy)))
            if weights is not None:
                last = rounds[-1].row.round
                database.execute(
                    "INSERT OR REPLACE INTO weights VALUES (?, ?, ?)", (last.phase, last.group, _json(weights))
                )
                _set_device_weights(database, last, device_weights or {})

    def facts_of(self, row: RoundRow) -> RoundFacts:
        """Return all that is known of a round."""
        number = row.round.number
        return RoundFacts(row=row, results=self.results(number), energy=self.energy(number))

    def row(self, round_number: int) -> RoundRow | None:
        """Return a round's row; None if it has not begun."""
        return next(iter(self._round_rows("WHERE round = ?", round_number)), None)

    def rounds(self) -> list[RoundRow]:
        """Return every round that has begun, in order."""
        return self._round_rows("ORDER BY round")

    def newest_closed(self, most: int) -> list[RoundRow]:
        """Return the newest rounds that are closed, newest first."""
        return self._round_rows("WHERE closed_s IS NOT NULL ORDER BY round DESC LIMIT ?", most)

    def _round_rows(self, which: str, *values: object) -> list[RoundRow]:
        rows = self._rows(
            f"SELECT body, members, quorum, started_s, closed_s, bytes_up, bytes_down FROM rounds {which}",  # noqa: S608
            *values,
        )
        return [
            RoundRow(
                round=self._decoded(body, Round, "rounds"),
                members=self._decoded(members, _NAMES, "rounds"),
                quorum=quorum,
                started_s=started_s,
                closed_s=closed_s,
                bytes_up=bytes_up,
                bytes_down=bytes_down,
            )
            for body, members, quorum, started_s, closed_s, bytes_up, bytes_down in rows
        ]

    def set_ort_training(self, outcomes: Mapping[str, Artifacts | str]) -> None:
        """Keep the ONNX Runtime training artifacts that were made of groups, by group, or why they could not be."""
        with self._transaction() as database:
            for group, outcome in outcomes.items():
                database.execute("INSERT OR REPLACE INTO official VALUES (?, ?)", (group, _json(outcome)))

    def ort_training(self) -> dict[str, Artifacts | str]:
        """Return each group's ONNX Runtime training artifacts, or why they could not be made."""
        rows = self._rows("SELECT grp, body FROM official ORDER BY grp")
        return {group: self._decoded(body, _ARTIFACTS, "official") for group, body in rows}

    def note(self, text: str) -> None:
        """Keep a text that people should be able to read later; beyond MAX_EVENTS the oldest are dropped."""
        with self._transaction() as database:
            number = database.execute("INSERT INTO events (at_s, text) VALUES (?, ?)", (self._clock(), text)).lastrowid
            database.execute("DELETE FROM events WHERE number <= ?", ((number or 0) - MAX_EVENTS,))

    def notes(self) -> list[tuple[float, str]]:
        """Return the notes, oldest first, as (seconds since the epoch, text)."""
        return [(float(at_s), str(text)) for at_s, text in self._rows("SELECT at_s, text FROM events ORDER BY number")]

    def notes_after(self, number: int, most: int) -> list[tuple[int, float, str]]:
        """Return the newest notes that follow note `number`, oldest first, as (number, seconds since the epoch, text).

        Numbers begin at 1.
        """
        rows = self._rows(
            "SELECT number, at_s, text FROM events WHERE number > ? ORDER BY number DESC LIMIT ?", number, most
        )
        return [(int(found), float(at_s), str(text)) for found, at_s, text in reversed(rows)]

    def check(self) -> None:
        """Read all that is here. Raises JournalInvalid for the first thing that cannot be."""
        if (found := self._rows("PRAGMA integrity_check")) != [("ok",)]:
            raise JournalInvalid(f"{self._path} is damaged: {found[0][0]}; {_RESTORE}")
        for row in self.rounds():
            self.facts_of(row)
        stored = (self.weights, self.device_weights, self.aggregation_states)
        for read in (self.hellos, self.phases, *stored, self.ort_training, self.notes):
            read()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make one transaction of what changes in the block: it is on the disk when the block ends, and not before.

        What raises and is caught inside undoes its own change alone.
        """
        with self._transaction():
            yield

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        is_inner = self._database.in_transaction
        try:
            self._database.execute("SAVEPOINT inner" if is_inner else "BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("RELEASE inner" if is_inner else "COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk may have ended the transaction already
                    self._database.execute("ROLLBACK TO inner" if is_inner else "ROLLBACK")
                    if is_inner:
                        self._database.execute("RELEASE inner")
                raise
        except sqlite3.IntegrityError:  # what was to be written cannot be, and the database is as it was
            raise
        except sqlite3.DatabaseError as exc:
            raise self._fault(exc) from exc

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.DatabaseError as exc:
            raise self._fault(exc) from exc

    def _decoded(self, body: bytes, kind: type[T], table: str) -> T:
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, TypeError, UnicodeDecodeError, RecursionError) as exc:
            raise JournalInvalid(
                f"{self._path} is damaged: a row of its table {table} cannot be read ({reason(exc)}); {_RESTORE}"
            ) from exc

    def _fault(self, exc: sqlite3.DatabaseError) -> Exception:
        """Return the exception for one of SQLite's: the file is damaged, or it takes nothing more."""
        if any(words in str(exc) for words in _UNWRITABLE):
            return JournalUnwritable(f"{self._path} cannot be written: {exc}; all that was acknowledged is in it")
        return JournalInvalid(f"{self._path} is damaged: {exc}; {_RESTORE}")


def _set_device_weights(database: sqlite3.Connection, of: Round, weights: Mapping[str, Blob]) -> None:
    for device, blob in weights.items():
        database.execute(
            "INSERT OR REPLACE INTO device_weights VALUES (?, ?, ?, ?)", (of.phase, of.group, device, _json(blob))
        )


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)
