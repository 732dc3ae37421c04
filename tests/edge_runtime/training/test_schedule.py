import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.training.schedule import batch_count, batches, learning_rate, order


@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 1000), samples=st.integers(1, 300))
def test_order_is_a_permutation_that_its_arguments_fix(seed, epoch, samples):
    indices = order(seed, epoch, samples)
    assert sorted(indices.tolist()) == list(range(samples))
    assert (indices == order(seed, epoch, samples)).all()


def test_order_differs_by_epoch_and_seed():
    orders = [order(seed, epoch, 50).tolist() for seed in range(3) for epoch in range(3)]
    assert len({tuple(indices) for indices in orders}) == 9


@given(samples=st.integers(1, 300), batch=st.integers(1, 64))
def test_batches_cover_every_sample_in_order(samples, batch):
    indices = np.arange(samples)
    found = list(batches(indices, batch))
    assert np.concatenate(found).tolist() == indices.tolist()
    assert len(found) == batch_count(samples, batch)
    assert all(len(part) == batch for part in found[:-1])
    assert 0 < len(found[-1]) <= batch


def test_learning_rate_begins_at_its_initial_value_and_falls_to_nothing():
    rates = [learning_rate(0.1, epoch, 20) for epoch in range(21)]
    assert rates[0] == 0.1
    assert rates == sorted(rates, reverse=True)
    assert rates[10] == pytest.approx(0.1 * 0.5**0.9)
    assert rates[19] > 0
    assert rates[20] == 0


@given(st.integers(0, 2**32), st.integers(0, 50), st.integers(1, 300))
def test_order_is_numpys_permutation(seed, epoch, samples):
    wanted = np.random.default_rng([seed, epoch]).permutation(samples)
    assert order(seed, epoch, samples).tolist() == wanted.tolist()
