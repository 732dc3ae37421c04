import numpy as np
import pytest

pytest.importorskip("PIL")

from broker_server.simulation.rooms.building import DOMAINS
from broker_server.simulation.rooms.camera import aim
from broker_server.simulation.rooms.render import Order, draw_view, render
from broker_server.simulation.rooms.scene import CLASSES, FloorPlan, Material, build
from broker_server.simulation.rooms.style import FURNITURE, PATTERNS, draw_style
from edge_runtime.datasets.taskonomy import CLASSES as CLASS_COUNT
from edge_runtime.datasets.taskonomy import TASKS

pytestmark = pytest.mark.workstation

WHITE = Material(what="wall", colour=(0.8, 0.8, 0.8), second=(0.8, 0.8, 0.8))
BALL = Material(what="ornament", colour=(0.8, 0.1, 0.1), second=(0.8, 0.1, 0.1))
OPENING = Material(what="window", colour=(1, 1, 1), second=(1, 1, 1), glow=2.0, open=True)


def order(building=0, image=0, seed=0, size=24):
    return Order(seed=seed, building=building, image=image, size=size)


def still_life():
    """A ball straight ahead, and an opening behind it to the right."""
    plan = FloorPlan(size=(6.0, 6.0, 3.0))
    plan.sphere(BALL, (3.0, 4.0, 1.5), 0.5)
    plan.box(OPENING, (4.5, 6.0, 1.5), (0.5, 0.02, 0.5))
    scene = build(plan, [WHITE] * 6, (), 0.5)
    camera = aim(np.array((3, 1, 1.5), np.float32), np.array((3, 2, 1.5), np.float32), 0.7)
    return render(scene, camera, np.zeros((33, 33, 3), np.float32))


def test_the_class_list_fits_taskonomys_labels():
    assert len(CLASSES) == CLASS_COUNT
    assert set(FURNITURE) < set(CLASSES)


def test_render_a_still_life():
    view = still_life()
    middle = (16, 16)
    assert CLASSES[view["segment_semantic"][middle]] == "ornament"
    assert view["depth_zbuffer"][middle] == pytest.approx(2.5 * 512, abs=1)
    assert view["normal"][middle].tolist() == [128, 128, 0]  # towards the camera
    assert view["reshading"][middle].tolist() == [255, 255, 255]
    assert view["principal_curvature"][middle].tolist() == [127 + 16, 127 + 16, 127]
    assert view["rgb"][middle][0] > view["rgb"][middle][1]

    wall = (16, 2)
    assert CLASSES[view["segment_semantic"][wall]] == "wall"
    assert view["depth_zbuffer"][wall] == pytest.approx(5 * 512, abs=1)
    assert view["principal_curvature"][wall].tolist() == [127, 127, 127]

    up = view["normal"][32, 16]  # the floor faces up, which is -y in the image
    assert up[1] == 0
    down = view["normal"][0, 16]
    assert down[1] == 255


def test_render_leaves_openings_without_depth():
    view = still_life()
    invalid = view["depth_zbuffer"] == 65535
    assert invalid.any()
    assert {CLASSES[number] for number in np.unique(view["segment_semantic"][invalid])} <= {"window", "not labelled"}
    assert (view["normal"][invalid] == 128).all()
    assert np.nonzero(invalid)[1].min() > 16


def test_render_depth_is_along_the_axis():
    """A wall square to the axis has one depth over the whole image: a z-buffer, not distances."""
    scene = build(FloorPlan(size=(6.0, 6.0, 3.0)), [WHITE] * 6, (), 0.5)
    camera = aim(np.array((3, 3, 1.5), np.float32), np.array((3, 4, 1.5), np.float32), 0.3)
    depth = render(scene, camera, np.zeros((16, 16, 3), np.float32))["depth_zbuffer"]
    assert (np.abs(depth.astype(int) - 3 * 512) <= 1).all()


def test_draw_view_has_every_domain_in_its_encoding():
    view = draw_view(order())
    assert set(view) == set(DOMAINS)
    for domain, pixels in view.items():
        assert pixels.shape[:2] == (24, 24)
        wide = domain in {"depth_zbuffer", "keypoints2d", "edge_texture", "edge_occlusion"}
        assert pixels.dtype == (np.uint16 if wide else np.uint8)
    assert view["segment_semantic"].max() < CLASS_COUNT
    assert {source.domain for task, source in TASKS.items() if task != "keypoints3d"} == set(DOMAINS)


def test_draw_view_is_the_same_every_time():
    one, again = draw_view(order(image=3)), draw_view(order(image=3))
    assert all((one[domain] == again[domain]).all() for domain in DOMAINS)


@pytest.mark.parametrize("other", [order(building=1), order(image=1), order(image=2), order(seed=1)])
def test_draw_view_is_another_for_other_numbers(other):
    assert (draw_view(order())["rgb"] != draw_view(other)["rgb"]).any()


def test_two_views_of_a_point_are_of_one_room():
    assert order(image=6).point == order(image=7).point == 3
    assert (order(image=6).view, order(image=7).view) == (0, 1)


@pytest.mark.slow
def test_labels_have_typical_values_of_order_one():
    views = [draw_view(order(building=building, image=image)) for building in range(4) for image in range(0, 12, 2)]
    for task, source in TASKS.items():
        if source.domain not in DOMAINS or task in {"segmentation", "autoencoder"}:
            continue
        values = np.stack([source.decode(view[source.domain], source.scale) for view in views])
        assert 0.05 < np.abs(values - np.median(values)).mean() < 1 or task == "principal_curvature"
        assert np.abs(values).max() < 20
    classes = np.stack([view["segment_semantic"] for view in views])
    assert len(np.unique(classes)) > 12
    assert (classes == 0).mean() < 0.25


def test_styles_of_buildings_differ():
    styles = [draw_style(0, building) for building in range(8)]
    assert len({style.wall for style in styles}) == 8
    for style in styles:
        assert sum(style.furniture) == pytest.approx(1)
        assert style.wall_pattern in PATTERNS
        assert style.floor_pattern in PATTERNS
    assert draw_style(0, 3) == styles[3]
    assert draw_style(1, 3) != styles[3]


@pytest.mark.parametrize("building", range(12))
def test_many_rooms_can_be_drawn(building):
    with np.errstate(divide="raise", invalid="raise"):
        for image in range(0, 10, 2):
            view = draw_view(order(building=building, image=image, seed=99, size=16))
            assert view["depth_zbuffer"].min() > 0.2 * 512
            assert view["rgb"].std() > 5
