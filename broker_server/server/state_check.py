"""Checking a state folder, and copying it while its server runs."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from broker_server.rounds.journal import FederationJournal, JournalInvalid
from broker_server.server.audit import AUDIT
from broker_server.server.certificates import TLS
from broker_server.server.enrolments import DEVICES, Enrolments
from broker_server.server.keys import KEY, RETIRED, SIGNING
from broker_server.server.receipts import RECEIPTS
from broker_server.server.state import BLOBS, COUNTER, JOURNAL, PRIVATE, UPLOADS, URL, StateFolder
from edge_runtime.wire.files import digest_file, sync_folder
from edge_runtime.wire.messages import Update

ATTEMPTS = 5
_SECRETS = (KEY, SIGNING, f"{TLS}/ca.key", f"{TLS}/server.key")


class BackupImpossible(RuntimeError):
    """A copy of a state folder cannot be made; the sentence says why."""


def problems(folder: StateFolder, *, repair: bool) -> list[str]:
    """Return a sentence for each thing that is wrong in a state folder, and with `repair` mend what can be.

    What the server makes again or asks for again by itself is deleted. Raises JournalInvalid, JournalUnwritable.
    """
    journal, blobs = folder.open()
    with closing(journal):
        journal.check()
        found = [*_of_files(folder.path, repair=repair)]
        for name, digest in _named(journal):
            path = blobs.path(digest)
            if not path.is_file():
                found.append(
                    f"{name}: {path} is gone; the server makes it again at its next start, or says that it cannot"
                )
            elif digest_file(path) != digest:
                found.append(f"{name}: {path} is damaged{'; deleted' if repair else ''}")
                if repair:
                    path.unlink()
        for device, number, digest in _open_updates(journal):
            path = folder.uploads.of(device).path(digest)
            if not path.is_file() or digest_file(path) != digest:
                found.append(
                    f"{device}'s update of round {number} is not here{'; it is asked for again' if repair else ''}"
                )
                if repair:
                    path.unlink(missing_ok=True)
                    journal.remove_result(number, device)
    enrolments = Enrolments(folder.path)
    found += [
        f"{DEVICES}/{name}.json cannot be read: enrol {name} again"
        for name in enrolments.names()
        if not enrolments.find(name)
    ]
    return found


def backup(state: Path, out: Path) -> None:
    """Copy a state folder to one that appears whole; its server may run. Raises BackupImpossible, JournalInvalid.

    The copy has all that a federation needs, keys and enrolments too: it is for its owner alone, like the folder.
    """
    if out.exists():
        raise BackupImpossible(f"{out} exists already: name another folder")
    if not (state / JOURNAL).is_file():
        raise BackupImpossible(f"{state} is not a state folder: it has no {JOURNAL}")
    out.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(ATTEMPTS):
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            _copy(state, made)
            made.rename(out)
        except FileNotFoundError:  # a round has closed meanwhile, and what it made needless is gone
            continue
        else:
            sync_folder(out.parent)
            return
        finally:
            shutil.rmtree(made, ignore_errors=True)
    raise BackupImpossible(f"{state} changes faster than it is copied: try again, or stop the server")


def _copy(state: Path, made: Path) -> None:
    made.chmod(PRIVATE)
    source = sqlite3.connect(f"file:{state / JOURNAL}?mode=ro", uri=True)
    with closing(source), closing(sqlite3.connect(made / JOURNAL)) as target:
        try:
            source.backup(target)
        except sqlite3.DatabaseError as exc:
            raise JournalInvalid(f"{state / JOURNAL} cannot be copied: {exc}") from exc
    with closing(FederationJournal(made / JOURNAL)) as journal:
        for _, digest in _named(journal):
            _copy_file(state, made, f"{BLOBS}/{digest}")
        for device, _, digest in _open_updates(journal):
            _copy_file(state, made, f"{UPLOADS}/{device}/{digest}")
    for name in (KEY, SIGNING, URL, COUNTER, AUDIT, RECEIPTS):
        if (state / name).is_file():
            _copy_file(state, made, name)
    for folder in (DEVICES, TLS, RETIRED):
        for path in sorted((state / folder).glob("*.*")):
            _copy_file(state, made, f"{folder}/{path.name}")


def _copy_file(state: Path, made: Path, name: str) -> None:
    target = made / name
    target.parent.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
    shutil.copy2(state / name, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _named(journal: FederationJournal) -> list[tuple[str, str]]:
    """Return the blobs that the journal names, each once, as (what it is, digest)."""
    named = {}
    for (phase, group), blob in journal.weights().items():
        named[blob.digest] = f"weights of {group} in phase {phase}"
    for (phase, group), blob in journal.aggregation_states().items():
        named[blob.digest] = f"aggregation state of {group} in phase {phase}"
    for number, blob in journal.versions().items():
        named[blob.digest] = f"weights of round {number}, of which results may come"
    return [(name, digest) for digest, name in named.items()]


def _open_updates(journal: FederationJournal) -> Iterator[tuple[str, int, str]]:
    """Yield the updates of rounds that are open, as (device, round, digest)."""
    for row in journal.rounds():
        if row.closed_s is None:
            for device, result in journal.results(row.round.number).items():
                if isinstance(result, Update):
                    yield device, row.round.number, result.weights.digest


def _of_files(state: Path, *, repair: bool) -> Iterator[str]:
    """Yield what is wrong with who may read the folder and its secrets."""
    for path, mode in [(state, PRIVATE), *((state / name, 0o600) for name in _SECRETS)]:
        if path.exists() and path.stat().st_mode & 0o077:
            yield f"others may read {path}{'; not any more' if repair else f': chmod {mode:o} {path}'}"
            if repair:
                path.chmod(mode)
