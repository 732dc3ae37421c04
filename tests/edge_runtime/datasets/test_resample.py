import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.datasets.resample import nearest, resample, shares, unit_length


@given(st.integers(1, 60), st.integers(1, 60))
def test_shares_cover_every_pixel_evenly(length, size):
    table = shares(length, size)
    np.testing.assert_allclose(table.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(table.sum(0), size / length, rtol=1e-5)
    assert nearest(length, size).max() < length


def test_resample_means_over_areas():
    values = np.arange(32, dtype=np.float32).reshape(2, 4, 4)
    np.testing.assert_allclose(resample(values, 2), values.reshape(2, 2, 2, 2, 2).mean((2, 4)))


def test_resample_by_a_fraction_keeps_the_mean():
    values = np.random.default_rng(0).random((1, 7, 7)).astype(np.float32)
    assert resample(values, 3).mean() == pytest.approx(values.mean(), rel=1e-5)


def test_resample_leaves_out_what_has_no_label():
    values = np.array([[[np.nan, 2.0], [4.0, 6.0]]], np.float32)
    np.testing.assert_allclose(resample(values, 1), [[[4.0]]])  # the nearest pixel is the 6
    values = np.array([[[1.0, 2.0], [4.0, np.nan]]], np.float32)
    assert np.isnan(resample(values, 1)).all()


def test_resample_of_an_image_rounds():
    image = np.array([[[0, 255], [255, 255]]], np.uint8)
    result = resample(image, 1)
    assert result.dtype == np.uint8
    assert result.item() == 191


def test_resample_of_classes_invents_none():
    classes = np.array([[1, 9, 1], [9, 1, 9], [1, 9, 17]], np.uint8)
    assert set(np.unique(resample(classes, 2))) <= {1, 9, 17}


def test_resample_to_the_same_size_is_a_copy():
    image = np.zeros((3, 4, 4), np.uint8)
    same = resample(image, 4)
    np.testing.assert_array_equal(same, image)
    assert not np.shares_memory(same, image)


def test_unit_length():
    vectors = np.array([[3.0, 0.01, np.nan], [0.0, 0.0, np.nan], [4.0, 0.0, np.nan]], np.float32)
    result = unit_length(vectors)
    np.testing.assert_allclose(result[:, 0], [0.6, 0, 0.8], rtol=1e-6)
    assert np.isnan(result[:, 1:]).all()
