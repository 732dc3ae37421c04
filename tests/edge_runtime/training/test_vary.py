import numpy as np
import pytest

from edge_runtime.training.vary import vary
from edge_runtime.wire.augmentation import Augmentation

NOTHING = {"flip": 0.0, "crop": 0, "step": 1, "jitter": 0.0, "strides": {}, "vectors": frozenset()}
HEIGHT, WIDTH = 8, 12


def places(count, stride=1):
    """Arrays (count, 2, H, W) whose elements are the row and the column that they came from, in pixels."""
    rows, columns = np.mgrid[0:HEIGHT:stride, 0:WIDTH:stride].astype(np.float32)
    return np.tile(np.stack([rows, columns]), (count, 1, 1, 1))


def varied(count=50, *, samples=None, seed=1, epoch=2, targets=None, **changes):
    asked = Augmentation(**NOTHING | changes)
    x, targets = places(count), {} if targets is None else targets
    vary(asked, x, targets, list(range(count)) if samples is None else samples, seed=seed, epoch=epoch)
    return x, targets


def test_some_samples_are_mirrored_whole():
    x, _ = varied(flip=0.5)
    plain, mirrored = places(1)[0], places(1)[0][..., ::-1]
    turned = [np.array_equal(sample, mirrored) for sample in x]
    assert 10 < sum(turned) < 40
    for sample, is_turned in zip(x, turned, strict=True):
        np.testing.assert_array_equal(sample, mirrored if is_turned else plain)


def test_samples_are_moved_both_ways_and_their_edges_repeated():
    x, _ = varied(200, crop=2)
    found = set()
    for sample in x:
        down, right = int(sample[0, 3, 5]) - 3, int(sample[1, 3, 5]) - 5
        rows, columns = (
            np.clip(np.arange(HEIGHT) + down, 0, HEIGHT - 1),
            np.clip(np.arange(WIDTH) + right, 0, WIDTH - 1),
        )
        np.testing.assert_array_equal(sample[0], np.tile(rows[:, None], WIDTH))
        np.testing.assert_array_equal(sample[1], np.tile(columns, (HEIGHT, 1)))
        found.add((down, right))
    assert found == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_dense_labels_stay_on_their_pixels(stride):
    x, targets = varied(
        crop=3 // stride * stride,
        step=stride,
        flip=0.5,
        strides={"where": stride, "kind": stride},
        targets={"where": places(50, stride), "kind": places(50, stride)[:, 1].astype(np.int64)},
    )
    labels = targets["where"]
    coarse = x.reshape(50, 2, HEIGHT // stride, stride, WIDTH // stride, stride).min((3, 5))
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # an edge is repeated by elements of its own size
    if stride < 4:
        np.testing.assert_array_equal(labels[inside], coarse[inside])
    np.testing.assert_array_equal(targets["kind"], labels[:, 1])


def test_vectors_are_mirrored_themselves():
    vectors = np.tile(np.array([0.6, 0.0, -0.8], np.float32)[:, None, None], (50, 1, HEIGHT, WIDTH))
    x, targets = varied(flip=0.5, strides={"normals": 1}, vectors=frozenset({"normals"}), targets={"normals": vectors})
    for sample, normals in zip(x, targets["normals"], strict=True):
        is_mirrored = sample[1, 0, 0] > sample[1, 0, -1]
        assert normals[:, 2, 2].tolist() == pytest.approx([-0.6 if is_mirrored else 0.6, 0.0, -0.8])


def test_jitter_changes_images_alone_and_within_its_bounds():
    labels = {"depth": np.ones((50, 1, HEIGHT, WIDTH), np.float32)}
    x, targets = varied(jitter=0.2, strides={"depth": 1}, targets=labels)
    lift, gain = x[:, 0, 0, 0], (x[:, 0, 7, 0] - x[:, 0, 0, 0]) / 7
    assert (np.abs(lift) <= 0.2).all()
    assert (np.abs(gain - 1) <= 0.2 + 1e-6).all()
    assert lift.std() > 0.05
    assert gain.std() > 0.05
    assert (targets["depth"] == 1).all()


def test_sample_is_varied_alike_in_any_batch_and_otherwise_in_another_epoch():
    settings = {"flip": 0.5, "crop": 3, "jitter": 0.1}
    whole, _ = varied(20, **settings)
    part, _ = varied(3, samples=[17, 4, 9], **settings)
    np.testing.assert_array_equal(part, whole[[17, 4, 9]])
    for other in ({"epoch": 3}, {"seed": 2}):
        assert (varied(20, **settings, **other)[0] != whole).any()


def test_what_is_drawn_of_one_kind_does_not_depend_on_the_others():
    np.testing.assert_array_equal(
        varied(flip=0.5, crop=0)[0][:, 1, 0, 0] > 5, varied(flip=0.5, crop=2)[0][:, 1, 0, 0] > 5
    )
