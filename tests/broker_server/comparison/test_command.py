"""`python -m broker_server compare`, as a user starts it."""

import msgspec
import pytest

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from broker_server.__main__ import main
from broker_server.simulation.outline import Outline
from broker_server.simulation.output import write_json

pytestmark = pytest.mark.workstation
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def rooms(tmp_path, summary):
    runs = [summary(f"MAS-{groups}", seed, loss=1 + groups / 10 + seed / 50) for groups in (2, 3) for seed in (0, 1)]
    runs += [summary("one-by-one", 0, "one_by_one", loss=1.5, compute_s=900.0), summary("odd |*", 0, "new", loss=None)]
    for number, each in enumerate(runs):
        write_json(tmp_path / "rooms" / "runs" / str(number) / "0" / "summary.json", each)
    outline = Outline(title="Rooms", methods=("one-by-one", "MAS-2", "MAS-3"), seeds=(0, 1), sections={"b": ("MAS-3",)})
    write_json(tmp_path / "rooms" / "experiment.json", outline)
    return tmp_path / "rooms"


@pytest.mark.slow
def test_compare_writes_figures_tables_and_a_picture(rooms, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["compare", str(rooms), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "left out: one-by-one · seed 1" in said
    assert str(out / "comparison.md") in said
    assert (out / "comparison.png").read_bytes().startswith(PNG)
    figures = msgspec.json.decode((out / "comparison.json").read_bytes())
    assert figures["missing"] == ["one-by-one · seed 1"]
    assert figures["costs"] == [None]
    assert figures["experiments"][0]["methods"][0]["compute_s"] == {"n": 1, "mean": 900.0, "half_width": None}
    assert r"odd \|\*" in (out / "comparison.md").read_text()
    assert main(["compare", str(rooms), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "comparison.md").read_bytes() == (out / "comparison.md").read_bytes()


@pytest.mark.slow
def test_compare_of_two_experiments_has_two_pictures(rooms, tmp_path, summary):
    write_json(tmp_path / "nine" / "summary.json", [summary("MAS-2", compute_s=None, simulated_j=None)])
    assert main(["compare", str(rooms), str(tmp_path / "nine"), "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [
        "comparison-nine.png",
        "comparison-rooms.png",
    ]


@pytest.mark.slow
def test_compare_takes_the_order_from_an_experiment_s_file(rooms, tmp_path):
    path = tmp_path / "experiment.toml"
    path.write_text('data = "d"\nbundle = "b"\ntitle = "New"\n[methods."MAS-3"]\n[methods."MAS-2"]\n')
    assert main(["compare", str(rooms), "--out", str(tmp_path / "out"), "--experiment", str(path)]) == 0
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "## New" in text
    assert text.index("| MAS-3 |") < text.index("| MAS-2 |") < text.index("| one-by-one |")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{empty}"], "no run has finished yet"),
        (["{empty}/nowhere"], "is not a folder"),
    ],
)
def test_compare_says_what_it_cannot_do_and_writes_nothing(rooms, tmp_path, capsys, arguments, says):
    (tmp_path / "empty").mkdir()
    given = [each.format(empty=tmp_path / "empty", rooms=rooms) for each in arguments]
    assert main(["compare", *given, "--out", str(tmp_path / "out")]) == 3
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_compare_refuses_a_wrong_experiment_s_file_as_a_configuration(rooms, tmp_path):
    path = tmp_path / "experiment.toml"
    path.write_text("wings = 2\n")
    assert main(["compare", str(rooms), "--out", str(tmp_path / "out"), "--experiment", str(path)]) == 2
