import numpy as np
import pytest

from edge_runtime.training.gradient_combination import gradient_combiner, summed
from edge_runtime.training.model import Model
from edge_runtime.training.trainer import load
from edge_runtime.wire.conflict import cagrad, gram, pcgrad


def gradients(tasks=3, seed=0):
    """Of a representation of two arrays."""
    random = np.random.default_rng(seed)
    return [tuple(random.standard_normal(s).astype(np.float32) for s in ((2, 3), (2, 4, 5))) for _ in range(tasks)]


def flat(representation):
    return np.concatenate([array.reshape(-1) for array in representation])


def test_the_plain_sum_needs_no_merging(tiny):
    assert gradient_combiner(tiny.settings, (0, 0, 0)) is None


@pytest.mark.parametrize("rule", ["pcgrad", "cagrad"])
def test_merging_is_the_rule_on_all_arrays_as_one_vector(tiny, rule):
    given = gradients()
    whole = np.stack([flat(g) for g in given]).astype(np.float64)
    inner = gram(list(whole.astype(np.float32)))
    expected = pcgrad(inner, np.ones(3), (3, 1, 2)) if rule == "pcgrad" else cagrad(inner, np.ones(3), 0.3)
    found = gradient_combiner(tiny.change(gradient_combination=rule, cagrad_c=0.3), (3, 1, 2))(given)
    assert [array.shape for array in found] == [(2, 3), (2, 4, 5)]
    np.testing.assert_allclose(flat(found), expected @ whole, rtol=1e-4, atol=1e-5)


def test_the_mean_makes_steps_level_across_group_sizes(tiny):
    settings = tiny.change(gradient_combination="mean")
    one = flat(gradients(1)[0])
    for tasks in (1, 4):
        same = [tuple(map(np.copy, gradients(1)[0])) for _ in range(tasks)]
        step = flat(gradient_combiner(settings, (0,))(same)) / np.sqrt(tasks)  # as the model divides it
        np.testing.assert_allclose(step, one, rtol=1e-6)


def test_merging_depends_on_the_place_of_the_batch_alone(tiny):
    settings = tiny.change(gradient_combination="pcgrad")
    places = [(3, 0, 0), (3, 0, 0), (3, 0, 1), (3, 1, 7), (3, 1, 7, 1)]
    results = [flat(gradient_combiner(settings, place)(gradients(6))) for place in places]
    np.testing.assert_array_equal(results[0], results[1])
    assert any((results[0] != other).any() for other in results[2:])


def test_summed_uses_the_gradients_up():
    given = gradients()
    first = given[0][0]
    total = summed(given, np.array([1.0, 0.5, -1.0]))
    assert total[0] is first
    assert given == []
    one, two, three = gradients()
    for k in range(2):
        np.testing.assert_allclose(total[k], one[k] + 0.5 * two[k] - three[k], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"gradient_combination": "pcgrad"}, {"gradient_combination": "cagrad", "cagrad_c": 0.0}]
)
def test_merging_without_conflict_is_the_sum_bit_for_bit(tiny, options):
    """The same task three times over pulls one way; so does anything with a ball of no size."""
    given = [tuple(map(np.copy, gradients(1)[0])) for _ in range(3)]
    plain = given[0][0] + given[1][0] + given[2][0]
    np.testing.assert_array_equal(gradient_combiner(tiny.change(**options), (0,))(given)[0], plain)


@pytest.mark.parametrize("rule", ["pcgrad", "cagrad"])
def test_merging_of_one_task_is_its_gradient(tiny, rule):
    given = gradients(1)
    expected = flat(given[0]).copy()
    np.testing.assert_array_equal(
        flat(gradient_combiner(tiny.change(gradient_combination=rule), (0,))(given)), expected
    )


@pytest.mark.parametrize("weights", [None, np.array([1.0, 2.0, 0.5])])
def test_model_merges_the_weighted_gradients_of_its_heads(tiny, weights):
    model = tiny.model()
    x, targets = load(model, tiny.dataset.train, range(4))
    seen = {}
    z = model.forward(x).z
    plain, total = model.run_heads(z, targets, weights, lambda task, _, dz: seen.update({task: flat(dz).copy()}))
    held = []

    def merge(given):
        held.extend(flat(one).copy() for one in given)
        return given[1]

    losses, merged = model.run_heads(z, targets, weights, combine=merge)
    assert losses == plain
    for i, task in enumerate(model.tasks):
        np.testing.assert_allclose(held[i], seen[task] * (1 if weights is None else weights[i]), rtol=1e-6)
    np.testing.assert_allclose(flat(merged), held[1] / np.sqrt(3), rtol=1e-6)
    np.testing.assert_allclose(flat(total), sum(held) / np.sqrt(3), atol=1e-6)


def test_merging_runs_the_parts_whatever_the_engine(tiny):
    def whole(*_, **__):
        raise AssertionError

    model = tiny.model()
    other = Model(model.manifest, model._graph, tiny.weights, whole)
    x, targets = load(other, tiny.dataset.train, range(4))
    losses = other.learn(x, targets, combine=gradient_combiner(tiny.change(gradient_combination="pcgrad"), (0,)))
    assert set(losses) == set(other.tasks)
