import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.comparison.comparison import compare
from broker_server.comparison.markdown import document, escape, table, tables
from broker_server.comparison.published import TASKS
from broker_server.report.build import MetricMean
from broker_server.report.spread import spread
from broker_server.simulation.outline import Outline
from broker_server.simulation.summary import LastSplit

OUTLINE = Outline(methods=("single", "MAS-2", "slow"), seeds=(0, 1), sections={"ablations": ("slow",)})


@pytest.fixture
def runs(summary):
    return [
        *(summary("single", seed, "one_by_one", loss=2.0 + seed / 100, compute_s=1234.5) for seed in range(2)),
        *(summary("MAS-2", seed, loss=1.5 + seed / 10, compute_s=40.0 + seed) for seed in range(2)),
        summary("slow", 0, loss=3.0, bytes_up=None),
    ]


def test_tables_show_means_intervals_ratios_and_what_is_estimated(runs):
    text = tables(compare("rooms", OUTLINE, runs), "a picture.png")
    assert "(<a picture.png>)" in text
    assert "| single | 2 | 2.0050 ± 0.0635 | +0.0000 | 1234 | 1.00 |" in text.replace("1235", "1234")
    assert "| MAS-2 | 2 | **1.5500 ± 0.6353** | −0.4550 ± 0.5718 | 40.5 ± 6.4 | 0.03 ± 0.01 |" in text
    assert "CPU s (measured)" in text
    assert "energy, kJ (simulated)" in text
    assert "estimates without a meter" in text
    assert "Δ and × are to single, paired by seed" in text
    assert text.index("**ablations**") > text.index("| MAS-2 |")
    assert "| slow | 0.7500 | 2.2500 | 12.0 | – | 5.0 |" in text
    assert "Not finished, and left out: slow · seed 1." in text


def test_tables_show_groups_of_strategies_that_find_them_with_their_seeds(runs, summary):
    runs.append(summary("MAS-2", 2, groups=(("depth", "edge_texture"),)))
    text = tables(compare("rooms", OUTLINE, runs), "p.png")
    assert r"| MAS-2 | 0, 1 | depth / edge\_texture |" in text
    assert r"| MAS-2 | 2 | depth + edge\_texture |" in text
    assert "| single | 0, 1 | depth" not in text


def test_tables_show_metrics_where_they_were_measured(runs, summary):
    assert "test metric" not in tables(compare("rooms", OUTLINE, runs), "p.png")
    metrics = lambda rmse, angle: {  # noqa: E731
        "depth": MetricMean(name="rmse", value=rmse),
        "edge_texture": MetricMean(name="angular_error_deg", value=angle),
    }
    runs = [summary("MAS-2", seed, test_metric=metrics(0.25, 20.0 + seed)) for seed in range(2)]
    runs += [summary("single", seed, test_metric=metrics(0.5, 20.0)) for seed in range(2)]
    text = tables(compare("rooms", OUTLINE, [*runs, summary("slow")]), "p.png")
    assert r"| method: test metric by task | depth, RMSE ↓ | edge\_texture, angular error (°) ↓ |" in text
    assert "| MAS-2 | **0.2500** | 20.50 ± 6.35 |" in text
    assert "| single | 0.5000 | **20.00** |" in text
    assert "bold** is the best of its task" in text
    assert text.count("test metric by task") == 1  # not in the section of the method without any


def test_tables_show_the_devices_that_are_served_worst_where_that_was_measured(runs, summary):
    assert "worst device" not in tables(compare("rooms", OUTLINE, runs), "p.png")
    depth = {f"d{k:02}": k / 20 for k in range(20)}
    runs = [summary("ditto", 0, "ditto", spread={"depth": spread(depth, None)}), *runs]
    text = tables(compare("rooms", OUTLINE, runs), "p.png")
    assert r"| method: worst device / bottom decile by task | depth | edge\_texture |" in text
    assert "| ditto | 0.9500 / 0.9000 | – / – |" in text
    assert "every device counts once" in text


def test_tables_show_each_task_s_difference_to_a_method_that_was_named(runs, summary):
    assert "Δ loss to" not in tables(compare("rooms", OUTLINE, runs), "p.png")
    outline = Outline(methods=("single", "MAS-2", "slow", "none"), sections={"ablations": ("none",)}, reference="MAS-2")
    text = tables(compare("rooms", outline, [*runs, summary("none", 7, loss=None)]), "p.png")
    assert r"| method: Δ loss to MAS-2 | depth | edge\_texture | tasks no worse |" in text
    assert re.search(r"\| single \| \+0\.113[78] ± 0\.14[23]\d \| \+0\.341[23] ± 0\.42[89]\d \| 0 of 2 \|", text)
    assert "| slow | +0.3750 | +1.1250 | 0 of 2 |" in text
    assert "| MAS-2 | +0" not in text
    assert text.count("Δ loss to") == 1
    better = compare("rooms", outline, [summary("MAS-2", loss=2.0), summary("slow", loss=1.0)])
    assert "| slow | −0.2500 | −0.7500 | 2 of 2 |" in tables(better, "p.png")


