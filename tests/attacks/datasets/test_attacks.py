"""Every damaged array and picture is refused with one sentence that names the file."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.datasets.dataset import Dataset, DatasetInvalid
from edge_runtime.datasets.dataset_writer import write_split

HERE = Path(__file__).parent
ARRAYS = sorted((HERE / "arrays").glob("*.npy"))
IMAGES = sorted((HERE / "images").glob("*.png"))


def is_one_sentence(text):
    return "\n" not in text and len(text) < 400


@pytest.mark.parametrize("attack", [path for path in ARRAYS if path.stem != "one_more"], ids=lambda path: path.stem)
def test_dataset_open_refuses_images(attack, tmp_path):
    write_split(tmp_path / "train", np.zeros((4, 3, 8, 8), np.uint8), {"depth": np.zeros((4, 1, 8, 8), np.float32)})
    shutil.copy(attack, tmp_path / "train" / "image.npy")
    with pytest.raises(DatasetInvalid) as caught:
        Dataset.open(tmp_path)
    assert "train/image.npy" in str(caught.value)
    assert is_one_sentence(str(caught.value))


@pytest.mark.parametrize("attack", ARRAYS, ids=lambda path: path.stem)
def test_dataset_open_refuses_labels(attack, tmp_path):
    write_split(tmp_path / "train", np.zeros((4, 3, 8, 8), np.uint8), {"depth": np.zeros((4, 1, 8, 8), np.float32)})
    shutil.copy(attack, tmp_path / "train" / "depth.npy")
    with pytest.raises(DatasetInvalid) as caught:
        Dataset.open(tmp_path)
    assert "train/depth.npy" in str(caught.value)
    assert is_one_sentence(str(caught.value))


@pytest.mark.slow
@given(data=st.data())
def test_dataset_open_survives_any_damage(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    write_split(folder / "train", np.zeros((2, 1, 2, 2), np.uint8), {})
    path = folder / "train" / "image.npy"
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, 127), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        split = Dataset.open(folder).train
    except DatasetInvalid as exc:
        assert "train/image.npy" in str(exc)
    else:
        split.batch([0])


@pytest.mark.workstation
@pytest.mark.parametrize("attack", IMAGES, ids=lambda path: path.stem)
def test_import_refuses_a_picture(attack, tmp_path):
    image = pytest.importorskip("PIL.Image")
    from edge_runtime.datasets.importer import ImportSettings, import_folder
    from edge_runtime.datasets.partition import Fractions

    building = tmp_path / "source" / "house"
    building.mkdir(parents=True)
    image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(building / "point_0_view_0_domain_rgb.png")
    shutil.copy(attack, building / "point_0_view_0_domain_depth_zbuffer.png")
    settings = ImportSettings(size=8, tasks=("depth",), fractions=Fractions(val=0, test=0))
    with pytest.raises(DatasetInvalid) as caught:
        import_folder(tmp_path / "source", tmp_path / "out", settings)
    assert "point_0_view_0_domain_depth_zbuffer.png" in str(caught.value)
    assert is_one_sentence(str(caught.value))
    assert not (tmp_path / "out" / "house" / "train").exists()
