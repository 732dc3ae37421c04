import numpy as np
import pytest

from broker_server.aggregation.fedavg import FedAvg
from broker_server.aggregation.gpaggregation import aggregate
from broker_server.aggregation.rules import Aggregation, RoundAggregation
from broker_server.aggregation.server_optimizer import ServerOptimizer
from edge_runtime.wire.conflict import cagrad, combine, gram, pcgrad
from edge_runtime.wire.errors import TensorsInvalid
from edge_runtime.wire.tensors import TensorTable

TABLE = TensorTable.of({"encoder.w": (6,), "head.a.w": (2,), "head.b.w": (1,), "state.encoder.m": (1,), "stem.w": (2,)})
WHERE = TABLE.parts["encoder"]
RULES = ("mean", "gpaggregation", "pcgrad", "cagrad")


@pytest.fixture
def fold(tmp_path):
    def fold_(aggregation, began, devices, state=None, seed=(0, 0)):
        found = RoundAggregation(TABLE, began, aggregation, state=state, seed=seed, folder=tmp_path)
        for vector, examples in devices:
            found.fold(vector, examples)
        fold_.diverged = lambda: found.diverged
        return found.result()

    yield fold_
    assert not list(tmp_path.iterdir())  # the temporary file has no name


def some(seed=0, devices=3):
    random = np.random.default_rng(seed)
    began, *ends = random.standard_normal((devices + 1, TABLE.size)).astype(np.float32)
    return began, [(end, {"a": 3 + number, "b": 2 * number}) for number, end in enumerate(ends)]


def average(began, devices):
    mean = FedAvg(TABLE)
    for vector, examples in devices:
        mean.fold(vector, examples)
    return mean.result(began)


def changes(began, devices):
    return [(began - vector)[WHERE] for vector, _ in devices]


def weights(devices):
    return [max(examples.values()) for _, examples in devices]


def test_round_aggregation_by_the_mean_is_federated_averaging_bit_for_bit(fold):
    began, devices = some()
    new, state = fold(Aggregation(), began, devices)
    assert new.tobytes() == average(began, devices).tobytes()
    assert state is None
    assert Aggregation().is_plain
    assert Aggregation().state_table(TABLE) is None


@pytest.mark.parametrize("rule", RULES)
def test_round_aggregation_leaves_all_but_the_encoder_to_federated_averaging(fold, rule):
    began, devices = some()
    new, _ = fold(Aggregation(rule=rule, optimizer=ServerOptimizer(lr=0.5)), began, devices)
    expected = average(began, devices)
    assert new[WHERE.stop :].tobytes() == expected[WHERE.stop :].tobytes()
    assert not np.array_equal(new[WHERE], expected[WHERE])


