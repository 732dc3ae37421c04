import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.grouping.affinity import AffinityLedger
from edge_runtime.wire.messages import Affinity


def affinity(mean, *, tasks=("a", "b"), count=1, variance=None):
    return Affinity(tasks=tasks, count=count, mean=mean, variance=variance)


def test_ledger_averages_devices_unweighted_then_rounds():
    ledger = AffinityLedger(("a", "b"))
    ledger.add(0, "x", affinity(((1.0, -2.0), (3.0, 4.0)), count=100))
    ledger.add(0, "y", affinity(((3.0, -4.0), (5.0, 6.0)), count=1))
    ledger.add(1, "x", affinity(((10.0, 1.0), (1.0, 1.0)), count=2))
    result = ledger.result()
    np.testing.assert_allclose(result.values, [[6.0, -1.0], [2.5, 3.0]])
    assert (result.counts == 103).all()
    assert result.complete
    assert len(ledger) == 3


def test_ledger_keeps_negative_affinities():
    ledger = AffinityLedger(("a", "b"))
    ledger.add(0, "x", affinity(((-1.0, -2.0), (-3.0, -4.0))))
    np.testing.assert_array_equal(ledger.result().values, [[-1.0, -2.0], [-3.0, -4.0]])


def test_ledger_counts_a_device_once_per_round():
    ledger = AffinityLedger(("a", "b"))
    assert ledger.add(0, "x", affinity(((1.0, 1.0), (1.0, 1.0))))
    assert not ledger.add(0, "x", affinity(((9.0, 9.0), (9.0, 9.0))))
    np.testing.assert_array_equal(ledger.result().values, np.ones((2, 2)))


def test_ledger_task_order_and_missing_tasks():
    ledger = AffinityLedger(("a", "b", "c"))
    ledger.add(0, "x", affinity(((1.0, 2.0), (3.0, 4.0)), tasks=("c", "a")))
    result = ledger.result()
    np.testing.assert_array_equal(result.values, [[4.0, np.nan, 3.0], [np.nan] * 3, [2.0, np.nan, 1.0]])
    np.testing.assert_array_equal(result.counts, [[1, 0, 1], [0, 0, 0], [1, 0, 1]])
    assert not result.complete


def test_ledger_rounds_and_devices():
    ledger = AffinityLedger(("a",))
    for key in ((4, "y"), (0, "z"), (0, "x"), (2, "y")):
        ledger.add(*key, affinity(((1.0 + key[0],),), tasks=("a",)))
    assert (ledger.rounds, ledger.devices) == ((0, 2, 4), ("x", "y", "z"))
    part = ledger.between(1, 4)
    assert (part.rounds, part.devices, len(ledger)) == ((2, 4), ("y",), 4)
    np.testing.assert_array_equal(part.result().values, [[4.0]])


def test_ledger_empty():
    result = AffinityLedger(("a", "b")).result()
    assert not result.complete
    assert np.isnan(result.values).all()
    assert np.isnan(result.standard_error).all()


def test_ledger_variance_and_standard_error():
    ledger = AffinityLedger(("a",))
    ledger.add(0, "x", affinity(((1.0,),), tasks=("a",), count=4, variance=((8.0,),)))
    alone = ledger.result()
    assert alone.variance == 8.0
    assert alone.standard_error == pytest.approx(np.sqrt(8.0 / 4))
    ledger.add(0, "y", affinity(((3.0,),), tasks=("a",), count=2, variance=((4.0,),)))
    both = ledger.result()
    assert both.variance == pytest.approx((3 * 8 + 1 * 4) / 4)
    assert both.standard_error == pytest.approx(np.sqrt(2.0 / 2))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (affinity(((1.0,),), tasks=("z",)), "'z'"),
        (affinity(((1.0,),), tasks=("a",), variance=((-1.0,),)), "negative variance"),
    ],
)
def test_ledger_refuses(bad, reason):
    ledger = AffinityLedger(("a", "b"))
    with pytest.raises(ValueError, match=reason):
        ledger.add(0, "x", bad)
    assert len(ledger) == 0


@pytest.mark.slow
@given(st.permutations([(r, d) for r in range(3) for d in "xyz"]), st.randoms(use_true_random=False))
def test_ledger_order_does_not_matter(order, random):
    rows = {(r, d): random.uniform(-1, 1) for r in range(3) for d in "xyz"}
    first, second = AffinityLedger(("a",)), AffinityLedger(("a",))
    for key, value in rows.items():
        first.add(*key, affinity(((value,),), tasks=("a",)))
    for key in order:
        second.add(*key, affinity(((rows[key],),), tasks=("a",)))
    assert first.result().values.tobytes() == second.result().values.tobytes()
