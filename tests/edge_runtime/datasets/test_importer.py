from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")

from devices.cli.run import UsageError  # noqa: E402
from edge_runtime.datasets.dataset import Dataset, DatasetInvalid  # noqa: E402
from edge_runtime.datasets.importer import ImportSettings, import_folder  # noqa: E402
from edge_runtime.datasets.partition import Fractions, PartitionImpossible  # noqa: E402
from edge_runtime.datasets.taskonomy import file_name, write_pixels  # noqa: E402

pytestmark = pytest.mark.workstation

SAMPLE = Path(__file__).parents[3].parent / "shared" / "data" / "omnidata_sample"


def coordinates(side):
    """An image in which each pixel says where it is, and depth and texture that say so too."""
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    rgb = np.stack([rows, columns, np.zeros_like(rows)], 2).astype(np.uint8)
    return rgb, (rows * side + columns).astype(np.uint16)


def write_view(folder, point, view, side=8, value=0, domains=("depth_zbuffer", "edge_texture")):
    folder.mkdir(parents=True, exist_ok=True)
    rgb, place = coordinates(side)
    rgb[..., 2] = value
    write_pixels(folder / file_name(point, view, "rgb"), rgb)
    for domain in domains:
        write_pixels(folder / file_name(point, view, domain), place)


def values(split):
    return {int(value) for value in split.inputs["image"][:, 2, 0, 0]}


def test_import_keeps_a_points_views_in_one_set(tmp_path):
    for point in range(10):
        for view in range(2):
            write_view(tmp_path / "source" / "house", point, view, value=point)
    (done,) = import_folder(
        tmp_path / "source", tmp_path / "out", ImportSettings(size=8, fractions=Fractions(val=0.2, test=0.2))
    )
    assert done.counts == {"train": 12, "val": 4, "test": 4}
    assert done.tasks == ("autoencoder", "depth", "edge_texture")
    dataset = Dataset.open(done.folder)
    sets = [values(dataset.train), values(dataset.val), values(dataset.test)]
    assert [len(one) for one in sets] == [6, 2, 2]
    assert set.union(*sets) == set(range(10))
    assert dataset.description.name == "house"
    assert dataset.description.counts == done.counts
    assert dataset.description.scales["edge_texture"] == 8.0
    np.testing.assert_array_equal(dataset.train.labels["autoencoder"], dataset.train.inputs["image"])


def test_import_resizes_by_areas(tmp_path):
    write_view(tmp_path / "source" / "house", 0, 0, side=8)
    settings = ImportSettings(size=4, tasks=("depth",), fractions=Fractions(val=0, test=0))
    (done,) = import_folder(tmp_path / "source", tmp_path / "out", settings)
    train = Dataset.open(done.folder).train
    assert train.inputs["image"].shape == (1, 3, 4, 4)
    assert train.labels["depth"].shape == (1, 1, 4, 4)
    assert train.inputs["image"][0, 0, :, 0].tolist() == [0, 2, 4, 6]  # the means 0.5, 2.5, … rounded to even


def test_import_takes_the_square_in_the_middle(tmp_path):
    folder = tmp_path / "source" / "house"
    folder.mkdir(parents=True)
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200
    write_pixels(folder / file_name(0, 0, "rgb"), wide)
    (done,) = import_folder(
        tmp_path / "source", tmp_path / "out", ImportSettings(size=2, fractions=Fractions(val=0, test=0))
    )
    assert (Dataset.open(done.folder).train.inputs["image"] == 200).all()


