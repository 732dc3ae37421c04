"""Views: what an operator is shown, built from the state of coordinator and federation, without I/O or clock.

`ServerFacts` are what is there now, `History` what closed rounds have left: a bounded number, and the newest result
of each device. `now_s` is the coordinator's clock, `at_s` seconds since the epoch.
"""

# coverage: every branch

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from broker_server.grouping.affinity import Affinities, Array
from broker_server.operator import messages as shown
from broker_server.operator.messages import DeviceDoing, FederationState, Losses
from broker_server.report.energy import total
from broker_server.rounds.coordinator import Coordinator
from broker_server.rounds.journal import RoundRow
from broker_server.rounds.losses import weighted_losses
from broker_server.rounds.presence import DeviceState
from broker_server.rounds.round_state import MemberState, Result
from broker_server.strategies.planner import Phase, Round
from edge_runtime import __version__
from edge_runtime.wire.energy import Energy
from edge_runtime.wire.messages import Evaluation, Update
from edge_runtime.wire.names import Tasks

KEPT_ROUNDS = 1000
SHOWN_WAITING = 10
JUDGED_ROUNDS = 5
"""The closed rounds by which the time of those to come is estimated."""


class History:
    """What closed rounds have left."""

    def __init__(self) -> None:
        self.rounds: deque[shown.RoundView] = deque(maxlen=KEPT_ROUNDS)
        self.results: dict[str, Result] = {}
        """The newest result of each device."""
        self.losses: Losses = {}

    def add(
        self, row: RoundRow, results: Mapping[str, Result], energy: Mapping[str, Energy] | None = None
    ) -> shown.RoundView:
        """Add a round that is closed, and return it. `energy` is what its devices have reported since, by name."""
        made = closed_round(row, results, energy or {})
        self.rounds.append(made)
        self.results.update(results)
        self.losses |= made.test_loss or made.val_loss or made.train_loss
        return made

    def mean_wall_s(self, phase: str) -> float | None:
        """Return the mean time of the last rounds of a phase; None before there is one."""
        walls = [each.wall_s for each in self.rounds if each.phase == phase][-JUDGED_ROUNDS:]
        return sum(walls) / len(walls) if walls else None


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """What is there now. `phases` are those that have begun, each with the number of its first round."""

    federation: str
    coordinator: Coordinator
    is_running: bool = True
    has_bundle: bool = True
    tasks: Tasks = ()
    phases: Sequence[tuple[Phase, int]] = ()
    round: Round | None = None
    """The round that is open or comes next."""
    begun_at_s: float | None = None
    """When that round began."""
    building: bool = False
    """True while the round waits for ONNX Runtime training artifacts."""
    finished: str | None = None
    failed: bool = False
    dropped: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    refusal_of: Callable[[str], str] = lambda _: ""
    """Why a device was not let in when it last tried; empty if it was."""


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """What the server knows of a device that was ever enrolled."""

    is_readable: bool = True
    is_revoked: bool = False


def status(facts: ServerFacts, history: History, *, now_s: float, at_s: float) -> shown.FederationView:
    """Return how the federation stands."""
    coordinator, split = facts.coordinator, next((p.split for p, _ in facts.phases if p.split is not None), None)
    state = _state(facts)
    current = _open(facts, now_s, at_s)
    return shown.FederationView(
        at_s=at_s,
        federation=facts.federation,
        version=__version__,
        state=state,
        says=_sentence(facts, state, current),
        is_paused=coordinator.is_paused,
        tasks=facts.tasks,
        open=current,
        phases=tuple(_phase(facts, phase, first) for phase, first in facts.phases),
        phase_left_s=_phase_left_s(facts, history, current),
        split=None if split is None else shown.SplitView(groups=split.groups, score=split.score),
        known=len(coordinator.devices),
        online=len(coordinator.online),
        needed=coordinator.needed,
        losses=dict(sorted(history.losses.items())),
        dropped=dict(sorted(facts.dropped.items())),
        refused=dict(sorted(facts.refused.items())),
    )


def fleet(
    facts: ServerFacts,
    history: History,
    enrolled: Mapping[str, Enrolled],
    *,
    after: str = "",
    most: int = shown.MAX_ROWS,
) -> shown.FleetView:
    """Return the devices that are known or enrolled, in order, from the one after `after`."""
    names = sorted({*facts.coordinator.devices, *enrolled})
    doing = {name: _doing(facts.coordinator, name, enrolled.get(name, Enrolled())) for name in names}
    wanted = [name for name in names if name > after][:most]
    return shown.FleetView(
        rows=tuple(_device(facts, name, doing[name], history.results.get(name)) for name in wanted),
        total=len(names),
        doing=dict(sorted(Counter(doing.values()).items())),
    )


