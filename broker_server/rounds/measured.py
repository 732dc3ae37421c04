"""The affinities that devices have measured, out of a federation's journal: each is of the version that was probed."""

from collections.abc import Iterator, Mapping

from broker_server.rounds.journal import FederationJournal
from broker_server.rounds.round_state import Result
from edge_runtime.wire.messages import Affinity, Update


def measured_in(journal: FederationJournal, results: Mapping[str, Result]) -> Iterator[tuple[int, str, Affinity]]:
    """Yield (round, device, affinities) of a round's results, where the round that they began from has probed."""
    rows = {number: journal.row(number) for number in {result.round for result in results.values()}}
    for device, result in results.items():
        row = rows[result.round]
        if isinstance(result, Update) and result.affinity is not None and row is not None and row.round.probe:
            yield result.round, device, result.affinity


def measured(journal: FederationJournal) -> Iterator[tuple[int, str, Affinity]]:
    """Yield all affinities of closed rounds."""
    rows = journal.rounds()
    probing = {(row.round.phase, row.round.group) for row in rows if row.round.probe}
    for row in rows:
        if row.closed_s is not None and (row.round.phase, row.round.group) in probing:
            yield from measured_in(journal, journal.results(row.round.number))
