"""The opening of docs/comparison.md follows from what the experiments have written."""

import pytest

pytest.importorskip("matplotlib")

from benchmarks import headline
from broker_server.comparison.comparison import compare
from broker_server.simulation.outline import Outline

pytestmark = pytest.mark.workstation


def runs(summary, **changes):
    losses = {
        "one by one": 2.0,
        "all in one": 3.0,
        "MAS-2": 2.4,
        "MAS-2 random 1": 2.5,
        "MAS-2 random 2": 2.9,
    } | changes
    strategies = {"one by one": "one_by_one", "all in one": "all_in_one"}
    times = {"one by one": 100.0, "all in one": 30.0}
    return [
        summary(
            name,
            seed,
            strategies.get(name, "mas"),
            loss=loss + seed / 100,
            compute_s=times.get(name, 50.0),
            simulated_j=20.0 * times.get(name, 50.0),
        )
        for name, loss in losses.items()
        for seed in (0, 1)
    ]


def test_opening_has_a_row_for_each_kind_of_method_and_says_what_is_lowest_within_the_budget(summary):
    text = headline.opening({"pairs": compare("pairs", Outline(title="Pairs"), runs(summary))})
    assert text.startswith("**Pairs** (`make compare-pairs`, 2 seeds).\nThis setting cannot tell groupings apart: ")
    assert "| MAS: affinities | +0.400 | – | 0.50 | 0.50 |" in text
    assert "| random groups, 2 draws | +0.500 to +0.900 | – | 0.50 | 0.50 |" in text
    assert (
        "Within 0.5× the CPU time and 0.6× the modelled energy of one-by-one the lowest loss is that of MAS-2" in text
    )
    assert "trials of all pairs" not in text


def test_opening_says_where_no_split_is_within_the_budget(summary):
    dear = [each for each in runs(summary) if each.strategy != "mas"] + [summary("MAS-2", 0, compute_s=60.0)]
    assert "No split stays within" in headline.opening({"pairs": compare("pairs", Outline(), dear)})


def test_replaced_changes_what_is_between_the_marks_alone():
    document = f"before\n{headline.BEGIN}old\n{headline.END}after\n"
    assert headline.replaced(document, "new\n") == f"before\n{headline.BEGIN}new\n{headline.END}after\n"


def test_the_document_opens_with_what_the_experiments_have_written():
    results = {
        name: headline.read(name)
        for name in headline.EXPERIMENTS
        if (headline.RESULTS / name / "comparison.json").is_file()
    }
    document = headline.DOCUMENT.read_text(encoding="utf-8")
    assert headline.replaced(document, headline.opening(results)) == document
    assert results
