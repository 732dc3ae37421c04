import numpy as np
import pytest

from broker_server.aggregation import covariance


def test_covariance_of_nothing_is_that_of_unrelated_tasks():
    np.testing.assert_array_equal(covariance.covariance(np.zeros((3, 2))), np.eye(3) / 3)


def test_covariance_has_trace_1_and_a_floor():
    w = np.outer([1.0, 2.0, -1.0], [1.0, 0.5])
    sigma = covariance.covariance(w)
    assert np.trace(sigma) == pytest.approx(1)
    values = np.linalg.eigvalsh(sigma)
    assert values[0] > 0.005 * values[-1]
    assert sigma[0, 1] > 0 > sigma[0, 2]


def test_penalty_and_misfit_are_0_where_nothing_is_wrong():
    rng = np.random.default_rng(1)
    b, sigma = rng.normal(size=(3, 4)), covariance.covariance(rng.normal(size=(3, 4)))
    w = covariance.weights(b, sigma, 0.1)
    assert covariance.misfit(w, b, sigma, 0.1) == pytest.approx(0, abs=1e-12)
    assert covariance.misfit(w + 0.1, b, sigma, 0.1) > 0
    assert covariance.penalty(w, sigma, 0.1) == pytest.approx(0.05 * np.trace(w.T @ np.linalg.inv(sigma) @ w))


def test_extended_relations_keep_those_that_were_known():
    sigma = np.array([[0.6, 0.1], [0.1, 0.4]])
    grown = covariance.extended(sigma, ["b", "d"], ["a", "b", "c", "d"])
    assert np.trace(grown) == pytest.approx(1)
    np.testing.assert_allclose(grown[np.ix_([1, 3], [1, 3])], sigma / 2)
    assert grown[0, 0] == grown[2, 2] == 0.25
    assert np.count_nonzero(grown) == 6
