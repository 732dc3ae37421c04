import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from export.errors import ExportError  # noqa: E402
from export.lowering import shaping  # noqa: E402

pytestmark = pytest.mark.workstation

SHAPE = (4, 6, 5)


class Fn(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


CASES = {
    "roll": lambda x: x.roll(1, 2),
    "roll_back_and_around": lambda x: x.roll((-2, 7, 0), (1, 3, 2)),
    "roll_by_the_whole": lambda x: x.roll(6, 2) * 2,
    "tril": lambda x: x.tril() + x.triu(1),
    "tril_of_truth": lambda x: torch.where((x > 0).tril(-1), x, 0.0),
    "empty": lambda x: x * torch.zeros_like(x.new_empty(3, 6, 5).fill_(2.0)[:1]) + torch.empty_like(x).fill_(3.0),
    "empty_strided": lambda x: x * x.new_empty_strided((6, 5), (5, 1)).zero_(),
    "overwritten": lambda x: torch.zeros_like(x).copy_(x.mean(1, keepdim=True)) * x,
    "flatten": lambda x: x.flatten(1),
    "flatten_the_batch": lambda x: x.flatten(0, 1) * 2,
    "view": lambda x: x.view(x.shape[0], -1) ** 2,
    "view_the_batch_away_and_back": lambda x: (x.view(-1, 30) * 2).view(x.shape[0], 4, 30),
    "view_two_batched_dimensions": lambda x: (x.reshape(x.shape[0] * 2, 2, 30) * 3).reshape(x.shape),
    "reshape_of_transposed": lambda x: x.transpose(1, 3).reshape(x.shape[0], -1),
    "unsqueeze": lambda x: x.unsqueeze(1) * x.unsqueeze(-4),
    "squeeze": lambda x: x.mean(1, keepdim=True).squeeze(1),
    "squeeze_all": lambda x: x * x.mean().reshape(1, 1).squeeze(),
    "squeeze_several": lambda x: x.mean((2, 3), keepdim=True).squeeze((2, 3)),
    "permute": lambda x: x.permute(0, 2, -1, 1),
    "permute_the_batch": lambda x: x.permute(1, 0, 2, 3).exp().permute(1, 0, 2, 3),
    "transpose": lambda x: x.transpose(-1, -3),
    "matrix_transpose": lambda x: (x.flatten(1).t() * 2).t(),
    "expand": lambda x: x.mean(2, keepdim=True).expand(-1, -1, 7, -1),
    "expand_to_more_dimensions": lambda x: x.mean().expand(x.shape[0], 3) * 2,
    "broadcast_to_the_batch": lambda x: x + torch.arange(5.0).expand(x.shape[0], 4, 6, 5),
    "cat": lambda x: torch.cat([x, 2 * x, x[:, :1]], 1),
    "cat_of_last": lambda x: torch.cat([x, x * x], -1),
    "cat_along_the_batch": lambda x: torch.cat([x, 2 * x], 0),
    "stack": lambda x: torch.stack([x, x * x], 2),
    "unbind": lambda x: sum(part * i for i, part in enumerate(x.unbind(1))),
    "repeat": lambda x: x.repeat(1, 2, 1, 3),
    "repeat_the_batch": lambda x: x.repeat(2, 1, 1, 1),
    "repeat_into_more_dimensions": lambda x: x.repeat(2, 1, 2, 1, 1).transpose(0, 1) * 2,
    "count": lambda x: (
        x * torch.arange(5.0) + torch.arange(2, 8).reshape(6, 1) + torch.arange(0.5, 2.5, 0.5).reshape(4, 1, 1)
    ),
    "flip": lambda x: x.flip(1, -1) * x,
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x[..., :4], 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "identity": lambda x: x[..., :5, :] @ torch.eye(5) + torch.eye(5, 5),
    "linspace": lambda x: x * torch.linspace(-1, 1, 5),
    "rot90": lambda x: x.rot90(1, (2, 3)),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "chunk_and_stack": lambda x: torch.stack(x.chunk(2, 1), 1),
    "full": lambda x: x + torch.full((4, 1, 1), 3.0),
    "full_of_the_batch": lambda x: x + torch.full((x.shape[0], 4, 1, 1), 3.0),
    "new_full": lambda x: x * x.new_full((x.shape[0], 1, 1, 5), 2.0),
    "full_like": lambda x: x + torch.full_like(x, 0.25),
    "zeros": lambda x: x + torch.zeros(4, 1, 1) + x.new_zeros(x.shape[0], 4, 1, 1) + torch.zeros_like(x),
    "ones": lambda x: x * torch.ones(4, 1, 1) * x.new_ones(x.shape[0], 4, 1, 1) + torch.ones_like(x),
    "scalar": lambda x: x * torch.scalar_tensor(2.0),
    "pad": lambda x: F.pad(x, (1, 2, 0, 3)),
    "pad_with_a_value": lambda x: F.pad(x, (1, 0), value=2.5),
    "pad_that_cuts": lambda x: F.pad(x, (-1, 2, 1, -2)),
    "pad_what_is_cut_to_nothing": lambda x: F.pad(F.pad(x, (-5, 0)), (0, 4), value=1.5) * x.mean(),
    "roll_of_everything": lambda x: x * torch.arange(30).reshape(6, 5).roll(7),
    "counted_samples": lambda x: (
        x * torch.arange(x.shape[0]).reshape(-1, 1, 1, 1) + torch.arange(0, 2 * x.shape[0], 2).sum()
    ),
    "identity_of_the_batch": lambda x: (torch.eye(x.shape[0]) * 2) @ x.flatten(1),
    "filled_with_a_tensor": lambda x: x * torch.empty_like(x).fill_((x * 0).sum().detach() + 3),
    "vector": lambda x: x @ torch.arange(5.0).t(),
    "slope_of_a_sign": torch.sgn,
    "empty_of_a_size": lambda x: x * torch.empty(4, 1, 1).fill_(2.0),
    "pad_channels": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
}


@pytest.mark.parametrize("case", CASES)
def test_shaping_is_pytorchs(case, same_as_torch):
    same_as_torch(Fn(CASES[case]), SHAPE)


def test_shaping_that_depends_on_a_sample_s_place_is_refused(translate):
    with pytest.raises(ExportError):
        translate(Fn(lambda x: x.reshape(-1, 5)[:7]), torch.randn(2, *SHAPE))


def test_roll_of_the_whole_batch_is_refused(translate):
    with pytest.raises(ExportError, match="along the batch|neither fixed"):
        translate(Fn(lambda x: x.roll(2)), torch.randn(2, *SHAPE))


@pytest.mark.slow
@pytest.mark.long
def test_every_rule_is_exercised(translate):
    found = set()
    for function in CASES.values():
        found |= translate(Fn(function), torch.randn(2, *SHAPE)).operators
    assert set(shaping.RULES) - found == set()
