import numpy as np
import pytest
from family import CLASSES, VALUES, X, by_task, golden

from broker_server.aggregation import covariance
from edge_runtime.linear.dual import ascend, local_gap, order_of, sum_of
from edge_runtime.linear.losses import LOSSES

MOCHA, DMTRL = golden("mocha"), golden("dmtrl")


class Course:
    """Rounds of all four tasks, in the order of the reference: samples 1, 2, …, n-1, 0."""

    def __init__(self, loss, y, ridge, sigma, rho):
        self.loss, self.y, self.ridge, self.sigma, self.rho = LOSSES[loss], y, ridge, np.array(sigma), rho
        self.alpha = [np.zeros(len(x)) for x in X]
        self.b = np.zeros((4, 5))

    @property
    def w(self):
        return covariance.weights(self.b, self.sigma, self.ridge)

    def round(self, budgets=(1, 1, 1, 1)):
        w = self.w
        for t, budget in enumerate(budgets):
            n = len(X[t])
            curvature = self.rho * self.sigma[t, t] / self.ridge
            order = [*range(1, n), 0][: int(budget * n)]
            self.alpha[t] = ascend(X[t], self.y[t], self.alpha[t], w[t], self.loss, curvature, order)
            self.b[t] = sum_of(X[t], self.alpha[t])

    @property
    def primal(self):
        losses = (self.loss.value(X[t] @ self.w[t], self.y[t]).mean() for t in range(4))
        return sum(losses) + covariance.penalty(self.w, self.sigma, self.ridge)

    @property
    def gap(self):
        parts = (local_gap(X[t], self.y[t], self.alpha[t], self.w[t], self.loss) for t in range(4))
        return sum(parts) + covariance.misfit(self.w, self.b, self.sigma, self.ridge)

    def relate(self, floor):
        self.sigma = covariance.covariance(self.w, floor)
        self.rho = covariance.separability(self.sigma)


def hinge(sigma=None, rho=1.0):
    return Course("hinge", CLASSES, MOCHA["lam"], np.eye(4) / 4 if sigma is None else sigma, rho)


def test_fixed_relations_follow_the_reference_code():
    course = hinge()
    for number in range(1, 401):
        course.round()
        if (found := MOCHA["reference_fixed_sigma"].get(f"after_{number}_rounds")) is not None:
            np.testing.assert_allclose(course.w, by_task(found["W"]), atol=1e-9)
            assert course.primal == pytest.approx(found["primal"], abs=1e-9)
            assert course.gap == pytest.approx(found["primal"] - found["dual"], abs=1e-9)
            sigma = covariance.covariance(course.w, 0.0)
            np.testing.assert_allclose(sigma, found["next_sigma"], atol=1e-9)
            assert covariance.separability(sigma) == pytest.approx(found["next_rho"], abs=1e-9)
    assert 0 <= course.gap < 1e-6
    np.testing.assert_allclose(course.w, by_task(MOCHA["optimum_fixed_sigma"]["W"]), atol=1e-6)


def test_stragglers_follow_the_golden_rounds_and_still_end_at_the_optimum():
    golden_rounds = MOCHA["stragglers"]["rounds"]
    course = hinge(MOCHA["stragglers"]["sigma"], MOCHA["stragglers"]["rho"])
    for found in golden_rounds:
        before = course.b.copy()
        course.round(found["budgets"])
        np.testing.assert_allclose(course.w, by_task(found["W"]), atol=1e-9)
        np.testing.assert_allclose(course.b - before, by_task(found["delta_b"]), atol=1e-9)
        assert course.gap == pytest.approx(found["primal"] - found["dual"], abs=1e-9)
    for number in range(500):
        course.round([(number + t) % 3 != 0 for t in range(4)])
    assert 0 <= course.gap < 1e-6
    assert course.primal == pytest.approx(MOCHA["stragglers"]["optimum_for_this_sigma"]["objective"], abs=1e-6)


def test_relations_that_are_learned_keep_the_certificate():
    found, course = MOCHA["joint"]["corrected_4x3"], hinge()
    for outer in range(4):
        for _ in range(3):
            course.round()
        if outer < 3:
            course.relate(0.0)
    np.testing.assert_allclose(course.w, by_task(found["W"]), atol=1e-9)
    np.testing.assert_allclose(course.sigma, found["sigma"], atol=1e-9)
    assert course.rho == pytest.approx(found["rho"], abs=1e-9)
    assert course.gap == pytest.approx(found["primal"] - found["dual"], abs=1e-9)


@pytest.mark.long
def test_relations_that_are_learned_end_near_the_joint_optimum():
    course = hinge()
    for _ in range(100):
        for _ in range(60):
            course.round()
        last, gap = course.primal, course.gap
        course.relate(1e-4)
    best = MOCHA["joint"]["optimum_objective"]
    assert best <= last <= 1.005 * best
    assert 0 <= gap < 1e-4


def test_alternation_ends_where_the_reference_s_does():
    """The reference adds its floor as it is, not in parts of the largest eigenvalue."""
    found = DMTRL["joint_by_alternation"]
    course = Course("squared", VALUES, DMTRL["lam"], np.eye(4) / 4, 1.0)
    for _ in range(found["outer"]):
        for _ in range(found["inner"]):
            course.round()
        last, gap = course.primal, course.gap
        course.relate(found["eps"] / np.linalg.eigvalsh(course.w @ course.w.T)[-1])
    assert last == pytest.approx(found["primal"], abs=1e-9)
    assert last - gap == pytest.approx(found["dual"], abs=1e-9)
    assert DMTRL["joint_optimum"]["objective"] <= last


def test_squared_loss_follows_the_golden_round_and_ends_at_the_dense_solution():
    course = Course("squared", VALUES, DMTRL["lam"], DMTRL["sigma_fixed"], DMTRL["rho"])
    course.round()
    found = DMTRL["after_1_round"]
    np.testing.assert_allclose(course.w, by_task(found["W"]), atol=1e-8)
    np.testing.assert_allclose(course.alpha[0], found["alpha_task0"], atol=1e-8)
    assert course.gap == pytest.approx(found["primal"] - found["dual"], abs=1e-8)
    for _ in range(299):
        course.round()
    np.testing.assert_allclose(course.w, by_task(DMTRL["fixed_sigma_optimum"]["W"]), atol=1e-8)


def test_a_sample_without_features_is_left_as_it_is():
    x, y = np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([1.0, 1.0])
    alpha = ascend(x, y, np.zeros(2), np.zeros(2), LOSSES["hinge"], 1.0, [0, 1])
    assert alpha[0] == 0 < alpha[1]


def test_orders_are_whole_passes_and_a_part_of_one():
    order = order_of(6, 2.5, (3, 1))
    assert len(order) == 15
    assert sorted(order[:6]) == sorted(order[6:12]) == [*range(6)]
    assert not np.array_equal(order[:6], order[6:12])
    assert np.array_equal(order, order_of(6, 2.5, (3, 1)))
    assert not np.array_equal(order, order_of(6, 2.5, (3, 2)))
    assert len(order_of(6, 0.0, (3, 1))) == len(order_of(0, 1.0, (3, 1))) == 0
