import msgspec
import pytest

from broker_server.comparison.comparison import ComparisonImpossible
from broker_server.comparison.results import read_all, read_costs, read_outline, read_summaries
from broker_server.simulation.fleet import WorkCosts
from broker_server.simulation.outline import Outline
from broker_server.simulation.output import write_json


def fill(folder, summaries, outline=None):
    for each in summaries:
        write_json(folder / "runs" / each.method.replace(" ", "_") / str(each.seed) / "summary.json", each)
    if outline is not None:
        write_json(folder / "experiment.json", outline)
    return folder


def test_read_all_of_an_experiment_that_is_going_on(tmp_path, summary):
    folder = fill(tmp_path / "rooms", [summary("MAS-2")], Outline(title="R", methods=("MAS-2", "TAG-2"), seeds=(0, 1)))
    (folder / "runs" / "TAG-2" / "0" / "server").mkdir(parents=True)
    (found,) = read_all([folder])
    assert (found.name, found.title) == ("rooms", "R")
    assert found.missing == ("MAS-2 · seed 1", "TAG-2 · seed 0", "TAG-2 · seed 1")


def test_read_all_joins_folders_of_the_same_title(tmp_path, summary):
    one = Outline(title="R", methods=("MAS-2",), seeds=(0,), sections={"a": ("MAS-2",)})
    other = Outline(title="R", methods=("MAS-2", "TAG-2"), seeds=(1,), sections={"a": ("TAG-2",), "b": ()})
    first = fill(tmp_path / "first", [summary("MAS-2", 0)], one)
    second = fill(tmp_path / "second", [summary("MAS-2", 1), summary("TAG-2", 1)], other)
    (found,) = read_all([first, second])
    assert found.name == "first"
    assert [(each.method, each.section, each.seeds) for each in found.methods] == [
        ("MAS-2", "a", (0, 1)),
        ("TAG-2", "a", (1,)),
    ]


def test_read_all_keeps_other_titles_apart(tmp_path, summary):
    folders = [fill(tmp_path / name, [summary("MAS-2")]) for name in ("five", "nine")]
    assert [each.title for each in read_all(folders)] == ["five", "nine"]


def test_read_all_refuses_two_experiments_of_one_name(tmp_path, summary):
    folders = [
        fill(tmp_path / name / "rooms", [summary("MAS-2")], Outline(title=name, methods=("MAS-2",)))
        for name in ("five", "nine")
    ]
    with pytest.raises(ComparisonImpossible, match="same name"):
        read_all(folders)


def test_read_all_takes_a_given_outline_instead(tmp_path, summary):
    folder = fill(tmp_path / "rooms", [summary("MAS-2")])
    (found,) = read_all([folder], Outline(name="N", title="T", methods=("TAG-2", "MAS-2"), seeds=(0,)))
    assert [each.method for each in found.methods] == ["TAG-2", "MAS-2"]
    assert found.name == "N"
    assert found.title == "T"


def test_read_summaries_of_a_copy_without_runs(tmp_path, summary):
    write_json(tmp_path / "summary.json", [summary("MAS-2"), summary("TAG-2")])
    assert [each.method for each in read_summaries(tmp_path)] == ["MAS-2", "TAG-2"]


def test_read_summaries_of_an_empty_folder_are_none(tmp_path):
    assert read_summaries(tmp_path) == []


@pytest.mark.parametrize("content", [b"{", b'{"method": 3}', b"\xff\xfe", b"[]"])
def test_read_summaries_refuses_a_damaged_one_with_its_path(tmp_path, content):
    path = tmp_path / "runs" / "MAS-2" / "0" / "summary.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(ComparisonImpossible, match="summary.json is not what a simulation writes"):
        read_summaries(tmp_path)


def test_read_summaries_needs_a_folder(tmp_path):
    with pytest.raises(ComparisonImpossible, match="is not a folder"):
        read_summaries(tmp_path / "nowhere")


def test_read_outline_refuses_what_is_none(tmp_path):
    (tmp_path / "experiment.json").write_bytes(msgspec.json.encode({"methods": 3}))
    with pytest.raises(ComparisonImpossible, match="experiment.json cannot be read"):
        read_outline(tmp_path)


def test_read_costs_of_a_folder_that_has_some(tmp_path):
    costs = WorkCosts(
        train_s=1.0, train_head_s={"depth": 0.5}, evaluate_s=0.3, evaluate_head_s={"depth": 0.1}, probe_s=2.0
    )
    assert read_costs(tmp_path) is None
    write_json(tmp_path / "costs.json", costs)
    assert read_costs(tmp_path) == costs
