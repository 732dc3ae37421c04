import numpy as np
import pytest

from broker_server.grouping.search import SplitImpossible
from broker_server.grouping.weighted_affinity import weighted_scores

VALUES = [[4.0, 1.0], [-2.0, 3.0]]


def test_weighted_scores_are_the_expected_decrease_of_each_task_s_loss():
    found = weighted_scores("ab", VALUES, {"a": 10.0, "b": 1.0})
    alone_a, alone_b, both = found[0b01], found[0b10], found[0b11]
    np.testing.assert_allclose(alone_a, [40.0, 0.0])
    np.testing.assert_allclose(alone_b, [0.0, 3.0])
    np.testing.assert_allclose(both, [10.0 * (4.0 - 2.0) / 2**0.5, (1.0 + 3.0) / 2**0.5])
    assert not found[0].any()


@pytest.mark.parametrize("losses", [{"a": 1.0}, {"a": 1.0, "b": float("nan")}])
def test_weighted_scores_need_every_loss(losses):
    with pytest.raises(SplitImpossible, match="loss of 'b' was not measured"):
        weighted_scores("ab", VALUES, losses)
