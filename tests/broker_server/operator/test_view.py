import msgspec
import pytest
import samples

from broker_server.grouping.search import TaskSplit
from broker_server.operator import messages as shown
from broker_server.operator import view
from broker_server.operator.view import Enrolled, History, ServerFacts
from broker_server.rounds.coordinator import Coordinator
from broker_server.rounds.journal import RoundRow
from broker_server.rounds.rules import Rules
from broker_server.strategies.planner import Phase
from edge_runtime.wire.messages import MemoryUse, Progress, Refusal

TASKS = ("a", "b")
MERGE = Phase(name="merge", work="train", groups=(TASKS,), start=None, rounds=4)
END = Phase(name="end", work="evaluate", groups=(("a",), ("b",)), start="merge", data_split="test")


def coordinator(*names, phase=MERGE, step=0, **rules):
    """A coordinator with these devices online and a round of a phase offered."""
    made = Coordinator(Rules(**({"min_devices": 2, "deadline_s": 60.0} | rules)))
    for name in names:
        made.on_hello(name, samples.hello(tasks=TASKS, examples={"train": 5}), 0.0)
    planned = phase.round_at(step, 0)
    about = {"tasks": planned.tasks, "phase": phase.name, "work": phase.work}
    made.offer(planned, samples.plan(planned.number, **about), 0.0)
    return made


def facts(made, *, phase=MERGE, **changes):
    values = {"federation": "home", "tasks": TASKS, "phases": ((phase, 0),)}
    if made.open is not None:
        values["round"] = made.open.round
    return ServerFacts(coordinator=made, **(values | changes))


def status(made, history=None, **changes):
    return view.status(facts(made, **changes), history or History(), now_s=10.0, at_s=1000.0)


def row(number=0, phase=MERGE, *, members=("x", "y"), started_s=100.0, closed_s=130.0):
    return RoundRow(
        round=phase.round_at(number, 0),
        members=members,
        quorum=1,
        started_s=started_s,
        closed_s=closed_s,
        bytes_up=10,
        bytes_down=None,
    )


def devices(made, history=None, enrolled=None, **changes):
    found = view.fleet(facts(made, **changes), history or History(), enrolled or {})
    return {each.name: each for each in found.rows}


def test_status_while_devices_are_waited_for():
    found = status(coordinator("x"))
    assert (found.state, found.online, found.known, found.needed) == ("waiting", 1, 1, 2)
    assert found.says == "round 0 waits for devices: 1 online, it needs 2"
    assert found.open.members == 0
    assert found.open.deadline_in_s is None
    assert found.phase_left_s is None
    assert status(Coordinator(Rules()), phases=()).says == "the next round waits for devices: 0 online, it needs 2"


def test_status_of_a_round():
    made = coordinator("x", "y", "z")
    made.on_progress("y", Progress(round=0, stage="train", done=3, total=9))
    made.on_refusal("z", Refusal(round=0, group="a+b", reason="heat", detail="81 C"), 1.0)
    made.on_update("x", samples.update(0, group="a+b", weights=samples.blob("b"), examples={"a": 5, "b": 5}), 2.0)
    made.on_update_received("x", 2.0)
    found = status(made, begun_at_s=990.0)
    assert found.state == "training"
    assert found.says == "round 0, merge 1 of 4: training a+b, 1 of 3 results"
    current = found.open
    assert (current.members, current.results, current.refused, current.rejected, current.unanswered) == (3, 1, 1, 0, 1)
    assert (current.age_s, current.begun_at_s, current.deadline_in_s) == (10.0, 990.0, 50.0)
    (waiting,) = current.waiting_for
    assert (waiting.device, waiting.doing, waiting.stage, waiting.done, waiting.total) == (
        "y",
        "working",
        "train",
        3,
        9,
    )
    made.is_paused = True
    assert status(made).says.endswith("1 of 3 results; then it pauses")


def test_status_names_the_first_of_many_that_are_waited_for():
    made = coordinator(*(f"pi-{number:02}" for number in range(30)))
    made.on_status("pi-00", online=False, now_s=1.0)
    current = status(made).open
    assert (len(current.waiting_for), current.unanswered) == (10, 30)
    assert [each.doing for each in current.waiting_for[:2]] == ["offline", "asked"]


