import numpy as np
import pytest

pytest.importorskip("matplotlib")

from broker_server.report.pictures import draw, load, rows

pytestmark = pytest.mark.workstation
IMAGE = np.linspace(0, 1.2, 3 * 4 * 5, dtype=np.float32).reshape(1, 3, 4, 5)


def check(picture):
    assert picture.shape == (4, 5, 3)
    assert np.isfinite(picture).all()
    assert picture.min() >= 0
    assert picture.max() <= 1


def test_load_what_predict_wrote(tmp_path):
    with (tmp_path / "p.npz").open("wb") as file:
        np.savez(file, **{"image": IMAGE, "label.depth": IMAGE[:, :1]})
    assert sorted(load(tmp_path / "p.npz")) == ["image", "label.depth"]


def test_rows_of_what_was_found_in_each_place():
    depth = np.ones((1, 1, 4, 5), np.float32)
    whole = {"image": IMAGE, "label.depth": depth, "prediction.depth": depth}
    found = rows(
        {
            "attic": whole | {"label.normals": IMAGE, "prediction.normals": IMAGE},
            "cellar": whole | {"prediction.normals": IMAGE},  # no truth to compare with
        }
    )
    assert [row.title for row in found] == ["depth", "normals"]
    assert [p.title for p in found[0].pictures] == ["attic", "truth", "prediction", "cellar", "truth", "prediction"]
    assert [picture.title for picture in found[1].pictures] == ["attic", "truth", "prediction"]
    for row in found:
        for picture in row.pictures:
            check(picture.image)


def test_rows_of_nothing():
    assert rows({}) == rows({"attic": {}}) == []


def test_draw_classes_alike_for_label_and_prediction():
    label = np.arange(20, dtype=np.uint8).reshape(4, 5)
    scores = np.zeros((20, 4, 5), np.float32)
    scores.reshape(20, 20)[np.arange(20), np.arange(20)] = 1.0
    truth, guess = draw(label, like=label), draw(scores, like=label)
    check(truth)
    check(guess)
    assert (truth[0, 0] == 0).all()  # without a label
    np.testing.assert_array_equal(truth.reshape(20, 3)[1:], guess.reshape(20, 3)[1:])
    assert guess[0, 0].any()


def test_draw_depth_on_the_scale_of_the_label_and_white_where_there_is_none():
    label = np.linspace(1, 5, 20, dtype=np.float32).reshape(1, 4, 5)
    label[0, 0, 0] = np.nan
    truth = draw(label, like=label)
    check(truth)
    assert (truth[0, 0] == 1).all()
    wild = draw(label * 100, like=label)
    check(wild)
    np.testing.assert_array_equal(wild[3, 4], truth[3, 4])


def test_draw_flat_label():
    check(draw(np.zeros((1, 4, 5), np.float32), like=np.zeros((1, 4, 5), np.float32)))


@pytest.mark.filterwarnings("error")
def test_draw_label_without_any_value():
    nothing = np.full((1, 4, 5), np.nan, np.float32)
    check(draw(nothing, like=nothing))
    check(draw(np.ones_like(nothing), like=nothing))


@pytest.mark.parametrize("channels", [2, 3])
def test_draw_integers_as_the_values_that_they_are(channels):
    label = np.arange(channels * 20, dtype=np.uint8).reshape(channels, 4, 5)
    truth = draw(label, like=label)
    check(truth)
    np.testing.assert_allclose(draw(label.astype(np.float32), like=label), truth)
