import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from broker_server.aggregation.fedavg import FedAvg
from edge_runtime.wire.errors import TensorsInvalid
from edge_runtime.wire.tensors import TensorTable

TABLE = TensorTable.of({"encoder.w": (2,), "head.a.w": (1,), "head.b.w": (1,)})
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def vector(*values):
    return np.array(values, np.float32)


def test_fedavg_weights_encoder_by_all_examples_and_heads_by_their_own():
    mean = FedAvg(TABLE)
    mean.fold(vector(0, 0, 0, 0), {"a": 10, "b": 30})
    mean.fold(vector(1, 2, 3, 4), {"a": 10, "b": 0})
    np.testing.assert_allclose(mean.result(vector(9, 9, 9, 9)), [0.25, 0.5, 1.5, 0.0])


def test_fedavg_part_that_nobody_trained_keeps_its_weights():
    mean = FedAvg(TABLE)
    mean.fold(vector(1, 2, 3, 4), {"a": 5})
    np.testing.assert_array_equal(mean.result(vector(9, 8, 7, 6)), [1, 2, 3, 6])


def test_fedavg_of_nothing_is_the_old_weights():
    mean = FedAvg(TABLE)
    mean.fold(vector(1, 2, 3, 4), {})
    old = vector(9, 8, 7, 6)
    new = mean.result(old)
    np.testing.assert_array_equal(new, old)
    assert new is not old


@given(hnp.arrays(np.float32, 4, elements=finite), st.integers(1, 2**53), st.integers(1, 2**53))
def test_fedavg_of_one_is_bit_for_bit(values, a, b):
    mean = FedAvg(TABLE)
    mean.fold(values, {"a": a, "b": b})
    assert mean.result(vector(0, 0, 0, 0)).tobytes() == values.tobytes()


def test_fedavg_refuses_another_length():
    mean = FedAvg(TABLE)
    with pytest.raises(TensorsInvalid):
        mean.fold(vector(1), {"a": 1})
    with pytest.raises(TensorsInvalid):
        mean.result(vector(1))


def test_fedavg_weights_state_as_the_part_it_belongs_to():
    table = TensorTable.of({"encoder.w": (1,), "head.a.w": (1,), "state.encoder.m": (1,), "state.head.a.m": (1,)})
    mean = FedAvg(table)
    mean.fold(vector(0, 0, 0, 0), {"a": 10, "b": 30})
    mean.fold(vector(1, 1, 1, 1), {"a": 10, "b": 0})
    found = mean.result(vector(9, 9, 9, 9))
    np.testing.assert_array_equal(found, vector(0.25, 0.5, 0.25, 0.5))
