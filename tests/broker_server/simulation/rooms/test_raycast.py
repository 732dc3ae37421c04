import numpy as np
import pytest

from broker_server.simulation.rooms.raycast import cast, lit
from broker_server.simulation.rooms.scene import FloorPlan, Material, build

STUFF = Material(what="table", colour=(0.5, 0.5, 0.5), second=(0.2, 0.2, 0.2))
GLASS = Material(what="lamp", colour=(1, 1, 1), second=(1, 1, 1), solid=False)
SIDE = Material(what="wall", colour=(1, 1, 1), second=(1, 1, 1))


def scene_of(*parts, size=(10.0, 10.0, 10.0)):
    plan = FloorPlan(size=size)
    for kind, *rest in parts:
        getattr(plan, kind)(*rest)
    return build(plan, [SIDE] * 6, (), 0.2)


def rays(*directions):
    return np.array(directions, np.float32)


def at(*place):
    return np.array(place, np.float32)


MIDDLE = at(5, 5, 5)


def test_cast_in_an_empty_room_hits_each_side():
    hits = cast(scene_of(), MIDDLE, rays((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1)))
    assert hits.solid.tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(hits.distance, 5, rtol=1e-5)
    np.testing.assert_allclose(hits.normal[0], [1, 0, 0])
    np.testing.assert_allclose(hits.normal[5], [0, 0, -1])
    assert not hits.curvature.any()


def test_cast_measures_in_lengths_of_the_ray():
    hits = cast(scene_of(), MIDDLE, rays((2, 0, 0)))
    assert hits.distance[0] == pytest.approx(2.5)


def test_cast_at_a_sphere():
    scene = scene_of(("sphere", STUFF, (8.0, 5.0, 5.0), 0.5))
    hits = cast(scene, MIDDLE, rays((1, 0, 0), (-1, 0, 0)))
    assert hits.solid.tolist() == [0, 1]
    assert hits.distance[0] == pytest.approx(2.5)
    np.testing.assert_allclose(hits.normal[0], [-1, 0, 0], atol=1e-5)
    np.testing.assert_allclose(hits.curvature[0], [2, 2])
    assert scene.what[hits.solid].tolist() == [8, 1]


def test_cast_at_a_cylinder_and_its_cap():
    scene = scene_of(("cylinder", STUFF, (8.0, 5.0, 5.0), 0.25, 1.0))
    hits = cast(scene, MIDDLE, rays((1, 0, 0), (1, 0, 0.5)))
    assert hits.distance[0] == pytest.approx(2.75)
    np.testing.assert_allclose(hits.curvature[0], [4, 0])
    assert hits.solid[1] != 0
    above = cast(scene, at(8, 5, 9), rays((0.01, 0, -1)))
    assert above.distance[0] == pytest.approx(3, rel=1e-4)
    np.testing.assert_allclose(above.normal[0], [0, 0, 1])
    assert not above.curvature.any()


def test_cast_at_a_box():
    scene = scene_of(("box", STUFF, (8.0, 5.0, 5.0), (0.5, 1.0, 2.0)))
    hits = cast(scene, MIDDLE, rays((1, 0, 0), (1, 0.5, 0), (1, 0, 0.9)))
    assert hits.solid[0] == 0
    assert hits.distance[0] == pytest.approx(2.5)
    np.testing.assert_allclose(hits.normal[0], [-1, 0, 0])
    assert hits.solid[1] != 0
    assert hits.solid[2] != 0


def test_cast_at_a_turned_box():
    scene = scene_of(("box", STUFF, (8.0, 5.0, 5.0), (1.0, 1.0, 1.0), np.pi / 4))
    hits = cast(scene, MIDDLE, rays((1, 0.001, 0)))
    assert hits.distance[0] == pytest.approx(3 - np.sqrt(2), abs=0.01)
    np.testing.assert_allclose(np.abs(hits.normal[0]), [np.sqrt(0.5), np.sqrt(0.5), 0], atol=1e-5)


def test_cast_hits_the_nearest():
    scene = scene_of(
        ("box", STUFF, (8.0, 5.0, 5.0), (0.5, 1.0, 2.0)),
        ("sphere", STUFF, (6.5, 5.0, 5.0), 0.5),
        ("cylinder", STUFF, (9.0, 5.0, 5.0), 0.25, 1.0),
    )
    hits = cast(scene, MIDDLE, rays((1, 0, 0)))
    assert hits.solid[0] == 2  # boxes, cylinders, spheres


def test_cast_agrees_with_stepping_along_the_ray():
    """The first point inside a solid, found by small steps, is where the ray hits."""
    rng = np.random.default_rng(0)
    scene = scene_of(
        ("box", STUFF, (7.0, 5.5, 5.0), (0.7, 0.4, 0.9), 0.6),
        ("cylinder", STUFF, (4.0, 7.0, 5.0), 0.6, 1.2),
        ("sphere", STUFF, (3.0, 4.0, 5.5), 0.8),
    )
    directions = rng.normal(size=(300, 3)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    hits = cast(scene, MIDDLE, directions)
    steps = np.arange(0.01, 9, 0.01, np.float32)
    points = MIDDLE + steps[:, None, None] * directions  # (steps, N, 3)
    x, y, z = np.moveaxis(points - at(7, 5.5, 5), -1, 0)
    c, s = np.cos(0.6), np.sin(0.6)
    box = (np.abs(c * x + s * y) < 0.7) & (np.abs(c * y - s * x) < 0.4) & (np.abs(z) < 0.9)
    x, y, z = np.moveaxis(points - at(4, 7, 5), -1, 0)
    cylinder = (np.hypot(x, y) < 0.6) & (np.abs(z) < 1.2)
    sphere = np.linalg.norm(points - at(3, 4, 5.5), axis=-1) < 0.8
    outside = ((points < 0) | (points > 10)).any(-1)
    first = steps[np.argmax(box | cylinder | sphere | outside, 0)]
    # A ray that only just grazes a solid may pass between two steps.
    assert (np.abs(first - hits.distance) < 0.011).mean() > 0.98
    lengths = np.linalg.norm(hits.normal, axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-4)
    assert (np.einsum("nk,nk->n", hits.normal, directions) <= 1e-5).all()


def test_lit_is_blocked_by_what_casts_a_shadow():
    light = at(5, 5, 9)
    points = np.array([(5, 5, 0), (1, 1, 0)], np.float32)
    assert lit(scene_of(("box", STUFF, (5.0, 5.0, 4.0), (1.0, 1.0, 0.1))), light, points).tolist() == [False, True]
    assert lit(scene_of(("sphere", STUFF, (5.0, 5.0, 4.0), 1.0)), light, points).tolist() == [False, True]
    assert lit(scene_of(("sphere", GLASS, (5.0, 5.0, 4.0), 1.0)), light, points).tolist() == [True, True]
    assert lit(scene_of(), light, points).tolist() == [True, True]
