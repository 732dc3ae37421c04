import numpy as np
from family import VALUES, X, golden

from broker_server.aggregation.mixed_effect import packed, shared_part, unpacked
from edge_runtime.linear.mixed_effect import MixedEffect, gaussian

GOLDEN = golden("mixed_effect")
MODEL = MixedEffect(shared=GOLDEN["alpha"], ridge=GOLDEN["lam"], width=0.4)


def test_one_exchange_with_linear_features_is_the_golden_one():
    found = GOLDEN["linear_shared"]
    sent = [MODEL.statistics(x, x, y) for x, y in zip(X, VALUES, strict=True)]
    for (a, b), golden_a, golden_b in zip(sent, found["message_A"], found["message_b"], strict=True):
        np.testing.assert_allclose(a, golden_a, atol=1e-7)
        np.testing.assert_allclose(b, golden_b, atol=1e-7)
        np.testing.assert_array_equal(unpacked(packed(a), 5), (np.tril(a) + np.tril(a, -1).T))
    v = shared_part(sum(a for a, _ in sent), sum(b for _, b in sent), MODEL.shared)
    np.testing.assert_allclose(v, found["shared_weight"], atol=1e-7)
    for x, y, coefficients in zip(X, VALUES, found["coefficients_by_task"], strict=True):
        np.testing.assert_allclose(MODEL.coefficients(x, x, y, v), coefficients, atol=1e-7)


def test_features_of_a_disclosed_basis_give_the_dense_solution():
    basis = np.concatenate(X)
    factor = np.linalg.cholesky(gaussian(basis, basis, 1.0) + 1e-12 * np.eye(len(basis)))

    def features(x):
        return np.linalg.solve(factor, gaussian(basis, x, 1.0)).T

    sent = [MODEL.statistics(features(x), x, y) for x, y in zip(X, VALUES, strict=True)]
    v = shared_part(sum(a for a, _ in sent), sum(b for _, b in sent), MODEL.shared)
    test = np.array(GOLDEN["test_points"])
    np.testing.assert_allclose(features(test) @ v, GOLDEN["shared_component_at_test_points"], atol=1e-7)
    for x, y, predictions in zip(X, VALUES, GOLDEN["predictions"], strict=True):
        coefficients = MODEL.coefficients(features(x), x, y, v)
        found = MODEL.predict(features(test), test, v, x, coefficients)
        np.testing.assert_allclose(found, predictions, atol=1e-7)