def test_status_of_a_measuring_round():
    made = coordinator("x", "y", phase=END)
    found = status(made, phase=END)
    assert found.state == "measuring"
    assert found.says == "round 0, end 1 of 1: measuring a, 0 of 2 results"


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({"finished": "all rounds are done"}, "finished", "all rounds are done"),
        ({"finished": "it cannot go on", "failed": True}, "failed", "it cannot go on"),
        ({"has_bundle": False}, "no bundle", "export compile"),
        ({"building": True}, "preparing", "round 0 waits for its ONNX Runtime training artifacts"),
        ({"is_running": False}, "not running", "no server is running"),
    ],
)
def test_status_beside_rounds(changes, state, words):
    found = status(coordinator("x"), **changes)
    assert found.state == state
    assert words in found.says


def test_status_while_paused():
    made = coordinator()
    made.is_paused = True
    assert status(made).state == "paused"
    assert status(made).says == "paused: round 0 begins after `resume`"


def test_status_where_nobody_can_do_the_work():
    made = Coordinator(Rules(min_devices=1))
    planned = MERGE.round_at(0, 0)
    made.offer(planned, samples.plan(0, tasks=TASKS), 0.0)
    made.on_hello("x", samples.hello(tasks=("c",)), 0.0)
    assert status(made).says == "round 0 waits for a device with labels of a, b: none of the 1 online can do its work"
    made.open = None
    assert "labels of its tasks" in status(made).says


def test_status_counts_rounds_of_phases_and_judges_the_time_left():
    history = History()
    for number in range(2):
        history.add(row(number), {})
    made = coordinator("x", "y", step=2)
    found = status(made, history, begun_at_s=980.0)
    assert [(each.name, each.done, each.rounds) for each in found.phases] == [("merge", 2, 4)]
    assert found.phase_left_s == pytest.approx(2 * 30.0 - 20.0)
    assert status(made, history, begun_at_s=0.0).phase_left_s == pytest.approx(30.0), (
        "a slow round is not counted twice"
    )
    assert status(coordinator("x", step=2), history).phase_left_s == pytest.approx(60.0)
    made.open = None
    assert status(made, history, round=MERGE.round_at(3, 0)).phase_left_s == pytest.approx(30.0)


def test_status_of_phases_that_are_over():
    made = Coordinator(Rules())
    split = TaskSplit(groups=(("a",), ("b",)), score=0.5, mode="exactly")
    early = msgspec.structs.replace(MERGE, rounds=9)  # ended before its last round
    later = msgspec.structs.replace(END, split=split)
    found = status(made, phases=((early, 0), (later, 4)), finished="all rounds are done")
    assert [(each.done, each.rounds) for each in found.phases] == [(4, 4), (2, 2)]
    assert found.split.groups == (("a",), ("b",))


def test_history_keeps_losses_of_what_was_measured_best():
    history = History()
    trained = samples.update(0, train_loss={"a": 2.0}, val_loss=None)
    history.add(row(0), {"x": trained})
    assert history.losses == {"a": 2.0}
    history.add(row(1), {"x": samples.update(1, train_loss={"a": 1.0}, val_loss={"a": 1.5})})
    assert history.losses == {"a": 1.5}
    history.add(row(0, END), {"x": samples.evaluation(0, loss={"a": 1.25})})
    assert status(Coordinator(Rules()), history).losses == {"a": 1.25}
    assert history.mean_wall_s("merge") == 30.0


def test_rounds_of_what_devices_have_reported(make_energy):
    history = History()
    results = {"x": samples.update(0, energy=make_energy(5.0)), "y": samples.update(0)}
    history.add(row(0, members=("x", "y", "z")), results, {"x": make_energy(7.0, estimated=True)})
    history.add(row(1, closed_s=None), {})
    found = view.rounds(history)
    assert found.total == 2
    first, second = found.rows
    assert (first.members, first.results, first.wall_s, first.energy_j) == (3, 2, 30.0, 7.0)
    assert (first.is_estimated, first.is_partial) == (True, True)
    assert (first.bytes_up, first.bytes_down) == (10, None)
    assert (second.train_loss, second.test_loss, second.wall_s) == ({}, None, 0.0)
    assert [each.number for each in view.rounds(history, after=0).rows] == [1]
    assert [each.number for each in view.rounds(history, most=1).rows] == [1]


def test_history_is_bounded():
    history = History()
    for number in range(view.KEPT_ROUNDS + 5):
        history.add(row(number % 4), {})
    assert len(history.rounds) == view.KEPT_ROUNDS


