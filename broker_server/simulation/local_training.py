"""Devices that train each for itself, as one run: the baseline that no federation is asked for.

Each is a federation of its own, with one device, which begins with the same weights and trains the same rounds. Here
their journals become one, as if they had met in the rounds of one federation in which nothing was exchanged.
"""

import math
from collections.abc import Mapping

import msgspec

from broker_server.rounds.journal import FederationJournal, RoundFacts, RoundRow
from broker_server.simulation.fleet import Fleet
from broker_server.simulation.run_cache import computed_s, set_computed


def without_link(fleet: Fleet, device: str) -> Fleet:
    """Return the board of a device whose link takes no time and does not get lost: nothing would go over it."""
    board = msgspec.structs.replace(
        fleet.of(device), up_bytes_per_s=math.inf, down_bytes_per_s=math.inf, latency_s=0.0, drop_rate=0.0
    )
    return Fleet(board=board)


def join(journals: Mapping[str, FederationJournal], into: FederationJournal) -> None:
    """Write the journals of finished federations of one device each, by device, as one. `into` is empty.

    They have the same phases. A round has the results of all, takes as long as the slowest, and no bytes.
    """
    first = next(iter(journals.values()))
    for fact in ("settings", "versions", "metrics"):
        into.set_fact(fact, first.fact(fact) or "{}")
    for phase, number in first.phases():
        into.begin_phase(phase, number, {})
    ended_s = 0.0
    rounds = {device: journal.rounds() for device, journal in journals.items()}
    for row in first.rounds():
        number = row.round.number
        facts = {device: journals[device].facts_of(rows[number]) for device, rows in rounds.items()}
        begun_s, ended_s = ended_s, ended_s + max(_seconds(each.row) for each in facts.values())
        joined = RoundRow(
            round=row.round,
            members=tuple(sorted({member for each in facts.values() for member in each.row.members})),
            quorum=sum(each.row.quorum for each in facts.values()),
            started_s=begun_s,
            closed_s=ended_s,
            bytes_up=0,
            bytes_down=0,
        )
        results = {
            name: msgspec.structs.replace(result, bytes_down=0)
            for each in facts.values()
            for name, result in each.results.items()
        }
        energy = {name: spent for each in facts.values() for name, spent in each.energy.items()}
        into.add_rounds([RoundFacts(row=joined, results=results, energy=energy)], None)
        cpu_s = [computed_s(journals[device], each.row) for device, each in facts.items()]
        set_computed(into, number, {name: seconds for each in cpu_s for name, seconds in each.items()})


def _seconds(row: RoundRow) -> float:
    return (row.closed_s or row.started_s) - row.started_s
