import pytest

from broker_server.strategies.planner import Phase, learning_rate, serving, source_group


def phase(**changes):
    settings = {"name": "split", "work": "train", "groups": (("a", "b"), ("c",)), "start": "merge", "rounds": 10}
    return Phase(**(settings | changes))


def test_phase_rounds_walk_groups_one_after_another():
    some = phase(rounds=2, probe_rounds=1)
    rounds = [some.round_at(step, 7) for step in range(some.steps)]
    assert [(r.number, r.group, r.index, r.probe) for r in rounds] == [
        (7, "a+b", 0, True),
        (8, "a+b", 1, False),
        (9, "c", 0, True),
        (10, "c", 1, False),
    ]


def test_source_group_is_the_smallest_that_holds_all():
    assert source_group(("a",), [("a", "b", "c"), ("a", "b")]) == ("a", "b")
    with pytest.raises(ValueError, match="no earlier group"):
        source_group(("a", "z"), [("a", "b")])


def test_learning_rate_schedule():
    assert learning_rate(0.1, 0, phase()) == 0.1
    assert learning_rate(0.1, 5, phase()) == pytest.approx(0.1 * 0.5**0.9)
    assert all(learning_rate(0.1, r, phase()) > learning_rate(0.1, r + 1, phase()) for r in range(9))


def test_learning_rate_goes_on_from_rounds_before():
    going_on = phase(rounds=4, rounds_before=6)
    assert [learning_rate(0.1, r, going_on) for r in range(4)] == [learning_rate(0.1, 6 + r, phase()) for r in range(4)]


def test_serving_takes_the_better_group_and_leaves_out_what_serves_nothing():
    better = {(("a", "b"), "b"): 1.0, (("b", "c"), "b"): 2.0}
    found = serving([("a", "b"), ("b", "c"), ("b",)], lambda group, task: better.get((group, task), 0.0))
    assert found == ((("a",), ("a", "b")), (("b", "c"), ("b", "c")))


def test_serving_of_equals_takes_the_first():
    assert serving([("a", "b"), ("a",)], lambda *_: 0.0) == ((("a", "b"), ("a", "b")),)
