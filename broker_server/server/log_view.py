"""What the server says as records of its log, for programs: the place of lines and of a live view."""

import logging
from collections.abc import Mapping

import msgspec

from broker_server.operator.view import closed_round
from broker_server.rounds.coordinator import Coordinator
from broker_server.rounds.journal import RoundRow
from broker_server.rounds.round_state import Result
from broker_server.server.loop import ServerLoop
from broker_server.server.progress import round_line
from broker_server.server.refusals import RefusalLine

_LOG = logging.getLogger("broker_server")


class LogView:
    """A Watcher that logs."""

    def note(self, text: str) -> None:
        """Log a note."""
        _LOG.info("%s", text)

    def on_round_closed(self, row: RoundRow, results: Mapping[str, Result]) -> None:
        """Log a round, with all figures."""
        figures = msgspec.to_builtins(closed_round(row, results, {}))
        _LOG.info("%s", round_line(row, results), extra={"fields": {"round": figures}})

    def refresh(self, coordinator: Coordinator, loop: ServerLoop | None) -> None:
        """Log nothing."""

    def refusal(self, line: RefusalLine) -> None:
        """Log a refusal."""
        fields = {"refused": line.who, "why": line.why, "count": line.count}
        _LOG.warning("%s", line.text, extra={"fields": fields})
