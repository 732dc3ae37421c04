"""The server's loop: runs the rounds of one federation, from event to event.

It offers the federation's next round to the coordinator, takes what devices have made of it, has the federation close
it, and so on. Where a phase needs ONNX Runtime training artifacts, its first round waits until they have been made.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from broker_server.grouping.search import SplitImpossible
from broker_server.rounds.actions import Close
from broker_server.rounds.coordinator import Coordinator
from broker_server.rounds.encoder_process import EncoderSupervisor, EncoderUnavailable
from broker_server.rounds.federation import Federation
from broker_server.rounds.journal import RoundRow
from broker_server.rounds.ort_training_process import (
    ArtifactBuilder,
    ArtifactsUnavailable,
    artifact_users,
    problem_sentence,
)
from broker_server.rounds.round_state import OpenRound, Result, RoundTraffic
from broker_server.rounds.trained import UpdatesLost
from broker_server.server.dispatcher import NO_BUILDER, Dispatcher, FragmentReceived, RoundEvent, UpdateComplete
from broker_server.strategies.planner import Round
from edge_runtime.wire.errors import BlobInvalid, TensorsInvalid
from edge_runtime.wire.messages import text
from edge_runtime.wire.names import Tasks, group_id


class Watcher(Protocol):
    """A seam for people who watch: a live view, plain lines or nothing."""

    def note(self, text: str) -> None:
        """Show a text that is worth reading."""
        ...

    def on_round_closed(self, row: RoundRow, results: Mapping[str, Result]) -> None:
        """Show a round that has closed."""
        ...

    def refresh(self, coordinator: Coordinator, loop: "ServerLoop | None") -> None:
        """Show where things stand now; `loop` is None while there is no bundle."""
        ...


class Watchers:
    """Several watchers as one."""

    def __init__(self, *watchers: Watcher) -> None:
        self._watchers = watchers

    def note(self, text: str) -> None:
        """Show a text."""
        for each in self._watchers:
            each.note(text)

    def on_round_closed(self, row: RoundRow, results: Mapping[str, Result]) -> None:
        """Show a round that has closed."""
        for each in self._watchers:
            each.on_round_closed(row, results)

    def refresh(self, coordinator: Coordinator, loop: "ServerLoop | None") -> None:
        """Show where things stand now."""
        for each in self._watchers:
            each.refresh(coordinator, loop)


class ServerLoop:
    """One federation's server, from `start` until `finished`."""

    def __init__(
        self,
        federation: Federation,
        dispatcher: Dispatcher,
        watcher: Watcher,
        *,
        builder: ArtifactBuilder | None = None,
        encoder: EncoderSupervisor | None = None,
        next_round: Callable[[], Round | None] | None = None,
    ) -> None:
        """Take rounds from `next_round`, or from the federation itself where there is none."""
        self.federation = federation
        self.dispatcher = dispatcher
        self.coordinator = dispatcher.coordinator
        self.round: Round | None = None
        """The round that is going on or waits for devices or artifacts."""
        self.finished: str | None = None
        """One sentence on the federation's end, once it has ended."""
        self.failed = False
        """True if the federation ended before its time."""
        self.building: tuple[Tasks, ...] = ()
        """The groups whose ONNX Runtime training artifacts the round waits for."""
        self._watcher = watcher
        self._builder = builder
        self._encoder = encoder
        self._next_round = next_round or federation.next
        self._without_artifacts: set[Tasks] = set()
        self._weights_served: set[str] = set()

    def start(self) -> None:
        """Begin the federation, or go on with it where the journal stands."""
        self.dispatcher.handler = self._handle
        self.dispatcher.served.offer(*self.federation.manifests.graphs)
        self._next()
        is_open = self.round is not None and self.dispatcher.journal.row(self.round.number) is not None
        self.federation.sweep(partial=not is_open)

    def step(self, timeout_s: float) -> None:
        """Take one event from the link, if one comes in time, and do what follows from it and from the clock.

        Raises BrokerRefused.
        """
        self.dispatcher.receive(timeout_s)
        self._send_encoder_fragments()
        if self.dispatcher.tick():
            self._poll_builder()
            self._watcher.refresh(self.coordinator, self)
        self.dispatcher.outgoing.flush()

    def _handle(self, event: RoundEvent) -> None:
        match event:
            case Close(closed=closed):
                self._close(closed)
            case UpdateComplete(device=device):
                self._take_update(device)
            case FragmentReceived(device=device, fragment=fragment):
                self._pass_on(device, fragment)

    # The encoder server
    def _pass_on(self, device: str, fragment: bytes) -> None:
        """Pass a device's fragment on to the encoder server."""
        current = self.coordinator.open
        if self._encoder is None or current is None:
            self.dispatcher.count_dropped("fragment that nobody asked for")
            return
        current.traffic.add(up_bytes=len(fragment))
        opening = partial(self.federation.encoder_round, current.plan)
        try:
            if not self._encoder.send(current.plan.round, opening, device, fragment):
                self.dispatcher.count_dropped("fragment that the encoder server had no room for")
        except EncoderUnavailable as exc:
            self._give_up(str(exc))

    def _send_encoder_fragments(self) -> None:
        """Send devices the encoder server's fragments, while they take those that it has sent before."""
        if self._encoder is None or not self.dispatcher.outgoing.takes_fragments:
            return
        try:
            fragments = self._encoder.receive()
        except EncoderUnavailable as exc:
            self._give_up(str(exc))
            return
        for device, fragment in fragments:
            if self.coordinator.open is not None:
                self.coordinator.open.traffic.add(down_bytes=len(fragment))
            self.dispatcher.outgoing.fragment(device, fragment)

    # Rounds
    def _take_update(self, device: str) -> None:
        """Check a device's announced weights, which are here, and count them."""
        current = self.coordinator.open
        update = None if current is None else current.announced.get(device)
        if current is None or update is None:
            self.dispatcher.count_dropped("update that no round waits for")
            return
        try:
            self.federation.check_update(current.plan_of(device), device, update)
        except (BlobInvalid, TensorsInvalid) as exc:
            self.dispatcher.do(self.coordinator.on_update_rejected(device, str(exc), self.dispatcher.clock()))
        else:
            self.dispatcher.do(self.coordinator.on_update_received(device, self.dispatcher.clock()))

    def _close(self, closed: OpenRound) -> None:
        try:
            results = self.federation.close(closed.round, closed.counted, closed.traffic)
        except UpdatesLost as exc:
            self.dispatcher.note(f"round {closed.round.number} cannot close yet: an update is damaged ({exc})")
            self._next()
            return
        row = self.dispatcher.journal.row(closed.round.number)
        assert row is not None
        self._watcher.on_round_closed(row, results)
        self._next()

    def _next(self) -> None:
        """Offer the next round, or the one that was open when an earlier process ended."""
        try:
            planned = self._next_round()
        except SplitImpossible as exc:
            self._give_up(str(exc))
            return
        if planned is None:
            self._finish("all rounds are done")
            return
        self.round = planned
        row = self.dispatcher.journal.row(planned.number)
        if row is None:
            self._begin(planned)
        else:
            self._offer(planned, row)

    def _begin(self, planned: Round) -> None:
        """Offer a round that no process has begun, if need be after its phase's artifacts have been made."""
        lacking = self.federation.groups_without_artifacts(planned)
        self.building = tuple(tasks for tasks in lacking if tasks not in self._without_artifacts)
        if not self.building or not artifact_users(self.coordinator.devices)[0]:
            self.building = ()
            self._offer(planned)
            return
        try:
            if self._builder is None:
                raise ArtifactsUnavailable(NO_BUILDER)  # noqa: TRY301
            self._builder.start(self.federation.manifests.bundle, self.building, self.dispatcher.clock())
        except ArtifactsUnavailable as exc:
            self._go_without_artifacts(planned, str(exc))
        else:
            self.dispatcher.note(
                f"making ONNX Runtime training artifacts for {', '.join(map(group_id, self.building))}"
            )

    def _offer(self, planned: Round, row: RoundRow | None = None) -> None:
        """Offer a round to the coordinator; `row` is the journal's where an earlier process has begun it."""
        deadline_s = self.coordinator.rules.deadline_s
        plan = self.federation.plan(planned, deadline_s)
        own_plans = self.federation.device_plans(planned, plan)
        self.dispatcher.served.offer(plan.bundle, plan.weights)
        now_s = self.dispatcher.clock()
        is_portable = planned.tasks in self.federation.groups_without_artifacts(planned)
        if row is None:
            self.dispatcher.do(
                self.coordinator.offer(planned, plan, now_s, own_plans=own_plans, is_portable=is_portable)
            )
            self._serve_weights()
            return
        for device in self.federation.drop_lost(planned.number):
            self.dispatcher.note(
                f"{device}'s update of round {planned.number} is not in the state folder: it is asked for again"
            )
        results = self.dispatcher.journal.results(planned.number)
        self.dispatcher.note(f"round {planned.number} goes on: {len(results)} of {len(row.members)} results are here")
        # What came before the restart was not counted.
        traffic = RoundTraffic(up_bytes=None, down_bytes=0 if plan.split_learning is None else None)
        self.dispatcher.do(
            self.coordinator.offer(
                planned,
                plan,
                now_s,
                own_plans=own_plans,
                members=row.members,
                quorum=row.quorum,
                results=results,
                plans=self.federation.plans_sent(planned, row.members, deadline_s),
                traffic=traffic,
                is_portable=is_portable,
            )
        )
        self._serve_weights()

    def _serve_weights(self) -> None:
        """Serve the weights that members of the open round are to train from, and no others."""
        current = self.coordinator.open
        plans = [] if current is None else [current.plan, *current.plans.values(), *current.own_plans.values()]
        wanted = {blob.digest: blob for plan in plans for blob in plan.files[1:]}
        for digest in self._weights_served - set(wanted):
            self.dispatcher.served.withdraw(digest)
        self.dispatcher.served.offer(*wanted.values())
        self._weights_served = set(wanted)

    # ONNX Runtime training artifacts
    def _poll_builder(self) -> None:
        """Go on with the round that waits for artifacts, if these are ready or cannot be made."""
        if self._builder is None or self.round is None or not self.building:
            return
        try:
            built = self._builder.poll(self.dispatcher.clock())
        except ArtifactsUnavailable as exc:
            self._go_without_artifacts(self.round, str(exc))
            return
        if built is None:
            return
        self.federation.manifests.add_artifacts(built)
        self._builder.stop()
        worst = max(each.artifacts.max_relative_error for each in built.values())
        groups = ", ".join(map(group_id, built))
        self.dispatcher.note(
            f"ONNX Runtime training artifacts for {groups} are within {worst:.1e} of the portable graphs"
        )
        self.building = ()
        self.dispatcher.served.offer(*self.federation.manifests.graphs)
        self._next()

    def _go_without_artifacts(self, planned: Round, problem: str) -> None:
        """Go on without the artifacts of some groups: devices that train with nothing else are left out."""
        groups, self.building = self.building, ()
        self._without_artifacts.update(groups)
        self.federation.manifests.add_problem(groups, problem)
        requiring = artifact_users(self.coordinator.devices)[1]
        self.dispatcher.note(problem_sentence(groups, problem, requiring))
        self._offer(planned)

    # The end
    def _give_up(self, why: str) -> None:
        self.failed = True
        self._finish(f"the federation cannot go on: {why}")

    def _finish(self, detail: str) -> None:
        self.round = None
        self.finished = detail
        self.dispatcher.note(detail)
        self.dispatcher.do(self.coordinator.finish(text(detail)))
