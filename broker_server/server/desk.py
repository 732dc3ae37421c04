"""The desk: answers the operator's commands on the server's own thread, between two events.

Rules
- What is asked is answered from the state as it is now; what is done is journalled before the answer, and audited.
- A pause holds until `resume`, also over restarts. It begins no round; the one that is open goes on to its end.
"""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from broker_server.grouping.affinity import AffinityLedger
from broker_server.operator import messages as shown
from broker_server.operator import view
from broker_server.operator.view import Enrolled, History, ServerFacts
from broker_server.rounds.coordinator import Coordinator
from broker_server.rounds.journal import FederationJournal, RoundRow
from broker_server.rounds.round_state import Result
from broker_server.server.audit import Act as AuditAct
from broker_server.server.audit import AuditLog
from broker_server.server.dispatcher import Dispatcher
from broker_server.server.enrolments import Enrolments
from broker_server.server.loop import ServerLoop
from broker_server.server.refusal_watch import RefusalWatch
from edge_runtime.wire.names import Tasks

if TYPE_CHECKING:
    from broker_server.operator.metrics import Metrics

PAUSED = "paused"
"""The journal's fact: not empty while no round may begin."""
PUBLISH_S = 1.0
"""The time between two states that metrics are read from."""
ENROLLED_S = 2.0
READ_RESULTS = 20_000
"""The most results of earlier processes that are read at the start, those of the newest rounds."""


class Desk:
    """The operator's desk of a server. A Watcher, so that it hears of each round that closes."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        federation: str,
        enrolments: Enrolments,
        audit: AuditLog,
        refused: Callable[[], Mapping[str, int]] = dict,
        watch: RefusalWatch | None = None,
        metrics: "Metrics | None" = None,
        at: Callable[[], float] = time.time,
    ) -> None:
        self.loop: ServerLoop | None = None
        """None while there is no bundle."""
        self.is_stopping = False
        """True once the operator has asked for the server's end."""
        self.history = read_history(dispatcher.journal)
        self._dispatcher = dispatcher
        self._federation = federation
        self._enrolments = enrolments
        self._audit = audit
        self._refused = refused
        self._watch = watch or RefusalWatch()
        self._metrics = metrics
        self._published_s = float("-inf")
        self._known: tuple[float, Mapping[str, Enrolled]] | None = None
        self._affinities: tuple[int, shown.AffinityView] | None = None
        self._at = at
        dispatcher.coordinator.is_paused = bool(dispatcher.journal.fact(PAUSED))

    def note(self, text: str) -> None:
        """Do nothing: the journal has the note."""

    def on_round_closed(self, row: RoundRow, results: Mapping[str, Result]) -> None:
        """Keep what a round has left."""
        closed = self.history.add(row, results)
        if self._metrics is not None:
            self._metrics.add_round(closed)

    def refresh(self, coordinator: Coordinator, loop: ServerLoop | None) -> None:  # noqa: ARG002 - as other watchers
        """Tell refusals, and publish metrics once in PUBLISH_S. Who wants to see more asks."""
        now_s = self._dispatcher.clock()
        self._watch.tell(now_s)
        if self._metrics is None or now_s - self._published_s < PUBLISH_S:
            return
        self._published_s = now_s
        facts = self.facts()
        most = shown.MAX_ROWS if self._metrics.has_devices else 1
        self._metrics.publish(
            view.status(facts, self.history, now_s=now_s, at_s=self._at()),
            view.fleet(facts, self.history, self._enrolled(), most=most),
        )

    def answer(self, request: shown.Request) -> shown.Answer:
        """Answer a request."""
        if isinstance(request, shown.AskAffinity):
            return self._affinity()
        if not isinstance(request, shown.Act):
            return asked(
                request,
                self.facts(),
                self.history,
                self._dispatcher.journal,
                self._enrolled,
                now_s=self._dispatcher.clock(),
                at_s=self._at(),
            )
        return self._act(request)

    def facts(self) -> ServerFacts:
        """Return what is there now."""
        dispatcher, loop = self._dispatcher, self.loop
        current = dispatcher.coordinator.open
        row = None if current is None else dispatcher.journal.row(current.round.number)
        return ServerFacts(
            federation=self._federation,
            coordinator=dispatcher.coordinator,
            has_bundle=loop is not None,
            tasks=() if loop is None else loop.federation.tasks,
            phases=dispatcher.journal.phases(),
            round=None if loop is None else loop.round,
            begun_at_s=None if row is None else row.started_s,
            building=loop is not None and bool(loop.building),
            finished=None if loop is None else loop.finished,
            failed=loop is not None and loop.failed,
            dropped=dispatcher.counts,
            refused=self._refused(),
            refusal_of=self._watch.refusals.of,
        )

    def _enrolled(self) -> Mapping[str, Enrolled]:
        """Return who is enrolled, as the folder had it within the last ENROLLED_S: a fleet's files are many."""
        now_s = self._dispatcher.clock()
        if self._known is None or now_s - self._known[0] >= ENROLLED_S:
            self._known = now_s, read_enrolled(self._enrolments)
        return self._known[1]

    def _act(self, request: shown.Act) -> shown.Answer:
        if self.loop is not None and self.loop.finished is not None and request.act != "stop":
            return shown.NotDone(says=f"the federation has ended ({self.loop.finished}): --new begins another one")
        match request.act:
            case "pause":
                return self._pause()
            case "resume":
                return self._resume()
            case "drop":
                return self._drop(request.device)
            case "stop":
                return self._stop()

    def _affinity(self) -> shown.Answer:
        """Return the affinities, worked out once for each round that closes."""
        if self.loop is None:
            return view.affinity(AffinityLedger(()).result())
        newest = self.history.rounds[-1].number if self.history.rounds else -1
        if self._affinities is None or self._affinities[0] != newest:
            self._affinities = newest, view.affinity(self.loop.federation.affinities)
        return self._affinities[1]

    def _pause(self) -> shown.Answer:
        coordinator = self._dispatcher.coordinator
        if coordinator.is_paused:
            return shown.NotDone(says="the federation is paused already: `resume` lets rounds begin again")
        self._dispatcher.journal.set_fact(PAUSED, "by the operator")
        coordinator.is_paused = True
        self._did("paused", "the operator has paused the federation")
        current = coordinator.open
        if current is None or not current.members:
            return shown.Done(says="paused: no round begins before `resume`")
        return shown.Done(
            says=f"round {current.round.number} goes on to its end; after it the federation is paused until `resume`"
        )

    def _resume(self) -> shown.Answer:
        if not self._dispatcher.coordinator.is_paused:
            return shown.NotDone(says="the federation is not paused")
        self._dispatcher.journal.set_fact(PAUSED, "")
        self._did("resumed", "the operator has resumed the federation")
        self._dispatcher.do(self._dispatcher.coordinator.resume(self._dispatcher.clock()))
        return shown.Done(says="resumed")

    def _drop(self, device: str | None) -> shown.Answer:
        coordinator = self._dispatcher.coordinator
        if device is None:
            return shown.NotDone(says="drop names a device")
        if not coordinator.is_asked(device):
            known = device in coordinator.devices
            why = "no round waits for it" if known else "`fleet` lists those that are known"
            return shown.NotDone(says=f"{device} cannot be dropped: {why}")
        assert coordinator.open is not None
        number = coordinator.open.round.number
        self._audit.add("dropped", device=device, why=f"round {number}, by the operator")
        self._dispatcher.do(coordinator.drop(device, self._dispatcher.clock()))
        return shown.Done(
            says=f"round {number} goes on without {device}; `revoke` would keep it out of the next ones as well"
        )

    def _stop(self) -> shown.Answer:
        self.is_stopping = True
        self._did("stopping", "the operator has stopped the server")
        return shown.Done(says="the server stops; its state is kept: the same command goes on from there")

    def _did(self, what: AuditAct, text: str) -> None:
        self._audit.add(what, why="by the operator")
        self._dispatcher.note(text)