def test_fleet_says_what_each_does_and_why_not():
    made = coordinator("x", "y", "z", "o")
    made.on_progress("y", Progress(round=0, stage="train", done=3, total=9))
    made.on_refusal("z", Refusal(round=0, group="a+b", reason="heat", detail="81 C"), 1.0)
    made.on_status("o", online=False, now_s=1.0)
    made.on_status("j", online=True, now_s=1.0)
    made.on_hello("late", samples.hello(tasks=("b",)), 2.0)
    made.on_hello("other", samples.hello(tasks=("c",)), 2.0)
    made.on_status("gone", online=False, now_s=1.0)
    enrolled = {
        "d": Enrolled(is_readable=False),
        "n": Enrolled(),
        "r": Enrolled(is_revoked=True),
        "x": Enrolled(),
    }
    found = devices(made, enrolled=enrolled, refusal_of=lambda name: "refused: no token" if name in "nx" else "")
    assert {name: each.doing for name, each in found.items()} == {
        "d": "damaged", "gone": "offline", "j": "joining", "late": "idle", "n": "new", "o": "offline",
        "other": "idle", "r": "revoked", "x": "asked", "y": "working", "z": "refused",
    }  # fmt: skip
    assert (found["y"].stage, found["y"].done, found["y"].total) == ("train", 3, 9)
    assert (found["x"].why, found["y"].why) == ("refused: no token", "")
    assert found["z"].why == "heat, 81 C"
    assert "the round waits for it" in found["o"].why
    assert "it goes on when it comes" in found["gone"].why
    assert found["late"].why == "it is not in this round"
    assert found["other"].why == "it has labels of none of this round's tasks"
    assert "enrol d" in found["d"].why
    assert "enrol r" in found["r"].why
    assert "start its agent" in found["n"].why
    assert found["n"].why.endswith("; refused: no token")
    made.open = None
    assert devices(made)["late"].why == ""


def test_fleet_says_what_the_last_result_has_told(make_energy):
    made = coordinator("x", "y")
    memory = MemoryUse(budget_bytes=200, predicted_peak_bytes=150, micro_batch=1, kept=1, recomputed=0, frozen=0)
    energy = make_energy(5.0, estimated=True, temperature_max_c=61.0, throttled=("heat",))
    history = History()
    history.add(row(0), {"x": samples.update(0, memory=memory, peak_rss_bytes=180, energy=energy, wall_s=2.0)})
    history.add(row(0, END), {"y": samples.evaluation(1)})
    found = devices(made, history)
    x, y = found["x"], found["y"]
    assert (x.round, x.work_s, x.peak_bytes, x.budget_bytes) == (0, 2.0, 180, 200)
    assert (x.energy_j, x.is_estimated, x.temperature_c, x.throttled) == (5.0, True, 61.0, ("heat",))
    assert (y.round, y.budget_bytes, y.energy_j, y.is_estimated, y.throttled) == (1, None, None, False, None)
    assert (x.software, x.engine, x.platform, x.tasks, x.examples, x.memory_bytes) == ("s", "e", "p", TASKS, 5, None)


def test_fleet_in_pages():
    made = coordinator(*(f"pi-{number:02}" for number in range(25)))
    first = view.fleet(facts(made), History(), {}, most=10)
    second = view.fleet(facts(made), History(), {}, after=first.rows[-1].name, most=10)
    assert (first.total, len(first.rows), len(second.rows)) == (25, 10, 10)
    assert second.rows[0].name == "pi-10"
    assert first.doing == {"asked": 25}


def test_affinity_has_null_for_what_was_not_measured():
    from broker_server.grouping.affinity import AffinityLedger
    from edge_runtime.wire.messages import Affinity

    ledger = AffinityLedger(("a", "b", "c"))
    ledger.add(0, "x", Affinity(tasks=("a", "b"), count=2, mean=((1.0, 2.0), (3.0, 4.0)), variance=None))
    found = view.affinity(ledger.result())
    assert found.values == ((1.0, 2.0, None), (3.0, 4.0, None), (None,) * 3)
    assert found.errors[2] == (None,) * 3
    assert found.counts == ((2, 2, 0), (2, 2, 0), (0, 0, 0))


def test_events():
    (event,) = view.events([(3, 4.0, "text")]).rows
    assert (event.number, event.at_s, event.text) == (3, 4.0, "text")


def test_views_have_no_number_that_json_has_not():
    for made in (coordinator("x", "y"), coordinator("x")):
        found = status(made)
        assert shown.read_answer(shown.line(found)) == found
