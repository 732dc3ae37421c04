import samples

from broker_server.grouping.search import TaskSplit
from broker_server.report.choice import beside, choice, device_gate
from broker_server.strategies.planner import Phase

TASKS = ("a", "b", "c")
LOSSES = {
    ("a",): {"a": 1.0},
    ("b",): {"b": 1.0},
    ("c",): {"c": 1.0},
    ("a", "b"): {"a": 0.5, "b": 0.5},
    ("a", "c"): {"a": 2.0, "c": 2.0},
    ("b", "c"): {"b": 1.0, "c": 1.0},
    ("a", "b", "c"): {"a": 2.0, "b": 2.0, "c": 2.0},
}
SPLIT = TaskSplit(
    groups=(("b", "c"), ("a",)), score=0.0, mode="exactly", group_scores=tuple(float(mask**2) for mask in range(8))
)


def rounds(phase, losses=LOSSES, devices=("x", "y"), **more):
    """The rounds of a phase that measured some groups; the second device loses a hundredth more."""
    planned = Phase(name=phase, work="evaluate", groups=tuple(losses), start="merge", data_split="val")
    for number, (group, found) in enumerate(losses.items()):
        results = {
            device: samples.evaluation(
                loss={task: loss + place / 100 for task, loss in found.items()}, examples=dict.fromkeys(group, 10)
            )
            for place, device in enumerate(devices)
        }
        yield planned.round_at(number, 0), results | more


def test_choice_among_groups_that_were_tried():
    found = choice(SPLIT, TASKS, beside(rounds("tried")))
    assert (found.known, found.rank) == (3, 2)
    assert found.correlation is not None


def test_choice_takes_the_survey_of_all_groups_before_trials():
    dear = {group: dict.fromkeys(found, 9.0) for group, found in LOSSES.items()}
    both = beside([*rounds("tried", dear), *rounds("end", dear), *rounds("survey")])
    assert choice(SPLIT, TASKS, both).best < 3.0
    assert choice(TaskSplit(groups=SPLIT.groups, score=0.0, mode="exactly"), TASKS, both).correlation is None


def test_choice_is_unknown_where_no_other_division_was_measured():
    assert choice(SPLIT, TASKS, beside(rounds("end"))) is None
    few = {group: LOSSES[group] for group in (("a",), ("b", "c"))}
    assert choice(SPLIT, TASKS, beside(rounds("tried", few))) is None
    others = {group: LOSSES[group] for group in (("a",), ("b",), ("c",), ("a", "b"), ("a", "c"))}
    assert choice(SPLIT, TASKS, beside(rounds("tried", others))) is None


def test_device_gate_has_devices_in_place_of_seeds():
    found = device_gate(2, TASKS, beside(rounds("tried", z=samples.update())))
    assert [each.met for each in found.conditions] == [True, None, True]
    assert "constant predictions were not measured" in found.sentence


def test_device_gate_of_nothing_measured():
    found = device_gate(2, TASKS, beside(rounds("end")))
    assert [each.met for each in found.conditions] == [None, None, None]
    assert "over two devices or more" in found.sentence
    halves = {**LOSSES, ("a", "b", "c"): {"a": 1.0}}
    assert device_gate(2, TASKS, beside(rounds("tried", halves))).conditions[0].met is None
