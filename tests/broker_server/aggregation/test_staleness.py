import numpy as np
import pytest

from broker_server.aggregation.fedavg import FedAvg
from broker_server.aggregation.staleness import rebased, shares, variance
from edge_runtime.wire.errors import TensorsInvalid
from edge_runtime.wire.tensors import TensorTable

TABLE = TensorTable.of({"encoder.w": (3,), "head.a.w": (2,), "state.encoder.var": (2,)})


def vector(*numbers):
    return np.array(numbers, np.float32)


def test_shares_fall_with_age_as_fedbuffs():
    assert shares("sqrt", [0, 3, 8], []) == [1.0, 0.5, pytest.approx(1 / 3)]
    assert shares("none", [0, 3, 8], []) == [1.0, 1.0, 1.0]
    assert shares("ftte", [], []) == []


def test_shares_of_ftte_fall_with_a_variance_above_the_mean():
    assert shares("ftte", [0, 0, 3], [1.0, 3.0, 2.0]) == [1.0, pytest.approx(2 / 3), 0.5]
    assert shares("ftte", [0, 3], [0.0, 0.0]) == [1.0, 0.5]


def test_variance_is_of_the_change_of_parameters():
    base = vector(1, 1, 1, 1, 1, 7, 7)
    assert variance(TABLE, base, base) == 0.0
    assert variance(TABLE, base, vector(2, 2, 2, 2, 2, 0, 0)) == 0.0  # all by the same, and state is left out
    assert variance(TABLE, base, vector(1, 2, 3, 4, 5, 7, 7)) == 2.0


def test_a_change_is_made_to_the_newest_weights_by_its_share():
    base, trained = vector(0, 0, 0, 1, 1, 1, 1), vector(2, -2, 0, 3, 1, 9, 1)
    newest = vector(10, 10, 10, 20, 20, 5, 5)
    moved = rebased(TABLE, trained, base=base, newest=newest, share=0.5)
    np.testing.assert_array_equal(moved[:5], vector(11, 9, 10, 21, 20))
    np.testing.assert_array_equal(moved[5:], vector(7, 3))  # half of the way from 5 to 9, and from 5 to 1
    assert moved.dtype == np.float32
    with pytest.raises(TensorsInvalid):
        rebased(TABLE, trained[:3], base=base, newest=newest, share=0.5)


def test_running_statistics_stay_positive_though_their_change_would_not():
    stale = rebased(
        TABLE, vector(0, 0, 0, 0, 0, 0.1, 1), base=vector(0, 0, 0, 0, 0, 8, 1), newest=vector(*[0.5] * 7), share=1.0
    )
    assert stale[5] == np.float32(0.1)


def test_the_mean_step_is_fedbuffs():
    random = np.random.default_rng(0)
    newest = random.standard_normal(7).astype(np.float32)
    bases = random.standard_normal((3, 7)).astype(np.float32)
    changes = random.standard_normal((3, 7)).astype(np.float32)
    weights, share = [10, 30, 60], [1.0, 0.5, 0.25]
    mean = FedAvg(TABLE)
    for base, change, examples, each in zip(bases, changes, weights, share, strict=True):
        mean.fold(rebased(TABLE, base + change, base=base, newest=newest, share=each), {"a": examples})
    expected = newest + sum(w * s * c for w, s, c in zip(weights, share, changes, strict=True)) / 100
    np.testing.assert_allclose(mean.result(newest)[:5], expected[:5], rtol=1e-5, atol=1e-6)