def test_import_brings_normals_to_length_one(tmp_path):
    folder = tmp_path / "source" / "house"
    write_view(folder, 0, 0, side=4)
    normal = np.full((4, 4, 3), 127, np.uint8)
    normal[..., :2][::2, ::2] = (255, 127)
    normal[..., 2] = 40
    write_pixels(folder / file_name(0, 0, "normal"), normal)
    settings = ImportSettings(size=2, tasks=("normals",), fractions=Fractions(val=0, test=0))
    (done,) = import_folder(tmp_path / "source", tmp_path / "out", settings)
    lengths = np.linalg.norm(Dataset.open(done.folder).train.labels["normals"], axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def test_import_of_crops_shares_no_pixel_between_sets(tmp_path):
    for view in range(2):
        write_view(tmp_path / "source" / "house", 0, view, side=64, value=view)
    settings = ImportSettings(size=8, crops=40, fractions=Fractions(val=0.2, test=0.2))
    (done,) = import_folder(tmp_path / "source", tmp_path / "out", settings)
    assert done.counts == {"train": 48, "val": 16, "test": 16}
    dataset = Dataset.open(done.folder)
    seen = {}
    for name, split in dataset.splits.items():
        rows, columns, views = (split.inputs["image"][:, channel].ravel().tolist() for channel in range(3))
        seen[name] = set(zip(rows, columns, views, strict=True))
        place = np.expm1(split.labels["depth"][:, 0]) * 512  # a crop's labels are those of its pixels
        np.testing.assert_allclose(place, split.inputs["image"][:, 0] * 64.0 + split.inputs["image"][:, 1], atol=0.1)
    assert not seen["train"] & seen["val"]
    assert not seen["train"] & seen["test"]
    assert not seen["val"] & seen["test"]


def test_import_is_the_same_every_time_and_with_other_buildings(tmp_path):
    for house in ("a", "b"):
        write_view(tmp_path / "source" / house, 0, 0, side=48)
    settings = ImportSettings(size=8, crops=12, seed=3)
    import_folder(tmp_path / "source", tmp_path / "both", settings)
    import_folder(tmp_path / "source" / "a", tmp_path / "one", settings)
    for name in ("train", "val", "test"):
        both, one = ((tmp_path / out / "a" / name / "image.npy").read_bytes() for out in ("both", "one"))
        assert both == one
    other = ImportSettings(size=8, crops=12, seed=4)
    import_folder(tmp_path / "source" / "a", tmp_path / "other", other)
    assert (tmp_path / "other" / "a" / "train" / "image.npy").read_bytes() != (
        tmp_path / "one" / "a" / "train" / "image.npy"
    ).read_bytes()


def test_import_again_replaces_what_was_there(tmp_path):
    for point in range(4):
        write_view(tmp_path / "source" / "house", point, 0)
    import_folder(tmp_path / "source", tmp_path / "out", ImportSettings(size=8))
    import_folder(
        tmp_path / "source",
        tmp_path / "out",
        ImportSettings(size=4, tasks=("depth",), fractions=Fractions(val=0, test=0)),
    )
    dataset = Dataset.open(tmp_path / "out" / "house")
    assert dataset.tasks == ("depth",)
    assert dataset.val is None
    assert len(dataset.train) == 4


def test_import_takes_the_tasks_that_all_views_have(tmp_path):
    write_view(tmp_path / "source" / "a", 0, 0, domains=("depth_zbuffer", "edge_texture"))
    write_view(tmp_path / "source" / "b", 0, 0, domains=("edge_texture", "reshading", "segment_unsup25d"))
    done = import_folder(
        tmp_path / "source", tmp_path / "out", ImportSettings(size=8, fractions=Fractions(val=0, test=0))
    )
    assert [one.tasks for one in done] == [("autoencoder", "edge_texture")] * 2


def test_import_of_a_view_without_an_image(tmp_path):
    folder = tmp_path / "source" / "house"
    write_view(folder, 0, 0)
    (folder / file_name(0, 0, "rgb")).unlink()
    with pytest.raises(DatasetInvalid, match=r"point_0_view_0_domain_rgb\.png is missing"):
        import_folder(tmp_path / "source", tmp_path / "out", ImportSettings(size=8, fractions=Fractions(val=0, test=0)))


def test_import_names_a_missing_domain(tmp_path):
    folder = tmp_path / "source" / "house"
    for point in range(3):
        write_view(folder, point, 0)
    missing = folder / file_name(1, 0, "depth_zbuffer")
    missing.unlink()
    with pytest.raises(DatasetInvalid, match=str(missing)):
        import_folder(tmp_path / "source", tmp_path / "out", ImportSettings(size=8, tasks=("depth",)))


def test_import_without_any_task(tmp_path):
    folder = tmp_path / "source" / "house"
    write_view(folder, 0, 0, domains=("segment_unsup25d",))
    (folder / file_name(0, 0, "rgb")).unlink()
    with pytest.raises(DatasetInvalid, match="no task has its domains in every view"):
        import_folder(tmp_path / "source", tmp_path / "out", ImportSettings(size=8))


def test_import_of_views_that_are_too_small(tmp_path):
    write_view(tmp_path / "source" / "house", 0, 0, side=8)
    with pytest.raises(DatasetInvalid, match=r"rgb\.png is 8x8 pixels, less than the 16"):
        import_folder(tmp_path / "source", tmp_path / "out", ImportSettings(size=16, crops=4))


def test_import_of_too_few_points(tmp_path):
    write_view(tmp_path / "source" / "house", 0, 0)
    with pytest.raises(PartitionImpossible, match=r"the points of house are too few \(1\)"):
        import_folder(tmp_path / "source", tmp_path / "out", ImportSettings(size=8))


def test_import_of_no_folder(tmp_path):
    with pytest.raises(DatasetInvalid, match="is not a folder"):
        import_folder(tmp_path / "nowhere", tmp_path / "out", ImportSettings())


def test_import_reports_progress(tmp_path):
    for point in range(3):
        write_view(tmp_path / "source" / "house", point, 0)
    told = []
    import_folder(tmp_path / "source", tmp_path / "out", ImportSettings(size=8), lambda *said: told.append(said))
    assert told == [("house", 1, 3), ("house", 2, 3), ("house", 3, 3)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"size": 0}, "pixels a side"),
        ({"size": 4096}, "pixels a side"),
        ({"crops": 0}, "one crop or more"),
        ({"seed": -1}, "0 or more"),
        ({"tasks": ()}, "no task is named"),
        ({"tasks": ("depth", "segment_unsup25d")}, "'segment_unsup25d' is no task"),
    ],
)
def test_settings_that_make_no_sense(wrong, said):
    with pytest.raises(UsageError, match=said):
        ImportSettings(**wrong)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the real views are not beside this repository")
def test_import_of_real_views(tmp_path):
    done = import_folder(SAMPLE, tmp_path, ImportSettings(size=32, crops=20))
    assert len(done) == 4
    for one in done:
        dataset = Dataset.open(one.folder)
        assert set(dataset.tasks) == {
            "autoencoder",
            "depth",
            "edge_occlusion",
            "edge_texture",
            "keypoints3d",
            "normals",
            "reshading",
        }
        assert one.counts == {"train": 14, "val": 3, "test": 3}
        depth_m = np.expm1(dataset.train.labels["depth"])
        assert 0.5 < np.nanmedian(depth_m) < 128
        lengths = np.linalg.norm(dataset.train.labels["normals"], axis=1)
        assert np.nanmedian(lengths) == pytest.approx(1, abs=0.02)
        for task in ("edge_texture", "edge_occlusion", "keypoints3d", "reshading"):
            assert 0.01 < np.nanstd(dataset.train.labels[task]) < 1.5