def rounds(history: History, *, after: int = -1, most: int = shown.MAX_ROWS) -> shown.Rounds:
    """Return the newest closed rounds after number `after`, in order."""
    wanted = [each for each in history.rounds if each.number > after]
    return shown.Rounds(rows=tuple(wanted[-most:]), total=len(history.rounds))


def events(notes: Sequence[tuple[int, float, str]]) -> shown.Events:
    """Return notes of the journal as (number, seconds since the epoch, text)."""
    return shown.Events(rows=tuple(shown.Event(number=number, at_s=at_s, text=text) for number, at_s, text in notes))


def affinity(found: Affinities) -> shown.AffinityView:
    """Return affinities as they are sent."""
    return shown.AffinityView(
        tasks=found.tasks,
        values=_square(found.values),
        errors=_square(found.standard_error),
        counts=tuple(tuple(int(each) for each in row) for row in found.counts),
    )


def _square(array: Array) -> shown.Square:
    return tuple(tuple(float(each) if math.isfinite(each) else None for each in row) for row in array)


def _state(facts: ServerFacts) -> FederationState:
    current = facts.coordinator.open
    if not facts.is_running:
        return "not running"
    if facts.finished is not None:
        return "failed" if facts.failed else "finished"
    if not facts.has_bundle:
        return "no bundle"
    if facts.building:
        return "preparing"
    if current is not None and current.members:
        return "training" if current.plan.work == "train" else "measuring"
    return "paused" if facts.coordinator.is_paused else "waiting"


def _sentence(facts: ServerFacts, state: FederationState, current: shown.RoundNow | None) -> str:  # noqa: PLR0911
    online, needed = len(facts.coordinator.online), facts.coordinator.needed
    named = f"round {facts.round.number}" if facts.round is not None else "the next round"
    match state:
        case "finished" | "failed":
            return str(facts.finished)
        case "no bundle":
            return "there is no bundle, so no rounds run: make one with `python -m export compile`"
        case "preparing":
            return f"{named} waits for its ONNX Runtime training artifacts"
        case "not running":
            return "no server is running; this is what its journal has"
        case "paused":
            return f"paused: {named} begins after `resume`"
        case "waiting" if online < needed:
            return f"{named} waits for devices: {online} online, it needs {needed}"
        case "waiting":
            tasks = "its tasks" if facts.round is None else ", ".join(facts.round.tasks)
            return f"{named} waits for a device with labels of {tasks}: none of the {online} online can do its work"
    assert current is not None
    then = "; then it pauses" if facts.coordinator.is_paused else ""
    doing = "training" if current.work == "train" else "measuring"
    return (
        f"round {current.number}, {current.phase} {current.index + 1} of {current.rounds}: {doing} {current.group}, "
        f"{current.results} of {current.members} results{then}"
    )


def _open(facts: ServerFacts, now_s: float, at_s: float) -> shown.RoundNow | None:
    current = facts.coordinator.open
    if current is None:
        return None
    states = Counter(current.members.values())
    unanswered = current.unanswered
    return shown.RoundNow(
        number=current.round.number,
        phase=current.round.phase,
        work=current.round.work,
        group=current.round.group,
        index=current.round.index,
        rounds=current.round.rounds,
        members=len(current.members),
        results=len(current.results),
        quorum=current.quorum,
        refused=states["refused"],
        rejected=states["rejected"],
        begun_at_s=facts.begun_at_s,
        age_s=None if facts.begun_at_s is None else max(0.0, at_s - facts.begun_at_s),
        deadline_in_s=max(0.0, current.deadline_s - now_s) if current.members else None,
        waiting_for=tuple(_waiting(facts.coordinator, name) for name in unanswered[:SHOWN_WAITING]),
        unanswered=len(unanswered),
    )


def _waiting(coordinator: Coordinator, name: str) -> shown.Waiting:
    doing = _doing(coordinator, name, Enrolled())
    progress = coordinator.devices.get(name, DeviceState()).progress
    if progress is None or doing != "working":
        return shown.Waiting(device=name, doing=doing)
    return shown.Waiting(device=name, doing=doing, stage=progress.stage, done=progress.done, total=progress.total)


def _phase(facts: ServerFacts, phase: Phase, first: int) -> shown.PhaseView:
    later = [begin for _, begin in facts.phases if begin > first]
    until = min(later) if later else None if facts.round is None else facts.round.number
    done = phase.steps if until is None else min(phase.steps, until - first)
    return shown.PhaseView(
        name=phase.name,
        work=phase.work,
        groups=phase.groups,
        start=phase.start,
        done=done,
        rounds=done if later else phase.steps,  # a strategy may have ended it before its last round
    )


