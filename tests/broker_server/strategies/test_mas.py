import msgspec
import numpy as np
import pytest

from broker_server.grouping.search import SplitImpossible
from broker_server.strategies.mas import Mas, grouping_search
from broker_server.strategies.planner import Phase, learning_rate

TASKS = ("a", "b", "c")


def mas(groups=2, mode="exactly", method="best", **changes):
    find = grouping_search(method, groups, mode, seed=0, head_cost=0.25)
    settings = {"merged_rounds": 4, "split_rounds": 2, "probe_rounds": 1, "groups": groups, "mode": mode, "find": find}
    return Mas(TASKS, **(settings | changes))


def test_mas_phases_in_order(measured, walk):
    done = walk(mas(), measured())
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
def test_mas_with_one_group_ends_with_the_merged_model(mode, measured, walk):
    done = walk(mas(groups=1, mode=mode), measured(counts=0))
    assert [p.name for p in done] == ["before", "merge", "merged"]


def test_mas_without_affinities_cannot_split(measured, walk):
    with pytest.raises(SplitImpossible, match="no device measured"):
        walk(mas(), measured(counts=0))


def test_mas_more_groups_than_tasks(measured, walk):
    with pytest.raises(SplitImpossible):
        mas(groups=4)
    assert len(walk(mas(groups=4, mode="at_most"), measured())[3].groups) <= 3


def test_mas_probes_in_a_window_of_rounds(measured, walk):
    merge = walk(mas(probe_from=1, probe_rounds=2), measured())[1]
    assert [merge.round_at(step, 0).probe for step in range(4)] == [False, True, True, False]


def test_mas_phases_survive_json(measured, walk):
    for phase in walk(mas(), measured()):
        assert msgspec.json.decode(msgspec.json.encode(phase), type=Phase) == phase


def test_mas_from_scratch_trains_the_groups_for_all_rounds(measured, walk):
    split = walk(mas(start="scratch"), measured())[3]
    assert (split.start, split.rounds, split.rounds_before) == (None, 6, 0)


def test_mas_that_continues_the_schedule_counts_the_merged_rounds(measured, walk):
    _, merge, _, split, _ = walk(mas(schedule="continue"), measured(rounds={"merge": 4}))
    assert (split.start, split.rounds, split.rounds_before) == ("merge", 2, 4)
    rates = [learning_rate(0.1, r, merge) for r in range(4)] + [learning_rate(0.1, r, split) for r in range(2)]
    assert rates == [0.1 * (1 - r / 6) ** 0.9 for r in range(6)]


def test_mas_splits_when_it_is_sure_and_gives_the_rest_to_the_groups(measured, ledger):
    strategy = mas(confidence=0.9, confidence_rounds=2)
    merge = strategy.next([strategy.next([], measured())], measured())
    assert merge.open_ended
    assert not strategy.may_end(merge, measured())
    assert not strategy.may_end(merge, measured(ledger=ledger(1)))
    assert strategy.may_end(merge, measured(ledger=ledger(2)))
    before = Phase(name="before", work="evaluate", groups=(TASKS,), start=None)
    merged = Phase(name="merged", work="evaluate", groups=(TASKS,), start="merge")
    split = strategy.next([before, merge, merged], measured(rounds={"merge": 2}))
    assert split.rounds == 4
    assert not strategy.may_end(split, measured(ledger=ledger(2)))


def test_finder_makes_other_groups_by_other_choices(measured, walk):
    best = walk(mas(), measured())[3].split
    worst = walk(mas(method="worst"), measured())[3].split
    assert worst.score < best.score
    assert walk(mas(method="hierarchical"), measured())[3].groups == best.groups
    assert walk(mas(method="hierarchical", mode="at_most"), measured())[3].groups == best.groups
    drawn = walk(mas(method="random"), measured())[3].split
    assert worst.score <= drawn.score <= best.score
    assert len(drawn.groups) == 2


def test_finder_takes_the_number_of_groups_that_is_worth_it(measured, walk):
    assert walk(mas(method="training_cost", groups=3), measured())[3].groups == (("a", "b"), ("c",))
    alike = measured(values=np.ones((3, 3)))
    assert walk(mas(method="training_cost", groups=3), alike)[3].groups == (TASKS,)
