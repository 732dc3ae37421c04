import numpy as np
import pytest

from broker_server.simulation.rooms import truth


def checker(size=16, cell=4):
    cells = np.arange(size) // cell
    return ((cells[:, None] + cells[None]) % 2).astype(np.float32)


def test_sobel_of_a_ramp_is_its_slope():
    ramp = np.tile(np.arange(8, dtype=np.float32), (6, 1))
    x, y = truth.sobel(ramp)
    np.testing.assert_allclose(x[:, 1:-1], 1)
    np.testing.assert_allclose(y, 0)


def test_grey_weighs_green_most():
    image = np.zeros((1, 3, 3), np.uint8)
    image[0, [0, 1, 2], [0, 1, 2]] = 255
    np.testing.assert_allclose(truth.grey(image)[0], truth.LUMA, rtol=1e-6)
    assert truth.grey(np.full((1, 1, 3), 255, np.uint8)).item() == pytest.approx(1)


def test_edge_texture_is_on_edges_only():
    image = np.zeros((8, 8), np.float32)
    image[:, 4:] = 1
    edges = truth.edge_texture(image)
    assert (edges[:, 3:5] > 0.5).all()
    assert not edges[:, :3].any()
    assert edges.max() <= 1


def test_edge_occlusion_does_not_depend_on_the_unit_of_length():
    depth = np.ones((8, 8), np.float32)
    depth[:, 4:] = 3
    np.testing.assert_allclose(truth.edge_occlusion(depth), truth.edge_occlusion(7 * depth), atol=1e-6)
    assert truth.edge_occlusion(depth)[:, 4].min() > 0.1
    assert not truth.edge_occlusion(depth)[:, :3].any()


def test_keypoints_prefer_corners_to_edges():
    image = np.zeros((16, 16), np.float32)
    image[8:, 8:] = 1
    response = truth.keypoints(image)
    assert np.unravel_index(response.argmax(), response.shape) in {(7, 7), (7, 8), (8, 7), (8, 8)}
    assert response[14, 8] < 0.1 * response.max()  # on an edge, far from the corner
    assert response[2, 2] == 0
    assert (truth.keypoints(checker()) > 0).any()


def test_reshading_is_brightest_where_a_surface_faces_the_camera():
    normals = np.array([[(0, 0, -1), (0, 0.6, -0.8), (0, 1, 0), (0, 0, 1)]], np.float32)
    rays = np.tile(np.array((0, 0, 2), np.float32), (1, 4, 1))
    np.testing.assert_allclose(truth.reshading(normals, rays), [[1, 0.8, 0, 0]], atol=1e-6)
