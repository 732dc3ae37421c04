import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.linear.losses import LOSSES

SMOOTH = [name for name, loss in LOSSES.items() if math.isfinite(loss.bend)]
small = st.floats(-5, 5)


def allowed(name, y, share):
    return y * share if name in {"hinge", "logistic"} else 4 * share - 2


@settings(max_examples=50)
@given(name=st.sampled_from([*LOSSES]), y=st.sampled_from([-1.0, 1.0]), z=small, share=st.floats(0, 1))
def test_loss_and_conjugate_are_a_certificate(name, y, z, share):
    loss, alpha = LOSSES[name], np.array([allowed(name, y, share)])
    value, conjugate = loss.value(np.array([z]), np.array([y])), loss.conjugate(alpha, np.array([y]))
    assert (value + conjugate + alpha * z)[0] >= -1e-12


@settings(max_examples=50)
@given(name=st.sampled_from(SMOOTH), y=st.sampled_from([-1.0, 1.0]), z=small)
def test_loss_and_conjugate_meet_at_the_slope(name, y, z):
    loss, at, label = LOSSES[name], np.array([z]), np.array([y])
    alpha = -loss.slope(at, label)
    assert loss.value(at, label) + loss.conjugate(alpha, label) + alpha * at == pytest.approx(0, abs=1e-9)


@settings(max_examples=50)
@given(name=st.sampled_from([*LOSSES]), y=st.sampled_from([-1.0, 1.0]), z=st.floats(-4, 4))
def test_slope_is_the_derivative(name, y, z):
    loss, label = LOSSES[name], np.array([y])
    if name == "hinge" and abs(y * z - 1) < 1e-3:
        return
    near = [loss.value(np.array([z + h]), label)[0] for h in (-1e-5, 1e-5)]
    assert loss.slope(np.array([z]), label)[0] == pytest.approx((near[1] - near[0]) / 2e-5, abs=1e-6)


@settings(max_examples=50)
@given(
    name=st.sampled_from([*LOSSES]),
    y=st.sampled_from([-1.0, 1.0]),
    share=st.floats(0, 1),
    q=small,
    kappa=st.floats(0.01, 10),
)
def test_step_is_the_best_alpha(name, y, share, q, kappa):
    loss, begin = LOSSES[name], allowed(name, y, share)

    def worth(alpha):
        return float(
            -loss.conjugate(np.array([alpha]), np.array([y]))[0]
            - q * (alpha - begin)
            - kappa / 2 * (alpha - begin) ** 2
        )

    found = loss.step(begin, y, q, kappa)
    others = [allowed(name, y, other) for other in np.linspace(0, 1, 41)]
    assert worth(found) >= max(worth(other) for other in [*others, begin]) - 1e-9


def test_logistic_step_ends_where_the_best_is_at_a_bound():
    assert LOSSES["logistic"].step(0.0, 1.0, 800.0, 1.0) == pytest.approx(0, abs=1e-6)
    assert LOSSES["logistic"].step(1.0, 1.0, -800.0, 1e-3) == pytest.approx(1, abs=1e-6)
