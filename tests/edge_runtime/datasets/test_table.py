"""Tables as data sets: rows, windows over time, and what is missing in them."""

import argparse
import itertools
import json

import numpy as np
import pytest

from devices.cli.run import UsageError
from edge_runtime.datasets.command import add_arguments, run
from edge_runtime.datasets.dataset import Dataset, DatasetInvalid
from edge_runtime.datasets.partition import Fractions, PartitionImpossible
from edge_runtime.datasets.table import Columns, TableSettings, import_tables

HEAD = "time,pm25,wind,station,level,kind\n"


def table(path, rows, **cells):
    """A table of rows whose numbers tell their place; `cells` are others, as pm25_3="" in row 3."""
    lines = []
    for i in range(rows):
        row = {"time": f"{i}:00", "pm25": i, "wind": -i, "station": i % 3, "level": 10 * i, "kind": i % 2}
        row |= {name.rpartition("_")[0]: cell for name, cell in cells.items() if name.endswith(f"_{i}")}
        lines.append(",".join(map(str, row.values())) + "\n")
    path.write_text(HEAD + "".join(lines))
    return path


def settings(**more):
    inputs = {"air": Columns(names=("pm25", "wind"))}
    return TableSettings(**{"inputs": inputs, "tasks": {"level": Columns(names=("level",))}, **more})


def command(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(["table", *map(str, words)]))


ARRAYS = ["--input", "air=pm25, wind", "--tokens", "place=station", "--task", "level=level", "--classes", "kind=kind"]


def test_rows_are_distributed_by_a_seed(tmp_path, capsys):
    file = table(tmp_path / "a.csv", 20)
    assert command(file, "--out", tmp_path / "one", *ARRAYS) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'one'}: 14 train, 3 val, 3 test; air, place, level, kind\n"
    data = Dataset.open(tmp_path / "one")
    inputs, labels = data.train.batch(range(14))
    assert {name: (x.shape, x.dtype) for name, x in inputs.items()} == {
        "air": ((14, 2), np.float32),
        "place": ((14, 1), np.int64),
    }
    assert {task: (y.shape, y.dtype) for task, y in labels.items()} == {
        "kind": ((14,), np.int64),
        "level": ((14, 1), np.float32),
    }
    np.testing.assert_array_equal(labels["level"], 10 * inputs["air"][:, :1])
    np.testing.assert_array_equal(inputs["place"][:, 0], inputs["air"][:, 0] % 3)
    rows = [split.batch(range(len(split)))[0]["air"][:, 0].tolist() for split in data.splits.values()]
    assert sorted(itertools.chain(*rows)) == list(range(20))
    assert command(file, "--out", tmp_path / "two", "--seed", 0, *ARRAYS) == 0
    assert (tmp_path / "one/val/air.npy").read_bytes() == (tmp_path / "two/val/air.npy").read_bytes()


def test_windows_follow_time_and_cross_neither_files_nor_sets(tmp_path, capsys):
    files = [table(tmp_path / "a.csv", 20), table(tmp_path / "b.csv", 30)]
    options = ["--window", 3, "--ahead", 1, "--stride", 2, "--val", 0.2, "--test", 0.2, "--json"]
    assert command(*files, "--out", tmp_path / "d", *ARRAYS, *options) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"folder": str(tmp_path / "d"), "counts": {"train": 13, "val": 3, "test": 3}, "left_out": 0}
    data = Dataset.open(tmp_path / "d")
    inputs, labels = data.train.batch(range(13))
    assert inputs["air"].shape == (13, 2, 3)
    np.testing.assert_array_equal(inputs["air"][0], [[0, 1, 2], [0, -1, -2]])
    np.testing.assert_array_equal(labels["level"], 10 * (inputs["air"][:, 0, -1:] + 1))
    starts = [split.batch(range(len(split)))[0]["air"][:, 0, 0].tolist() for split in data.splits.values()]
    assert starts == [[0, 2, 4, 6, 8, *range(0, 15, 2)], [12, 18, 20], [16, 24, 26]]


def test_what_is_missing_makes_no_sample_and_a_missing_label_is_none(tmp_path, capsys):
    file = table(tmp_path / "a.csv", 10, pm25_2="", kind_4=" NA ", level_7="nan")
    assert command(file, "--out", tmp_path / "d", *ARRAYS, "--val", 0, "--test", 0) == 0
    assert "2 samples were left out: a value of an input, or a class, is missing there" in capsys.readouterr().out
    (inputs, labels) = Dataset.open(tmp_path / "d").train.batch(range(8))
    assert inputs["air"][:, 0].tolist() == [0, 1, 3, 5, 6, 7, 8, 9]
    assert np.flatnonzero(np.isnan(labels["level"])).tolist() == [5]


def test_set_that_is_left_out_is_removed(tmp_path):
    file = table(tmp_path / "a.csv", 10)
    import_tables([file], tmp_path / "d", settings())
    import_tables([file], tmp_path / "d", settings(fractions=Fractions(val=0, test=0)))
    data = Dataset.open(tmp_path / "d")
    assert (len(data.train), data.val, data.test) == (10, None, None)


@pytest.mark.parametrize(
    ("cells", "more", "words"),
    [
        ({"pm25_3": "x"}, {}, r"a.csv, line 5: pm25 is 'x', which is no number: number what is text"),
        ({"pm25_3": "inf"}, {}, "pm25 is 'inf', which is no number"),
        ({"station_3": "1.5"}, {"tasks": {"s": Columns(names=("station",), integers=True)}}, "no whole number"),
        ({}, {"tasks": {"rain": Columns(names=("rain",))}}, "a.csv has no column 'rain'; it has 'time', 'pm25'"),
        ({f"wind_{i}": "" for i in range(10)}, {}, "no sample of .*a.csv has all of its inputs"),
    ],
)
def test_table_that_is_not_of_its_form_is_one_sentence(tmp_path, cells, more, words):
    file = table(tmp_path / "a.csv", 10, **cells)
    with pytest.raises(DatasetInvalid, match=words):
        import_tables([file], tmp_path / "d", settings(**more))
    assert not (tmp_path / "d").exists()


def test_table_of_no_text_is_one_sentence(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00pm25")
    with pytest.raises(DatasetInvalid, match=r"a.csv is not a table of text \(CSV\)"):
        import_tables([tmp_path / "a.csv"], tmp_path / "d", settings())


def test_table_too_short_for_its_windows_says_so(tmp_path):
    file = table(tmp_path / "a.csv", 10)
    with pytest.raises(PartitionImpossible, match="a.csv has 2 rows for val, and a window with its label takes 3"):
        import_tables([file], tmp_path / "d", settings(window=3))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"inputs": {}}, "name at least one input and one task"),
        ({"tasks": {"air": Columns(names=("level",))}}, "'air' is an input and a task"),
        ({"tasks": {"The Level": Columns(names=("level",))}}, "'The Level' cannot name an array of a table"),
        ({"ahead": 1}, "--ahead and --stride are of windows"),
    ],
)
def test_settings_that_cannot_be_are_refused(more, words):
    with pytest.raises(UsageError, match=words):
        settings(**more)


def test_array_without_columns_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        command("a.csv", "--out", "d", "--input", "air")
    assert "argument --input: invalid name=column,column value: 'air'" in capsys.readouterr().err
