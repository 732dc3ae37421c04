import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")

from edge_runtime.datasets import taskonomy  # noqa: E402
from edge_runtime.datasets.dataset import DatasetInvalid  # noqa: E402
from edge_runtime.datasets.taskonomy import TASKS, View, file_name, find_views, read_view, write_pixels  # noqa: E402

pytestmark = pytest.mark.workstation


def view_in(folder, **pixels):
    files = {}
    for domain, array in {"rgb": np.full((4, 4, 3), 9, np.uint8), **pixels}.items():
        files[domain] = folder / file_name(1, 2, domain)
        write_pixels(files[domain], array)
    return View(building="house", point=1, view=2, files=files)


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_find_views_in_every_layout(tmp_path):
    touch(tmp_path / "alpha" / file_name(0, 0, "rgb"))
    touch(tmp_path / "alpha" / "part" / file_name(0, 0, "normal"))
    touch(tmp_path / "beta" / "rgb" / file_name(7, 1, "rgb"))
    touch(tmp_path / "rgb" / "gamma" / file_name(3, 0, "rgb"))
    touch(tmp_path / "segment_semantic" / "gamma" / file_name(3, 0, "segmentsemantic"))
    touch(tmp_path / "gamma" / "thumbnail.png")
    found = find_views(tmp_path)
    assert list(found) == ["alpha", "beta", "gamma"]
    assert found["alpha"][0].name == "point_0_view_0"
    assert set(found["alpha"][0].files) == {"rgb", "normal"}
    assert set(found["gamma"][0].files) == {"rgb", "segment_semantic"}


def test_find_views_orders_by_number(tmp_path):
    for point in (10, 9, 100):
        touch(tmp_path / "house" / file_name(point, 0, "rgb"))
    assert [view.point for view in find_views(tmp_path)["house"]] == [9, 10, 100]


def test_find_views_of_one_building_given_itself(tmp_path):
    touch(tmp_path / "house" / file_name(0, 0, "rgb"))
    assert list(find_views(tmp_path / "house")) == ["house"]


def test_find_views_finds_none(tmp_path):
    with pytest.raises(DatasetInvalid, match="holds no file named point_"):
        find_views(tmp_path)


def test_find_views_twice(tmp_path):
    touch(tmp_path / "house" / file_name(0, 0, "rgb"))
    touch(tmp_path / "house" / "again" / file_name(0, 0, "rgb"))
    with pytest.raises(DatasetInvalid, match="is a second file for the domain of"):
        find_views(tmp_path)


def test_read_view_of_every_task(tmp_path):
    deep = np.full((4, 4), 1024, np.uint16)
    deep[0, 0] = 65535
    flat = np.full((4, 4, 3), 127, np.uint8)
    curved = flat.copy()
    curved[..., 0] = 159
    view = view_in(
        tmp_path,
        depth_zbuffer=deep,
        segment_semantic=np.full((4, 4), 17, np.uint8),
        normal=np.array([255, 0, 128], np.uint8) + np.zeros((4, 4, 3), np.uint8),
        keypoints2d=np.full((4, 4), 1000, np.uint16),
        keypoints3d=np.full((4, 4), 1000, np.uint16),
        edge_texture=np.full((4, 4), 1000, np.uint16),
        edge_occlusion=np.full((4, 4), 1000, np.uint16),
        reshading=np.full((4, 4, 3), 51, np.uint8),
        principal_curvature=curved,
    )
    image, labels = read_view(view, tuple(TASKS))
    assert image.shape == (3, 4, 4)
    assert image.dtype == np.uint8
    values = {task: label[..., 1, 1].ravel().tolist() for task, label in labels.items()}
    assert values["autoencoder"] == [9, 9, 9]
    assert values["segmentation"] == [17]
    assert values["depth"] == pytest.approx([np.log(3)])
    assert values["normals"] == pytest.approx([1, -1, 0], abs=0.005)
    assert values["keypoints"] == pytest.approx([32000 / 65535])
    assert values["keypoints3d"] == pytest.approx([8000 / 65535])
    assert values["edge_texture"] == pytest.approx([8000 / 65535])
    assert values["edge_occlusion"] == pytest.approx([16000 / 65535])
    assert values["reshading"] == pytest.approx([0.2])
    assert values["principal_curvature"] == pytest.approx([1, 0])
    for task, label in labels.items():
        if label.dtype == np.float32:
            assert np.isnan(label[:, 0, 0]).all() == TASKS[task].masked
            assert np.isfinite(label[:, 1:]).all()
        else:
            assert task in {"segmentation", "autoencoder"}


def test_read_view_without_a_domain(tmp_path):
    view = view_in(tmp_path)
    with pytest.raises(DatasetInvalid, match=r"point_1_view_2_domain_depth_zbuffer\.png is missing"):
        read_view(view, ("depth",))


def test_read_view_of_a_file_that_went_away(tmp_path):
    view = view_in(tmp_path)
    view.files["rgb"].unlink()
    with pytest.raises(DatasetInvalid, match=r"domain_rgb\.png is missing"):
        read_view(view, ())


def test_read_view_of_another_size(tmp_path):
    view = view_in(tmp_path, edge_texture=np.zeros((4, 5), np.uint16))
    with pytest.raises(DatasetInvalid, match=r"edge_texture\.png is 5x4 pixels, the view's rgb is 4x4"):
        read_view(view, ("edge_texture",))


def test_read_view_of_a_class_that_is_not_there(tmp_path):
    view = view_in(tmp_path, segment_semantic=np.full((4, 4), 18, np.uint8))
    with pytest.raises(DatasetInvalid, match=r"segment_semantic\.png has class 18, the last one is 17"):
        read_view(view, ("segmentation",))


def test_grey_reshading_is_read(tmp_path):
    view = view_in(tmp_path, reshading=np.full((4, 4), 255, np.uint8), depth_zbuffer=np.zeros((4, 4), np.uint16))
    _, labels = read_view(view, ("reshading",))
    assert (labels["reshading"] == 1).all()


def test_encodings_are_decoded_to_what_went_in():
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.3, 20, (5, 5)).astype(np.float32)
    depth[0, 0] = np.nan
    pixels = taskonomy.encode_depth(depth)
    assert pixels[0, 0] == 65535
    np.testing.assert_allclose(np.expm1(TASKS["depth"].decode(pixels, ""))[0, 1:], depth[1:], atol=1 / 512)
    assert taskonomy.encode_depth(np.array([1000.0], np.float32)) == 65534

    normals = rng.normal(size=(5, 5, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    decoded = TASKS["normals"].decode(taskonomy.encode_normals(normals), "")
    np.testing.assert_allclose(decoded.transpose(1, 2, 0), normals, atol=1 / 255 + 1e-6)

    curvature = rng.uniform(0, 10, (5, 5, 2)).astype(np.float32)
    decoded = TASKS["principal_curvature"].decode(taskonomy.encode_curvature(curvature), "")
    np.testing.assert_allclose(4 * decoded.transpose(1, 2, 0), curvature, atol=1 / 16 + 1e-6)

    response = rng.random((5, 5)).astype(np.float32)
    decoded = TASKS["edge_texture"].decode(taskonomy.encode_response(response), 8.0)
    np.testing.assert_allclose(decoded[0] / 8, response, atol=1e-5)
