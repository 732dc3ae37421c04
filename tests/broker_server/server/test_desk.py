import itertools
import json

import pytest

pytest.importorskip("jwt")
pytest.importorskip("rich")

from broker_server.operator import messages as shown
from broker_server.server import desk as desks
from broker_server.server.audit import AUDIT, AuditLog
from broker_server.server.desk import Desk, facts_of_journal, read_history
from broker_server.server.enrolments import Enrolments

pytestmark = pytest.mark.workstation


def seated(world, *, has_loop=True):
    """A desk at a world's server."""
    state = world.config.state
    desk = Desk(
        world.dispatcher, federation="home", enrolments=Enrolments(state), audit=AuditLog(state), at=lambda: 1000.0
    )
    if has_loop:
        desk.loop = world.loop
        world.watcher.on_round_closed = desk.on_round_closed
    return desk


def act(desk, what, device=None):
    return desk.answer(shown.Act(act=what, device=device))


def audited(world):
    return [json.loads(line)["what"] for line in (world.config.state / AUDIT).read_text().splitlines()]


def test_desk_pauses_between_rounds_and_resumes(world):
    world = world()
    desk = seated(world)
    world.device("x").start()
    world.device("y").start()
    world.until(lambda: world.loop.round.number == 1 and world.loop.coordinator.open.members)
    answer = act(desk, "pause")
    assert answer.says == "round 1 goes on to its end; after it the federation is paused until `resume`"
    assert isinstance(act(desk, "pause"), shown.NotDone)
    world.until(lambda: world.loop.round.number == 2)
    until_s = world.clock.now_s + 300
    world.until(lambda: world.clock.now_s > until_s)
    assert world.loop.round.number == 2
    status = desk.answer(shown.AskStatus())
    assert (status.state, status.is_paused, status.at_s) == ("paused", True, 1000.0)
    assert act(desk, "resume") == shown.Done(says="resumed")
    assert isinstance(act(desk, "resume"), shown.NotDone)
    world.until_finished()
    assert audited(world) == ["paused", "resumed"]
    notes = [each.text for each in desk.answer(shown.AskEvents(most=1000)).rows]
    assert "the operator has paused the federation" in notes
    assert desk.answer(shown.AskStatus()).state == "finished"
    assert isinstance(act(desk, "pause"), shown.NotDone), "it has ended"


def test_desk_pause_holds_over_a_restart(world):
    world = world()
    assert act(seated(world), "pause").says == "paused: no round begins before `resume`"
    world.device("x")
    world.device("y")
    world.crash()
    desk = seated(world)
    until_s = world.clock.now_s + 60
    world.until(lambda: world.clock.now_s > until_s)
    assert world.loop.round.number == 0
    assert desk.answer(shown.AskStatus()).says == "paused: round 0 begins after `resume`"
    act(desk, "resume")
    world.crash()
    seated(world)
    world.until_finished()


def test_desk_drops_a_device_which_no_restart_asks_again(world):
    world = world(round_deadline_s=1000.0)
    desk = seated(world)
    x, y = world.device("x"), world.device("y")
    y.silent = True
    x.start()
    y.start()
    world.until(lambda: world.loop.coordinator.open.unanswered == ("y",))
    waiting = desk.answer(shown.AskStatus()).open.waiting_for
    assert [each.device for each in waiting] == ["y"]
    assert isinstance(act(desk, "drop", "z"), shown.NotDone)
    assert isinstance(act(desk, "drop", "x"), shown.NotDone), "it has answered"
    assert isinstance(act(desk, "drop"), shown.NotDone)
    assert act(desk, "drop", "y").says.startswith("round 0 goes on without y")
    world.until(lambda: world.loop.round.number == 1)
    assert world.journal.row(0).members == ("x",)
    assert audited(world) == ["dropped"]


