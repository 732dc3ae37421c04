import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.datasets.dataset import SPLITS
from edge_runtime.datasets.partition import Fractions, PartitionImpossible, corners, draw_corners, regions, split_keys


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.1), (0.1, -0.1), (0.5, 0.5), (float("nan"), 0.1)])
def test_fractions_that_leave_nothing(val, test):
    with pytest.raises(PartitionImpossible, match="leave some to train on"):
        Fractions(val=val, test=test)


def test_fractions_counts():
    assert Fractions().counts(100, "points") == (70, 15, 15)
    assert Fractions().counts(3, "points") == (1, 1, 1)
    assert Fractions(val=0, test=0).counts(1, "points") == (1, 0, 0)
    with pytest.raises(PartitionImpossible, match=r"the points are too few \(2\)"):
        Fractions().counts(2, "the points")


@given(st.integers(3, 60), st.integers(0, 2**32))
def test_split_keys_puts_each_key_in_one_set(total, seed):
    sets = split_keys(range(total), Fractions(), "points", generator(seed))
    assert set(sets) == set(range(total))
    assert set(sets.values()) == set(SPLITS)
    assert sets == split_keys(range(total), Fractions(), "points", generator(seed))


@pytest.mark.slow
@given(st.integers(20, 90), st.integers(20, 90), st.integers(4, 10), st.integers(0, 2**32))
@example(20, 20, 10, 0)  # four whole crops, two of them to train on
def test_draw_corners_shares_no_pixel_between_sets(height, width, side, seed):
    labels = regions((height, width), side, Fractions(val=0.2, test=0.2), "view", generator(seed))
    assert labels.shape == (height, width)
    if len(corners(labels, 0, side)) < 3:
        with pytest.raises(PartitionImpossible, match="in train, not for 3"):
            draw_corners(labels, side, (3, 1, 1), "view", generator(seed))
        return
    drawn = draw_corners(labels, side, (3, 1, 1), "view", generator(seed))
    covered = {}
    for name, places in drawn.items():
        covered[name] = np.zeros((height, width), bool)
        assert len({tuple(place) for place in places}) == len(places)
        for row, column in places:
            assert row + side <= height
            assert column + side <= width
            covered[name][row : row + side, column : column + side] = True
    assert not (covered["train"] & covered["val"]).any()
    assert not (covered["train"] & covered["test"]).any()
    assert not (covered["val"] & covered["test"]).any()


def test_corners_against_looking_at_every_pixel():
    labels = generator(3).integers(0, 2, (12, 12)).astype(np.uint8)
    labels[2:8, 3:9] = 1
    found = {tuple(place) for place in corners(labels, 1, 4)}
    assert found == {(r, c) for r in range(9) for c in range(9) if (labels[r : r + 4, c : c + 4] == 1).all()}
    assert found


def test_regions_without_room():
    with pytest.raises(PartitionImpossible, match=r"crops of 32 pixels in view are too few \(1\)"):
        regions((40, 40), 32, Fractions(), "view", generator())


def test_draw_corners_without_room():
    labels = np.zeros((10, 10), np.uint8)
    with pytest.raises(
        PartitionImpossible, match="view has room for 9 different crops of 8 pixels in train, not for 10"
    ):
        draw_corners(labels, 8, (10, 0, 0), "view", generator())
    assert list(draw_corners(labels, 8, (9, 0, 0), "view", generator())) == ["train"]
