import numpy as np
import pytest

from broker_server.simulation.labels import with_blank_inputs, with_labels
from devices.cli.settings import ConfigInvalid
from edge_runtime.datasets.dataset import Dataset, Description
from edge_runtime.datasets.dataset_writer import write_description, write_split


@pytest.fixture
def data(tmp_path):
    found = {}
    for name in ("attic", "cellar"):
        folder = found[name] = tmp_path / "data" / name
        for split, count in (("train", 3), ("test", 2)):
            labels = {task: np.full((count, 2), number, np.float32) for number, task in enumerate(("depth", "normals"))}
            write_split(folder / split, np.ones((count, 3, 2, 2), np.uint8), labels)
        write_description(folder, Description(name=name, counts={"train": 3, "test": 2}))
    return found


def test_labelled_are_the_same_data_with_labels_of_some_tasks_alone(data, tmp_path):
    found = with_labels(data, {"attic": ("normals",)}, tmp_path / "links")
    assert found["cellar"] == data["cellar"]
    attic = Dataset.open(found["attic"])
    assert attic.tasks == ("normals",)
    assert (len(attic.train), len(attic.test), attic.val) == (3, 2, None)
    np.testing.assert_array_equal(attic.train.labels["normals"], np.ones((3, 2)))
    assert attic.description.name == "attic"
    assert Dataset.open(data["attic"]).tasks == ("depth", "normals")


def test_labelled_may_be_asked_for_again_and_for_others(data, tmp_path):
    links = tmp_path / "links"
    first = with_labels(data, {"attic": ("normals",)}, links)
    assert with_labels(data, {"attic": ("normals",)}, links) == first
    other = with_labels(data, {"attic": ("depth", "normals")}, links)
    assert Dataset.open(other["attic"]).tasks == ("depth", "normals")
    assert Dataset.open(first["attic"]).tasks == ("normals",)
    assert with_labels(data, {}, links) == data


@pytest.mark.parametrize(
    ("tasks_of", "says"),
    [
        ({"barn": ("depth",)}, "no data set 'barn'; there are attic, cellar"),
        ({"attic": ("image",)}, "no labels of 'image'; it has depth, normals"),
        ({"attic": ("depth", "edges")}, "no labels of 'edges'"),
    ],
)
def test_labelled_refuses_what_is_not_there(data, tmp_path, tasks_of, says):
    with pytest.raises(ConfigInvalid, match=says):
        with_labels(data, tasks_of, tmp_path / "links")
    assert not (tmp_path / "links").exists()


def test_blank_inputs_have_the_same_labels_and_are_written_once(data, tmp_path):
    found = with_blank_inputs(data, tmp_path / "blank")
    attic = Dataset.open(found["attic"])
    image = np.load(found["attic"] / "train" / "image.npy")
    assert (image.dtype, image.shape, image.any()) == (np.uint8, (3, 3, 2, 2), np.False_)
    np.testing.assert_array_equal(attic.train.labels["normals"], np.ones((3, 2)))
    assert np.load(data["attic"] / "train" / "image.npy").any()
    before = (found["attic"] / "train" / "image.npy").stat().st_mtime_ns
    assert with_blank_inputs(data, tmp_path / "blank") == found
    assert (found["attic"] / "train" / "image.npy").stat().st_mtime_ns == before