def test_desk_shows_rounds_and_devices_as_they_close_and_after_a_restart(world, make_energy, monkeypatch):
    world = world()
    desk = seated(world)
    Enrolments(world.config.state).enrol("never-seen")
    world.device("x", energy=make_energy(5.0)).start()
    world.device("y").start()
    world.until_finished()
    rounds = desk.answer(shown.AskRounds(most=1000))
    assert [each.number for each in rounds.rows] == list(range(10))
    assert rounds.rows[1].train_loss == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert (rounds.rows[1].energy_j, rounds.rows[1].is_partial) == (5.0, True)
    fleet = desk.answer(shown.AskFleet())
    assert [(each.name, each.doing, each.round) for each in fleet.rows] == [
        ("never-seen", "new", None),
        ("x", "idle", 9),
        ("y", "idle", 9),
    ]
    status = desk.answer(shown.AskStatus())
    assert [(each.name, each.done, each.rounds) for each in status.phases][-2:] == [("split", 4, 4), ("end", 2, 2)]
    assert read_history(world.journal).rounds == desk.history.rounds
    assert read_history(world.journal).losses == desk.history.losses
    monkeypatch.setattr(desks, "READ_RESULTS", 5)
    assert [each.number for each in read_history(world.journal).rounds] == [8, 9]


def test_desk_before_there_is_a_bundle(world):
    world = world()
    desk = seated(world, has_loop=False)
    assert desk.answer(shown.AskStatus()).state == "no bundle"
    assert not desk.is_stopping
    assert isinstance(act(desk, "stop"), shown.Done)
    assert desk.is_stopping
    assert audited(world) == ["stopping"]
    desk.note("nothing")
    desk.refresh(world.loop.coordinator, None)


def test_desk_shows_affinities_as_they_are_measured(world):
    world = world()
    assert seated(world, has_loop=False).answer(shown.AskAffinity()).tasks == ()
    desk = seated(world)
    before = desk.answer(shown.AskAffinity())
    assert before.values == ((None,) * 3,) * 3
    world.device("x").start()
    world.device("y").start()
    world.until_finished()
    after = desk.answer(shown.AskAffinity())
    assert (after.tasks, after.values[0], after.counts[0]) == (("a", "b", "c"), (0.0, 5.0, -1.0), (6, 6, 6))
    assert after.errors[0] == (0.0, 0.0, 0.0)
    assert desk.answer(shown.AskAffinity()) is after, "it is worked out once"


def test_journal_alone_tells_where_the_federation_stands(world):
    from broker_server.rounds.coordinator import Coordinator
    from broker_server.rounds.rules import Rules

    world = world()
    facts = facts_of_journal(world.journal, Coordinator(Rules()), "home", ())
    assert facts.round.number == 0
    world.device("x").start()
    world.device("y").start()
    world.until(lambda: world.loop.round.number == 2)
    act(seated(world), "pause")
    facts = facts_of_journal(world.journal, Coordinator(Rules()), "home", ())
    assert (facts.round.number, facts.round.phase, facts.round.index) == (2, "merge", 1)
    assert facts.coordinator.is_paused
    act(seated(world), "resume")
    world.until_finished()
    assert facts_of_journal(world.journal, Coordinator(Rules()), "home", ()).round is None


def test_desk_publishes_metrics_once_a_second(world):
    prometheus = pytest.importorskip("prometheus_client.core")
    from broker_server.operator.metrics import Metrics

    world = world()
    state = world.config.state
    published = []
    metrics = Metrics()
    publish = metrics.publish
    metrics.publish = lambda *views: (published.append(world.clock.now_s), publish(*views))
    desk = Desk(
        world.dispatcher, federation="home", enrolments=Enrolments(state), audit=AuditLog(state), metrics=metrics
    )
    desk.loop = world.loop
    world.watcher.on_round_closed, world.watcher.refresh = desk.on_round_closed, desk.refresh
    world.device("x").start()
    world.device("y").start()
    world.until_finished()
    until_s = world.clock.now_s + 5
    world.until(lambda: world.clock.now_s > until_s)
    assert min(later - earlier for earlier, later in itertools.pairwise(published)) >= 1.0
    found = {sample.name: sample.value for family in metrics.collect() for sample in family.samples}
    assert found["mas_edge_devices_online"] == 2
    assert found["mas_edge_rounds_closed_total"] > 0
    assert all(isinstance(family, prometheus.Metric) for family in metrics.collect())