def _phase_left_s(facts: ServerFacts, history: History, current: shown.RoundNow | None) -> float | None:
    if facts.round is None or not facts.phases:
        return None
    phase, first = facts.phases[-1]
    mean_s = history.mean_wall_s(phase.name)
    if mean_s is None:
        return None
    left = phase.steps - (facts.round.number - first)
    gone_s = 0.0 if current is None or current.age_s is None else min(current.age_s, mean_s)
    return left * mean_s - gone_s


_AT_WORK: Mapping[MemberState, DeviceDoing] = {
    "asked": "asked",
    "fetching": "sending",
    "counted": "done",
    "refused": "refused",
    "rejected": "rejected",
}


def _doing(coordinator: Coordinator, name: str, enrolled: Enrolled) -> DeviceDoing:
    known = coordinator.devices.get(name)
    if not enrolled.is_readable or enrolled.is_revoked:
        return "revoked" if enrolled.is_readable else "damaged"
    if known is None:
        return "new"
    if not known.ready:
        return "joining" if known.online else "offline"
    member = coordinator.open.members.get(name) if coordinator.open is not None else None
    if member is None:
        return "idle"
    return "working" if member == "asked" and known.progress is not None else _AT_WORK[member]


def _device(facts: ServerFacts, name: str, doing: DeviceDoing, result: Result | None) -> shown.DeviceView:
    known = facts.coordinator.devices.get(name, DeviceState())
    hello, progress = known.hello, known.progress if doing == "working" else None
    energy = None if result is None else result.energy
    memory = result.memory if isinstance(result, Update) else None
    return shown.DeviceView(
        name=name,
        doing=doing,
        why="; ".join(filter(None, (_why(facts, name, doing, known), facts.refusal_of(name)))),
        stage=None if progress is None else progress.stage,
        done=None if progress is None else progress.done,
        total=None if progress is None else progress.total,
        software=None if hello is None else hello.software,
        engine=None if hello is None else hello.engine,
        platform=None if hello is None else hello.platform,
        tasks=() if hello is None else hello.tasks,
        examples=None if hello is None else hello.examples.get("train"),
        memory_bytes=None if hello is None else hello.memory_bytes,
        round=None if result is None else result.round,
        work_s=None if result is None else result.wall_s,
        peak_bytes=None if result is None else result.peak_rss_bytes,
        budget_bytes=None if memory is None else memory.budget_bytes,
        energy_j=None if energy is None else energy.energy_j,
        is_estimated=energy is not None and energy.estimated,
        temperature_c=None if energy is None else energy.temperature_max_c,
        throttled=None if energy is None else energy.throttled,
    )


_WHY: Mapping[DeviceDoing, str] = {
    "damaged": "its file in devices/ cannot be read: `python -m broker_server enrol {name}` makes it again",
    "revoked": "it was revoked: `python -m broker_server enrol {name}` lets it in again",
    "new": "it has not been heard of: start its agent with the file that `enrol` has written",
}


def _why(facts: ServerFacts, name: str, doing: DeviceDoing, known: DeviceState) -> str:
    current = facts.coordinator.open
    match doing:
        case "offline":
            is_awaited = facts.coordinator.is_asked(name)
            then = "the round waits for it" if is_awaited else "it goes on when it comes"
            return f"it is off, or its network is; {then}"
        case "refused" | "rejected":
            return known.fault
        case "idle" if current is not None and current.members:
            is_able = known.hello is None or not set(known.hello.tasks).isdisjoint(current.plan.tasks)
            return "it is not in this round" if is_able else "it has labels of none of this round's tasks"
        case _:
            return _WHY.get(doing, "").format(name=name)


def closed_round(row: RoundRow, results: Mapping[str, Result], energy: Mapping[str, Energy]) -> shown.RoundView:
    """Return a round that is closed. `energy` is what its devices have reported since their results, by name."""
    played = row.round
    updates = [each for each in results.values() if isinstance(each, Update)]
    evaluations = [each for each in results.values() if isinstance(each, Evaluation)]
    spent = total([energy.get(name, results[name].energy if name in results else None) for name in row.members])
    validated = [(each.val_loss, each.examples) for each in updates if each.val_loss is not None]
    return shown.RoundView(
        number=played.number,
        phase=played.phase,
        work=played.work,
        group=played.group,
        index=played.index,
        rounds=played.rounds,
        begun_at_s=row.started_s,
        wall_s=(row.closed_s or row.started_s) - row.started_s,
        members=len(row.members),
        results=len(results),
        train_loss=weighted_losses((each.train_loss, each.examples) for each in updates),
        val_loss=weighted_losses(validated) or None,
        test_loss=weighted_losses((each.loss, each.examples) for each in evaluations) or None,
        bytes_up=row.bytes_up,
        bytes_down=row.bytes_down,
        energy_j=spent.energy_j,
        is_estimated=spent.estimated,
        is_partial=spent.partial,
    )
