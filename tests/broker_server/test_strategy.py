import msgspec
import numpy as np
import pytest

from broker_server.affinity import Affinities
from broker_server.split import SplitImpossible
from broker_server.strategy import Mas, Phase, assignment, learning_rate, source_group

TASKS = ("a", "b", "c")
VALUES = np.array([[0, 5.0, 0], [5.0, 0, 0], [0, 0, 0]])


def affinities(counts=1):
    ones = np.ones((3, 3))
    return Affinities(tasks=TASKS, values=VALUES, counts=np.full((3, 3), counts), variance=ones, standard_error=ones)


def mas(**changes):
    settings = {"merged_rounds": 4, "split_rounds": 2, "probe_rounds": 1, "groups": 2} | changes
    return Mas(TASKS, **settings)


def walk(strategy, measured):
    done = []
    while phase := strategy.next(done, measured):
        done.append(phase)
    return done


def test_mas_phases_in_order():
    done = walk(mas(), affinities())
    assert [(p.name, p.work, p.start, p.steps) for p in done] == [
        ("before", "evaluate", None, 1),
        ("merge", "train", None, 4),
        ("merged", "evaluate", "merge", 1),
        ("split", "train", "merge", 4),
        ("end", "evaluate", "split", 2),
    ]
    assert done[3].groups == done[4].groups == (("a", "b"), ("c",))
    assert done[3].split.mode == "exactly"


@pytest.mark.parametrize("mode", ["exactly", "at_most", "overlap"])
def test_mas_with_one_group_ends_with_the_merged_model(mode):
    done = walk(mas(groups=1, mode=mode), affinities(counts=0))
    assert [p.name for p in done] == ["before", "merge", "merged"]


def test_mas_without_affinities_cannot_split():
    with pytest.raises(SplitImpossible, match="no device measured"):
        walk(mas(), affinities(counts=0))


def test_mas_more_groups_than_tasks():
    with pytest.raises(SplitImpossible):
        mas(groups=4)
    assert len(walk(mas(groups=4, mode="at_most"), affinities())[3].groups) <= 3


def test_mas_probes_in_a_window_of_rounds():
    merge = walk(mas(probe_from=1, probe_rounds=2), affinities())[1]
    assert [assignment(merge, step, 0).probe for step in range(4)] == [False, True, True, False]


def test_mas_phase_survives_json():
    for phase in walk(mas(), affinities()):
        assert msgspec.json.decode(msgspec.json.encode(phase), type=Phase) == phase


def test_assignment_walks_groups_one_after_another():
    phase = Phase(name="split", work="train", groups=(("a", "b"), ("c",)), start="merge", rounds=2, probe_rounds=1)
    rounds = [assignment(phase, step, 7) for step in range(phase.steps)]
    assert [(r.round, r.group, r.index, r.probe) for r in rounds] == [
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
    assert learning_rate(0.1, 0, 10) == 0.1
    assert learning_rate(0.1, 5, 10) == pytest.approx(0.1 * 0.5**0.9)
    assert all(learning_rate(0.1, r, 10) > learning_rate(0.1, r + 1, 10) for r in range(9))