def test_tables_of_one_seed_without_reference_have_neither_intervals_nor_ratios(summary):
    text = tables(compare("rooms", Outline(), [summary("all", strategy="all_in_one")]), "p.png")
    assert "| all | 1 | **1.0000** | – | 100 | – | 10.0 | – | 50.0 | – | 2.0 | – |" in text
    assert "groups of the last phase" not in text
    assert "left out" not in text
    assert "published" not in text


def test_tables_hold_the_paper_s_figures_beside_ours(summary):
    losses = {"test_loss": dict.fromkeys(TASKS, 0.1) | {"total": 0.5}}
    alone = compare("rooms", Outline(), [summary("MAS-2", **losses)])
    assert "| MAS-2 | 0.5000 | 0.578 | – | 0.52 (8.8 h) |" in tables(alone, "p.png")
    runs = [summary("MAS-2", **losses), summary("one-by-one", strategy="one_by_one", **losses), summary("x", **losses)]
    text = tables(compare("rooms", Outline(), runs), "p.png")
    assert "arXiv 2307.11285" in text
    assert "| one-by-one | 0.5000 | 0.603 | 1.00 | 1.00 (16.9 h) |" in text
    assert "| x | 0.5000 |" not in text


def test_tables_of_a_method_that_has_not_finished_are_blank(summary):
    outline = Outline(methods=("single", "MAS-2"), seeds=(0,))
    text = tables(compare("rooms", outline, [summary("single", strategy="one_by_one")]), "p.png")
    assert "| MAS-2 | 0 | – | – | – | – | – | – | – | – | – | – |" in text


def test_document_has_a_heading_for_each_experiment(runs):
    found = compare("rooms", OUTLINE, runs)
    text = document([(found, "a.png"), (found, "b.png")])
    assert text.startswith("# Methods side by side\n")
    assert text.count("\n## rooms\n") == 2


def test_escape_keeps_hostile_names_in_their_cell():
    assert escape("a|b\n# *c* <img> [x](y) `z` $d$ &amp; ~~e~~ \\") == (
        r"a\|b \# \*c\* \<img\> \[x\](y) \`z\` \$d\$ \&amp; \~\~e\~\~ " + "\\\\"
    )


@pytest.mark.slow
@given(st.text(max_size=40))
def test_escape_gives_one_line_in_which_no_sign_acts(text):
    found = escape(text)
    assert not re.search(r"[\n\r\x00-\x1f]", found)
    assert not re.search(r"(?<!\\)(\\\\)*[|<`\[*_]", found)


def test_table_has_a_line_for_each_row():
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_tables_say_whether_groupings_can_be_told_apart(runs):
    text = tables(compare("rooms", OUTLINE, runs), "p.png")
    assert text.index("**This setting cannot tell groupings apart: ") < text.index("Means over seeds")
    assert "method: choice of groups" not in text


def test_tables_show_how_well_groups_were_chosen(runs, summary):
    def split(method, seed, groups, losses, **others):
        by_group = {"+".join(group): dict.fromkeys(group, losses) for group in groups}
        last = LastSplit(origin="x", losses=by_group, group_scores=None)
        return summary(method, seed, groups=groups, last_split=last, **others)

    runs += [split("best", seed, (("depth",), ("edge_texture",)), 1.0) for seed in (0, 1)]
    runs += [split("other", seed, (("depth", "edge_texture"),), 1.0) for seed in (0, 1)]
    assert "method: choice of groups" not in tables(compare("rooms", OUTLINE, runs), "p.png")
    tasks = {"test_loss": dict.fromkeys("abc", 1.0)}
    runs = [
        summary("one", **tasks),
        split("best", 0, (("a",), ("b", "c")), 1.0, **tasks),
        split("other", 0, (("a", "b"), ("c",)), 1.5, **tasks),
    ]
    text = tables(compare("rooms", Outline(), runs), "p.png")
    assert "| best | 2 | 2 | 1 | 0.00 | 25.00 | +100 | – |" in text
    assert "| other | 2 | 2 | 2 | 50.00 | 25.00 | −100 | – |" in text
    assert "| one | 2" not in text


def test_tables_of_choices_into_different_numbers_of_groups(summary):
    def split(method, seed, groups):
        by_group = {"+".join(group): dict.fromkeys(group, 1.0) for group in groups}
        last = LastSplit(origin=f"{len(groups)}", losses=by_group, group_scores=None)
        return summary(method, seed, groups=groups, last_split=last, test_loss=dict.fromkeys("abcd", 1.0))

    two = ((("a",), ("b", "c", "d")), (("a", "b"), ("c", "d")))
    three = ((("a",), ("b",), ("c", "d")), (("a", "b"), ("c",), ("d",)), (("a", "c"), ("b",), ("d",)))
    runs = [split("MAS", seed, groups[0]) for seed, groups in enumerate((two, three))]
    runs += [split(f"x{number}", 0, groups) for number, groups in enumerate(two[1:])]
    runs += [split(f"y{number}", 1, groups) for number, groups in enumerate(three[1:])]
    assert "| MAS | 2–3 | 2–3 | 1, 1 | 0.00 | 0.00 | – | – |" in tables(compare("rooms", Outline(), runs), "p.png")
