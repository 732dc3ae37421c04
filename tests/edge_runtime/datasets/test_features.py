"""Tables of features: their sources, their sets, and the bundle that goes with them; through the command."""

import numpy as np
import pytest
from mat_samples import cell, numbers, written

from edge_runtime.__main__ import main
from edge_runtime.datasets.dataset import Dataset, DatasetInvalid
from edge_runtime.datasets.feature_sets import divided, pooled, standardised
from edge_runtime.datasets.feature_sets import write as write_sets
from edge_runtime.datasets.feature_sources import SOURCES
from edge_runtime.datasets.fit import check_fits
from edge_runtime.datasets.partition import Fractions
from edge_runtime.wire.bundle_folder import read_folder

RNG = np.random.default_rng(3)
ALIKE = [RNG.normal(size=(n, 4)) for n in (12, 9)]


def school(tmp_path):
    y = [np.arange(len(x), dtype=np.uint8)[:, None] for x in ALIKE]
    return written(
        tmp_path, cell("X", *(numbers("", x) for x in ALIKE)), cell("Y", *(numbers("", one, 9, 2) for one in y))
    )


def landmine(tmp_path):
    y = [(np.arange(len(x)) % 3 == 0).astype(np.uint8)[:, None] for x in ALIKE]
    return written(
        tmp_path,
        cell("feature", *(numbers("", x) for x in ALIKE)),
        cell("label", *(numbers("", one, 9, 2) for one in y)),
    )


def parkinsons(tmp_path):
    path = tmp_path / "updrs.data"
    rows = [[1 + i // 8, 70, 0, i, 20.5, 30 + i, *RNG.normal(size=16)] for i in range(16)]
    path.write_text("subject#,age\n" + "\n".join(",".join(map(str, row)) for row in rows) + "\n\n")
    return path


def har(tmp_path):
    path = tmp_path / "har.npz"
    np.savez(path, X=RNG.normal(size=(24, 5)).astype(np.float32), y=np.arange(24) % 6, subject=1 + np.arange(24) // 12)
    return path


MAKERS = {
    "school": school,
    "landmine": landmine,
    "parkinsons": parkinsons,
    "har": har,
    "related": lambda _: None,
    "values": lambda _: None,
}


@pytest.mark.parametrize("kind", [*MAKERS])
def test_features_command_makes_data_sets_and_a_bundle_that_fits(tmp_path, kind, capsys):
    file = MAKERS[kind](tmp_path)
    out = tmp_path / "out"
    for more in ([], ["--pooled"]):
        arguments = ["datasets", "features", kind, *([] if file is None else [str(file)]), "--out", str(out), *more]
        assert main(arguments) == 0
        assert "a linear model with the loss" in capsys.readouterr().out
    manifest = read_folder(out / "bundle")
    folders = sorted(path.name for path in (out / "devices").iterdir())
    assert len(folders) == (9 if file is None else 3)
    sizes = {}
    for name in folders:
        dataset = Dataset.open(out / "devices" / name)
        for split in (dataset.train, dataset.test):
            check_fits(manifest, split)
        sizes[name] = len(dataset.train), len(dataset.test)
    assert sizes["all"] == tuple(map(sum, zip(*(size for name, size in sizes.items() if name != "all"), strict=True)))


def test_features_command_gives_the_same_bytes_for_the_same_seed(tmp_path):
    file = str(landmine(tmp_path))
    for out, seed in (("one", "4"), ("two", "4"), ("three", "5")):
        assert main(["datasets", "features", "landmine", file, "--out", str(tmp_path / out), "--seed", seed]) == 0
    one, two, three = (
        (tmp_path / out / "devices" / "field-01" / "train" / "features.npy").read_bytes()
        for out in ("one", "two", "three")
    )
    assert one == two != three


def test_standardised_features_have_mean_0_and_deviation_1_of_the_training_samples():
    x = RNG.normal(3.0, 5.0, size=(40, 3))
    x[:, 2] = 1.0
    sets = divided({"a": (x[:20], np.zeros(20)), "b": (x[20:], np.zeros(20))}, Fractions(val=0.0, test=0.25), 0)
    train = pooled(standardised(sets))["all"]["train"][0]
    np.testing.assert_allclose(train[:, :2].mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(train[:, :2].std(0), 1, atol=1e-9)
    assert (train[:, 2] == 1).all()


def test_pooled_sets_leave_out_those_that_a_device_does_not_have():
    one = (np.ones((1, 1)), np.ones(1))
    sets = {"a": {"train": (np.ones((2, 1)), np.ones(2))}, "b": {"train": one, "test": one}}
    found = pooled(sets)["all"]
    assert (len(found["train"][0]), len(found["test"][0])) == (3, 1)


def test_a_value_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(DatasetInvalid, match="a has a value"):
        write_sets(tmp_path, "har", SOURCES["har"], {"a": {"train": (np.array([[np.nan]]), np.zeros(1))}}, "hinge")


def test_sources_without_their_file_or_with_another_are_refused(tmp_path):
    other = written(
        tmp_path, cell("X", numbers("", ALIKE[0])), cell("Y", numbers("", ALIKE[1])), numbers("feature", [[1.0]])
    )
    text = tmp_path / "text.csv"
    text.write_text("a,b\nx,y\n")
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, X=np.ones(3), y=np.ones(3), subject=np.ones(3))
    empty = tmp_path / "empty.npz"
    np.savez(empty, X=np.ones(3))
    cases = [
        ("school", None, "name it after the kind"),
        ("school", other, "not of the same samples"),
        ("landmine", other, "no cell 'feature'"),
        ("parkinsons", tmp_path / "none", "cannot be read"),
        ("parkinsons", text, "not UCI's table"),
        ("har", tmp_path / "none", "cannot be read"),
        ("har", empty, "no npz with X, y and subject"),
        ("har", text, "no npz with X, y and subject"),
        ("har", wrong, "X, y and subject are"),
    ]
    for kind, path, why in cases:
        with pytest.raises(DatasetInvalid, match=why):
            SOURCES[kind].read(path, 3, 0)


def test_features_command_refuses_a_loss_for_other_labels(tmp_path, capsys):
    assert main(["datasets", "features", "related", "--out", str(tmp_path), "--loss", "squared"]) == 2
    assert "squared is not for the labels of related" in capsys.readouterr().err
    assert main(["datasets", "features", "related", "--out", str(tmp_path), "--loss", "logistic"]) == 0
    assert read_folder(tmp_path / "bundle").linear.loss == "logistic"
