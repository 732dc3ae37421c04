from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np
import pytest

from broker_server.aggregation.sums import BATCH, LocalSums, ShardedSums, SumsLost

SIZE = 1000
WEIGHTS = [(slice(0, 400), 3), (slice(600, SIZE), 11)]


def updates(number):
    return [np.random.default_rng(each).standard_normal(SIZE).astype(np.float32) for each in range(number)]


def total(sums, number):
    for at, vector in enumerate(updates(number)):
        sums.add(vector, WEIGHTS[: 1 + at % 2])
    return sums.total()


@pytest.mark.parametrize("number", [0, 1, BATCH, 2 * BATCH + 3])
@pytest.mark.parametrize(("workers", "shard"), [(1, 1), (1, 97), (4, 97), (3, 5000)])
def test_shards_are_the_same_bits_by_any_number_of_workers(number, workers, shard):
    if shard == 1 and number > 1:
        shard = 250
    with ThreadPoolExecutor(workers) as pool:
        found = total(ShardedSums(SIZE, pool, shard=shard), number)
    assert found.tobytes() == total(LocalSums(SIZE), number).tobytes()


def test_a_sum_of_nothing_takes_a_minus_zero_as_it_is():
    sums = LocalSums(2)
    sums.add(np.array([-0.0, 1.0], np.float32), [(slice(0, 1), 5)])
    assert np.signbit(sums.total()).all()


class Lost(Executor):
    """Takes work and fails it, or takes none."""

    def __init__(self, *, takes):
        self.takes = takes

    def submit(self, _fn, /, *_args, **_kwargs):
        if not self.takes:
            raise RuntimeError("cannot schedule new futures")
        future = Future()
        future.set_exception(ConnectionError("the node is gone"))
        return future


@pytest.mark.parametrize(("takes", "why"), [(True, "the node is gone"), (False, "cannot schedule")])
def test_work_that_is_lost_is_said(takes, why):
    sums = ShardedSums(SIZE, Lost(takes=takes))
    with pytest.raises(SumsLost, match=why):
        total(sums, 1)
