import pytest

from broker_server.comparison.choices import Families, gate_of
from broker_server.simulation.summary import LastSplit

TASKS = ("a", "b", "c")
ALONE = {"a": {"a": 1.0}, "b": {"b": 1.0}, "c": {"c": 1.0}}
PAIRS = {"a+b": {"a": 0.5, "b": 0.5}, "a+c": {"a": 2.0, "c": 2.0}, "b+c": {"b": 1.0, "c": 1.0}}
AB, AC = (("a", "b"), ("c",)), (("a", "c"), ("b",))


@pytest.fixture
def split(summary):
    """Makes a run that has split into some groups."""

    def make(method, groups=AB, seed=0, losses=None, scores=None, origin="here", **others):
        found = losses or {"+".join(group): {**ALONE, **PAIRS}["+".join(group)] for group in groups}
        last = LastSplit(origin=origin, losses=found, group_scores=scores)
        return summary(method, seed, groups=groups, last_split=last, **others)

    return make


def test_choice_stands_among_all_divisions_where_every_group_was_trained(split):
    scores = tuple(float(mask == 0b011) for mask in range(8))
    runs = [split("MAS-2", AC, scores=scores), split("every", AB, losses={**ALONE, **PAIRS})]
    families = Families(runs, TASKS)
    found = families.choice({0: runs[0]})
    assert (found.by_seed[0].known, found.by_seed[0].rank) == (3, 3)
    assert found.regret.mean == pytest.approx(1.5)
    assert found.random_regret.mean == pytest.approx((2 + 5 + 3) / 3 / 2 - 1)
    assert found.gain.mean == pytest.approx((10 / 3 - 5) / (10 / 3 - 2))
    assert found.correlation.mean == pytest.approx(0.755, abs=0.01)
    assert families.choice({0: runs[1]}).regret.mean == 0.0


def test_choice_stands_among_what_other_methods_trained_from_the_same_weights(split):
    runs = [split("MAS-2", AC), split("random", AB), split("other", AB, origin="elsewhere"), split("late", AB, seed=1)]
    families = Families(runs, TASKS)
    assert families.choice({0: runs[0], 1: runs[3]}).by_seed.keys() == {0}
    assert families.choice({0: runs[2]}) is None
    assert families.choice({1: runs[3]}) is None


def test_choice_of_groups_that_overlap_or_were_not_measured_is_none(split, summary):
    overlapping = split("TAG", (("a", "b"), ("b", "c")))
    partial = split("MAS-2", AC, losses={"a+c": {"a": 1.0}, "b": {"b": 1.0}})
    families = Families([overlapping, partial, split("x", AB), split("y", AC, seed=3)], TASKS)
    assert families.choice({0: overlapping}) is None
    assert families.choice({0: partial}) is None
    assert families.choice({0: summary("one by one")}) is None
    assert families.choice({}) is None


def experiment(split, summary, merged=3.0, constant=4.0, seeds=(0, 1)):
    runs = {
        name: {seed: summary(name, seed, strategy, loss=loss + seed / 100, baseline=baseline) for seed in seeds}
        for name, strategy, loss, baseline in (
            ("constant", "all_in_one", constant, "constant"),
            ("all in one", "all_in_one", merged, None),
            ("one by one", "one_by_one", 2.0, None),
        )
    }
    runs |= {
        "MAS-2": {seed: split("MAS-2", AB, seed) for seed in seeds},
        "random": {seed: split("random", AC, seed) for seed in seeds},
        "unfinished": {},
    }
    return runs, Families([run for found in runs.values() for run in found.values()], TASKS)


def test_gate_is_open_where_tasks_conflict_were_learnt_and_divisions_differ(split, summary):
    runs, families = experiment(split, summary)
    found = gate_of(runs, ("depth", "edge_texture"), families)
    assert [each.met for each in found.conditions] == [True, True, True]


@pytest.mark.parametrize(
    ("change", "met"),
    [
        ({"merged": 2.0}, [False, True, True]),
        ({"constant": 2.1}, [True, False, True]),
        ({"seeds": (0,)}, [None, True, None]),
    ],
)
def test_gate_is_shut_by_what_is_not_met_or_not_measured(split, summary, change, met):
    runs, families = experiment(split, summary, **change)
    assert [each.met for each in gate_of(runs, ("depth", "edge_texture"), families).conditions] == met


def test_gate_without_baselines_has_measured_nothing(summary):
    runs = {"MAS-2": {0: summary("MAS-2", loss=None)}}
    found = gate_of(runs, ("depth",), Families([], ("depth",)))
    assert [each.met for each in found.conditions] == [None, None, None]
    blind = {"constant": {0: summary("constant", 0, "all_in_one", baseline="constant", test_loss={"depth": 0.0})}}
    alone = {"one by one": {0: summary("one by one", 0, "one_by_one", test_loss={"depth": 0.0})}}
    assert gate_of(blind | alone, ("depth",), Families([], ("depth",))).conditions[1].met is None


def test_spread_is_that_of_the_method_with_most_known_divisions(split):
    few = {seed: split("few", AC, seed, origin="x") for seed in (0, 1)}
    more = {seed: split("few", AB, seed, origin="x") for seed in (0, 1)}
    every = {seed: split("every", AB, seed, losses={**ALONE, **PAIRS}) for seed in (0, 1)}
    families = Families([run for runs in (few, more, every) for run in runs.values()], TASKS)
    assert families.spread({"few": few, "every": every}) == families.spread({"every": every, "few": few})
    between, within = families.spread({"few": few})
    assert (between, within) == (pytest.approx((5 - 2) / 2**0.5), 0.0)
    assert families.spread({"none": {}}) is None