def asked(
    request: shown.AskStatus | shown.AskFleet | shown.AskRounds | shown.AskEvents,
    facts: ServerFacts,
    history: History,
    journal: FederationJournal,
    enrolled: Callable[[], Mapping[str, Enrolled]],
    *,
    now_s: float,
    at_s: float,
) -> shown.Answer:
    """Return the view that is asked for."""
    match request:
        case shown.AskStatus():
            return view.status(facts, history, now_s=now_s, at_s=at_s)
        case shown.AskFleet(after=after, most=most):
            return view.fleet(facts, history, enrolled(), after=after, most=most)
        case shown.AskRounds(after=number, most=most):
            return view.rounds(history, after=number, most=most)
        case shown.AskEvents(after=number, most=most):
            return view.events(journal.notes_after(number, most))


def read_enrolled(enrolments: Enrolments) -> dict[str, Enrolled]:
    """Return what is known of the devices that were ever enrolled."""
    found = {name: enrolments.find(name) for name in enrolments.names()}
    return {
        name: Enrolled(is_readable=each is not None, is_revoked=each is not None and each.revoked)
        for name, each in found.items()
    }


def read_history(journal: FederationJournal) -> History:
    """Return what the newest closed rounds of a journal have left. Raises JournalInvalid."""
    wanted: list[RoundRow] = []
    number = 0
    for row in journal.newest_closed(view.KEPT_ROUNDS):
        number += len(row.members)
        if wanted and number > READ_RESULTS:
            break
        wanted.append(row)
    history = History()
    for row in reversed(wanted):
        played = row.round.number
        history.add(row, journal.results(played), journal.energy(played))
    return history


def facts_of_journal(
    journal: FederationJournal, coordinator: Coordinator, federation: str, tasks: Tasks
) -> ServerFacts:
    """Return what a journal says while no server runs."""
    coordinator.is_paused = bool(journal.fact(PAUSED))
    phases = journal.phases()
    closed = sum(row.closed_s is not None for row in journal.rounds())
    planned = None
    if phases:
        phase, first = phases[-1]
        planned = phase.round_at(closed - first, first) if closed - first < phase.steps else None
    return ServerFacts(
        federation=federation,
        coordinator=coordinator,
        is_running=False,
        tasks=tasks,
        phases=phases,
        round=planned,
    )
