"""What a round of a linear model has measured, for the report."""

from collections.abc import Mapping

import msgspec

from broker_server.rounds.journal import FederationJournal
from broker_server.rounds.linear_rounds import outcome
from broker_server.rounds.round_state import Result
from edge_runtime.wire.messages import Update


class LinearRound(msgspec.Struct, frozen=True, kw_only=True):
    """What a round has measured of a linear model, with the weights that devices were sent.

    Null where not all devices measured it, and the gap where the method has no certificate.
    """

    objective: float | None
    gap: float | None
    """The objective is at most so far above the least possible, for the relations of the round."""
    steps: dict[str, int]
    """Steps on samples by device: 0 for a device that measured alone."""


def linear_round(journal: FederationJournal, number: int, results: Mapping[str, Result]) -> LinearRound | None:
    """Return what a closed round measured; None for a model with graphs."""
    measured = outcome(journal, number)
    if measured is None:
        return None
    steps = {
        device: update.linear.steps
        for device, update in sorted(results.items())
        if isinstance(update, Update) and update.linear is not None
    }
    return LinearRound(objective=measured.objective, gap=measured.gap, steps=steps)
