import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime.datasets.command import add_arguments, run

ROOT = Path(__file__).parents[3]


def parse(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.fixture
def rooms(tmp_path):
    pytest.importorskip("PIL")
    from broker_server.simulation.rooms.building import Settings, draw_buildings

    return (
        draw_buildings(tmp_path / "rooms", Settings(buildings=1, images=8, size=16, seed=0), processes=1)
        .folders[0]
        .parent
    )


FIXTURES = ROOT / "tests" / "fixtures"


def test_check_says_what_the_labels_are_and_holds_them_to_a_bundle(tmp_path, capsys):
    assert run(parse("check", FIXTURES / "data", "--bundle", FIXTURES / "bundle")) == 0
    said = capsys.readouterr().out
    assert "train: 10 samples of image (3, 16, 16), uint8\n  depth: 10 labelled, values from" in said
    assert "segmentation: 10 labelled, 4 values from 0 to 3, 0 is the most frequent" in said
    assert run(parse("check", FIXTURES / "data", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == {"train": 10, "val": 5, "test": 3}
    assert sum(found["labels"]["val"]["segmentation"]["classes"].values()) == 5 * 16 * 16


def test_check_of_labels_that_do_not_fit(tmp_path, capsys):
    data = shutil.copytree(FIXTURES / "data", tmp_path / "data")
    (data / "dataset.json").unlink()  # and with it the factor of normals
    assert run(parse("check", data, "--bundle", FIXTURES / "bundle")) == 3
    assert f"{data}/train/normals.npy, sample 0: integers stand for the values of normals only if" in (
        capsys.readouterr().err
    )
    assert run(parse("check", data, "--bundle", tmp_path)) == 3
    assert run(parse("check", tmp_path)) == 3


@pytest.mark.workstation
def test_import_of_rooms(rooms, tmp_path, capsys):
    capsys.readouterr()
    assert run(parse("import", rooms, "--out", tmp_path / "sets", "--size", 16, "--json")) == 0
    (one,) = json.loads(capsys.readouterr().out)["datasets"]
    assert one["building"] == "building_00"
    assert one["counts"] == {"train": 4, "val": 2, "test": 2}
    assert len(one["tasks"]) == 9


@pytest.mark.workstation
def test_import_says_what_was_made(rooms, tmp_path, capsys):
    capsys.readouterr()
    assert run(parse("import", rooms, "--out", tmp_path, "--size", 16, "--tasks", "depth, normals")) == 0
    assert capsys.readouterr().out == f"{tmp_path}/building_00: 4 train, 2 val, 2 test; depth, normals\n"


@pytest.mark.workstation
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "0"], "pixels a side"),
        (["--tasks", "depht"], "'depht' is no task"),
        (["--val", "1"], "leave some to train on"),
        (["--crops", "2", "--size", "16"], "the crops of a view are too few"),
    ],
)
def test_import_asked_for_nonsense(rooms, tmp_path, capsys, words, said):
    assert run(parse("import", rooms, "--out", tmp_path / "sets", *words)) == 2
    assert said in capsys.readouterr().err


@pytest.mark.workstation
def test_import_of_damaged_data(rooms, tmp_path, capsys):
    damaged = rooms / "building_00" / "point_0_view_0_domain_rgb.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert run(parse("import", rooms, "--out", tmp_path / "sets", "--size", 16)) == 3
    error = capsys.readouterr().err
    assert str(damaged) in error
    assert error.count("\n") == 1


@pytest.mark.workstation
def test_import_to_a_place_that_cannot_be_written(rooms, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run(parse("import", rooms, "--out", tmp_path / "file", "--size", 16)) == 3
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["import", "somewhere"], ["import", "x", "--out", "y", "--size", "many"]])
def test_arguments_missing_or_wrong(words, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 2


@pytest.mark.process
@pytest.mark.parametrize("words", [["import", "y", "--out", "x"]])
def test_without_pillow(words, tmp_path):
    # An empty entry in sys.modules is how Python itself says that a module cannot be imported.
    program = (
        "import sys, argparse; sys.modules['PIL'] = None\n"
        "from edge_runtime.datasets.command import add_arguments, run\n"
        "parser = argparse.ArgumentParser(); add_arguments(parser)\n"
        f"sys.exit(run(parser.parse_args({words!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: data sets are made with pillow and rich: pip install '.[datasets]'\n"


@pytest.mark.process
def test_dataset_needs_neither_pillow_nor_rich():
    program = (
        "import sys; sys.modules['PIL'] = sys.modules['rich'] = None\n"
        "import edge_runtime.datasets.dataset, edge_runtime.datasets.command"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=120, check=True)
