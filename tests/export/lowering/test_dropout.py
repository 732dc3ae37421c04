import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from export.errors import OperatorUnsupported  # noqa: E402
from export.lowering.dropout import draws, threshold  # noqa: E402
from export.parity.seeded_dropout import SeededDropout  # noqa: E402

pytestmark = pytest.mark.workstation


class Fn(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


CASES = {
    "dropout": lambda x: F.dropout(x, 0.3),
    "dropout_twice": lambda x: F.dropout(F.dropout(x * 2, 0.5), 0.1),
    "whole_channels": lambda x: F.dropout2d(x, 0.5),
    "alpha": lambda x: F.alpha_dropout(x, 0.2, training=True),
    "in_place": lambda x: F.dropout(x * 2, 0.3, inplace=True),
    "uniform": lambda x: x * torch.rand_like(x) + torch.rand(x.shape[0], 1, 1, 6),
    "normal": lambda x: x * torch.randn_like(x) + torch.randn(x.shape[0], 4, 1, 1) + torch.empty_like(x).normal_(1, 2),
    "reparametrised": lambda x: torch.distributions.Normal(x, x.exp(), validate_args=False).rsample(),
    "gumbel": lambda x: F.gumbel_softmax(x, dim=1),
    "path": lambda x: x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.7) + x * torch.bernoulli(torch.sigmoid(x)),
    "between": lambda x: x * torch.empty_like(x).uniform_(-1, 3) + F.rrelu(x, training=True),
    "integers": lambda x: x * torch.randint(2, 9, (5, 1)),
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1, dropout_p=0.4),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_dropout_is_pytorchs_with_the_same_draws(case, seed, translate, run_graph):
    translated = translate(Fn(CASES[case]), torch.randn(2, 4, 5, 6))
    for batch in (1, 3):
        x, dy = torch.randn(batch, 4, 5, 6), torch.randn(batch, 4, 5, 6)
        inputs = {"x": x.numpy(), "dy": dy.numpy(), "seed": np.array(seed, np.int64)}
        ours = run_graph(translated.model, inputs)
        with SeededDropout(seed):
            expected = translated.reference(x, dy)
        for name, value in expected.items():
            assert value.isfinite().all()
            np.testing.assert_allclose(
                ours[name], value.numpy(), rtol=1e-5, atol=1e-5 * float(value.abs().max()), err_msg=name
            )


def test_graph_without_dropout_has_no_seed(translate):
    def names(module):
        return {i.name for i in translate(module, torch.randn(2, 4, 5, 6)).model.graph.input}

    assert "seed" in names(nn.Dropout(0.1))
    assert "seed" not in names(nn.Dropout(0.1).eval())
    assert "seed" not in names(nn.Dropout(0.0))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_draws_are_as_frequent_as_they_should_be(p):
    """Over elements, over seeds and over operators, and without a pattern from one to the next."""
    count = 40_000
    tolerance = 5 * (p * (1 - p) / count) ** 0.5
    ones = draws(7, 0, count) < threshold(p)
    others = (draws(8, 0, count) < threshold(p), draws(7, 1, count) < threshold(p))
    by_seed = np.array([draws(seed, 0, 1)[0] < threshold(p) for seed in range(4000)])
    assert abs(ones.mean() - p) < tolerance
    assert abs(by_seed.mean() - p) < 5 * (p * (1 - p) / 4000) ** 0.5
    for other in (*others, np.roll(ones, 1), np.roll(ones, 2), np.roll(ones, 64)):
        assert abs((ones & other).mean() - p * p) < tolerance


def test_normal_numbers_are_normal(translate, run_graph):
    translated = translate(Fn(lambda x: x + torch.randn_like(x)), torch.randn(2, 10_000))
    zeros = np.zeros((1, 10_000), np.float32)
    drawn = run_graph(translated.model, {"x": zeros, "dy": zeros, "seed": np.array(3, np.int64)})["y"]
    assert abs(drawn.mean()) < 0.05
    assert abs(drawn.std() - 1) < 0.05
    assert np.isfinite(drawn).all()


def test_order_that_is_drawn_is_refused_with_a_substitute(translate):
    with pytest.raises(OperatorUnsupported, match="sort it"):
        translate(Fn(lambda x: x[:, torch.randperm(4)]), torch.randn(2, 4, 5, 6))