@pytest.mark.parametrize("seed", range(10))
def test_round_aggregation_with_the_plain_step_is_the_rule(fold, seed):
    began, devices = some(seed)
    shares = np.array(weights(devices), np.float64) / sum(weights(devices))
    found = changes(began, devices)
    expected = {
        "gpaggregation": aggregate(found, weights(devices)),
        "pcgrad": combine(found, pcgrad(gram(found), shares, (7, 2))),
        "cagrad": combine(found, cagrad(gram(found), shares, 0.4)),
    }
    for rule, change in expected.items():
        new, _ = fold(Aggregation(rule=rule), began, devices, seed=(7, 2))
        np.testing.assert_allclose(new[WHERE], (began[WHERE] - change), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rule", RULES)
def test_round_aggregation_of_changes_without_conflict_is_near_the_mean(fold, seed, rule):
    began, devices = some(seed)
    devices = [(began + np.abs(end), examples) for end, examples in devices]
    new, _ = fold(Aggregation(rule=rule, cagrad_c=0.0), began, devices)
    np.testing.assert_allclose(new, average(began, devices), rtol=1e-5, atol=1e-6)


def test_round_aggregation_attends_to_the_round_before(fold):
    began, devices = some()
    rule = Aggregation(rule="gpaggregation")
    _, state = fold(rule, began, devices)
    np.testing.assert_array_equal(state, aggregate(changes(began, devices), weights(devices)))
    later, again = some(1)
    new, left = fold(rule, later, again, state)
    expected = aggregate(changes(later, again), weights(again), state)
    np.testing.assert_array_equal(left, expected)
    np.testing.assert_allclose(new[WHERE], later[WHERE] - expected, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(left, aggregate(changes(later, again), weights(again)))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("optimizer", [ServerOptimizer(momentum=0.5), ServerOptimizer(method="adam", lr=0.1)])
def test_round_aggregation_goes_on_with_the_optimizer_s_state(fold, rule, optimizer):
    began, devices = some()
    aggregation = Aggregation(rule=rule, optimizer=optimizer)
    layout = aggregation.state_table(TABLE)
    assert set(layout.parts) == ({"history", "optimizer"} if rule == "gpaggregation" else {"optimizer"})
    new, state = fold(aggregation, began, devices)
    optimizer_state = layout.views(state)["optimizer"]
    assert optimizer_state.any()
    before = state.copy()
    newer, later = fold(aggregation, new, devices, state)
    np.testing.assert_array_equal(state, before)
    assert not np.array_equal(later, state)
    assert not np.array_equal(newer[WHERE], fold(aggregation, new, devices)[0][WHERE])


def test_round_aggregation_with_momentum_by_hand(fold):
    aggregation = Aggregation(optimizer=ServerOptimizer(lr=0.5, momentum=0.5))
    began = np.zeros(TABLE.size, np.float32)
    devices = [(np.full(TABLE.size, -2, np.float32), {"a": 1})]
    new, state = fold(aggregation, began, devices)
    np.testing.assert_array_equal(new[WHERE], np.full(6, -1))
    np.testing.assert_array_equal(state, np.full(6, 2))
    new, state = fold(aggregation, began, devices, state)
    np.testing.assert_array_equal(new[WHERE], np.full(6, -1.5))


@pytest.mark.parametrize("rule", RULES)
def test_round_aggregation_of_nobody_keeps_weights_and_memory(fold, rule):
    began, devices = some()
    aggregation = Aggregation(rule=rule, optimizer=ServerOptimizer(momentum=0.5))
    state = np.ones(aggregation.state_table(TABLE).size, np.float32)
    new, left = fold(aggregation, began, [(devices[0][0], {})], state)
    np.testing.assert_array_equal(new, began)
    np.testing.assert_array_equal(left, state)


@pytest.mark.parametrize("rule", RULES)
def test_round_aggregation_does_not_take_a_step_that_is_not_finite(fold, rule):
    aggregation = Aggregation(rule=rule, optimizer=ServerOptimizer(lr=1000.0, momentum=0.5))
    began = np.zeros(TABLE.size, np.float32)
    new, state = fold(aggregation, began, [(np.full(TABLE.size, 3e38, np.float32), {"a": 1})])
    assert fold.diverged()
    np.testing.assert_array_equal(new[WHERE], began[WHERE])
    assert np.isfinite(new).all()
    assert state is None


def test_round_aggregation_refuses_another_length(fold, tmp_path):
    began, _ = some()
    with pytest.raises(TensorsInvalid):
        fold(Aggregation(rule="pcgrad"), began[1:], [])
    found = RoundAggregation(TABLE, began, Aggregation(), state=None, seed=(0,), folder=tmp_path)
    with pytest.raises(TensorsInvalid):
        found.fold(began[1:], {"a": 1})


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("optimizer", [ServerOptimizer(), ServerOptimizer(lr=0.5)])
def test_round_aggregation_of_an_encoder_with_nothing_to_train_averages_the_heads(rule, optimizer, tmp_path):
    table = TensorTable.of({"head.a.w": (2,), "state.encoder.m": (1,)})
    aggregation = Aggregation(rule=rule, optimizer=optimizer)
    assert aggregation.state_table(table) is None
    began = np.zeros(3, np.float32)
    found = RoundAggregation(table, began, aggregation, state=None, seed=(0, 0), folder=tmp_path)
    for value in (1.0, 4.0):
        found.fold(np.full(3, value, np.float32), {"a": 5})
    new, state = found.result()
    assert new.tolist() == [2.5, 2.5, 2.5]
    assert state is None
    assert not found.diverged
