import pytest

from broker_server.comparison.comparison import ComparisonImpossible, compare
from broker_server.comparison.published import TASKS
from broker_server.report.build import MetricMean
from broker_server.simulation.outline import Outline

OUTLINE = Outline(
    title="Rooms",
    methods=("apart", "single", "MAS-2", "HOA-2"),
    seeds=(0, 1),
    sections={"ablations": ("apart",)},
)


def test_compare_names_what_is_missing_and_counts_it_nowhere(summary):
    found = compare("rooms", OUTLINE, [summary("single", 0, "one_by_one"), summary("single", 1), summary("MAS-2", 1)])
    assert found.missing == ("MAS-2 · seed 0", "HOA-2 · seed 0", "HOA-2 · seed 1", "apart · seed 0", "apart · seed 1")
    mas, hoa = found.methods[1:3]
    assert (mas.seeds, mas.missing, mas.compute_s.n, mas.test_loss["total"].half_width) == ((1,), (0,), 1, None)
    assert (hoa.strategy, hoa.test_loss, hoa.compute_s, hoa.relative.compute, hoa.best) == (None, {}, None, None, False)


def test_compare_keeps_the_order_and_puts_sections_last(summary):
    found = compare("rooms", OUTLINE, [summary("another", 4), summary("apart"), summary("MAS-2")])
    assert [each.method for each in found.methods] == ["single", "MAS-2", "HOA-2", "another", "apart"]
    assert found.sections == ("", "ablations")
    assert found.seeds == (0, 1, 4)
    assert found.tasks == ("depth", "edge_texture")


def test_compare_relates_to_one_by_one_seed_by_seed(summary):
    runs = [
        *(summary("single", seed, "one_by_one", loss=2.0 + seed, compute_s=100.0 * (1 + seed)) for seed in range(2)),
        *(summary("MAS-2", seed, loss=1.5 + seed, compute_s=50.0 * (1 + seed), simulated_j=None) for seed in range(2)),
    ]
    found = compare("rooms", OUTLINE, runs)
    assert found.reference == "single"
    relative = found.methods[1].relative
    assert (relative.compute.mean, relative.compute.half_width) == (0.5, 0.0)
    assert (relative.test_loss.mean, relative.test_loss.half_width) == (-0.5, 0.0)
    assert relative.critical_path.mean == relative.simulated_time.mean == 1.0
    assert relative.simulated_energy is None


def test_compare_relates_to_the_method_that_is_named(summary):
    runs = [summary("single", 0, "one_by_one", loss=4.0), summary("MAS-2", 0, loss=2.0), summary("apart", 0, loss=3.0)]
    named = Outline(methods=OUTLINE.methods, seeds=(0,), reference="MAS-2")
    found = compare("rooms", named, runs)
    assert found.reference == "MAS-2"
    apart, single = found.methods[:2]
    assert (apart.relative.test_loss.mean, single.relative.test_loss.mean) == (1.0, 2.0)
    assert {task: each.mean for task, each in apart.relative.task_loss.items()} == {"depth": 0.25, "edge_texture": 0.75}
    assert compare("rooms", named, runs[::2]).reference == "single"  # as long as no run of it has finished


def test_compare_without_one_by_one_has_no_ratios(summary):
    found = compare("rooms", OUTLINE, [summary("MAS-2")])
    assert found.reference is None
    assert all(each.relative is None for each in found.methods)


def test_compare_finds_the_best_among_the_methods_with_the_most_seeds(summary):
    runs = [summary("single", 0, loss=3.0), summary("single", 1, loss=3.0), summary("MAS-2", 0, loss=1.0)]
    assert [each.method for each in compare("rooms", OUTLINE, runs).methods if each.best] == ["single"]
    runs += [summary("MAS-2", 1, loss=4.0), summary("HOA-2", 0, loss=0.5), summary("HOA-2", 1, loss=None)]
    assert [each.method for each in compare("rooms", OUTLINE, runs).methods if each.best] == ["MAS-2"]


def test_compare_of_losses_that_nobody_measured(summary):
    found = compare("rooms", Outline(), [summary("MAS-2", loss=None)])
    assert found.tasks == ()
    assert found.methods[0].test_loss == {}
    assert not found.methods[0].best


def test_compare_holds_the_paper_s_tasks_alone_against_its_figures(summary):
    losses = dict.fromkeys((*TASKS, "total"), 0.1)
    assert compare("x", Outline(), [summary("MAS-2", test_loss=losses)]).methods[0].published.gpu_h == 8.8
    assert compare("x", Outline(), [summary("MAS-2")]).methods[0].published is None


def test_compare_refuses_nothing_and_the_same_run_twice(summary):
    with pytest.raises(ComparisonImpossible, match="no run has finished"):
        compare("rooms", OUTLINE, [])
    with pytest.raises(ComparisonImpossible, match="MAS-2 with seed 0 is there twice"):
        compare("rooms", OUTLINE, [summary("MAS-2"), summary("MAS-2")])


def test_compare_names_itself_by_its_folder_where_it_has_no_title(summary):
    found = compare("rooms", Outline(), [summary("MAS-2")])
    assert (found.name, found.title) == ("rooms", "rooms")


def metric(name, value):
    return {"depth": MetricMean(name=name, value=value)}


def test_compare_has_metrics_and_knows_which_way_is_better(summary):
    runs = [
        *(summary("single", seed, test_metric=metric("rmse", 0.25 + seed / 4)) for seed in range(2)),
        *(summary("MAS-2", seed, test_metric=metric("rmse", 0.5)) for seed in range(2)),
        summary("HOA-2", 0, test_metric=metric("rmse", 0.0)),
        summary("apart", 0),
    ]
    found = compare("rooms", OUTLINE, runs)
    assert found.metrics == {"depth": "rmse"}
    values = {each.method: each.test_metric for each in found.methods}
    assert (values["single"]["depth"].n, values["single"]["depth"].mean) == (2, 0.375)
    assert values["apart"] == {}
    assert {each.method: each.best_metrics for each in found.methods if each.best_metrics} == {"single": ("depth",)}
    best = [summary("MAS-2", test_metric=metric("miou", 0.5)), summary("single", test_metric=metric("miou", 0.25))]
    assert [each.method for each in compare("rooms", OUTLINE, best).methods if each.best_metrics] == ["MAS-2"]
    assert compare("rooms", OUTLINE, [summary("single")]).metrics == {}


def test_compare_refuses_different_metrics_of_a_task(summary):
    runs = [summary("MAS-2", test_metric=metric("miou", 0.5)), summary("single", test_metric=metric("rmse", 0.5))]
    with pytest.raises(ComparisonImpossible, match="some runs have measured depth by miou, others by rmse"):
        compare("rooms", OUTLINE, runs)
