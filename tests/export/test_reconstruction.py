"""The exporter's attack on stems: it finds inputs where they are to be found, and leaves the model as it was."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from edge_runtime.wire.reconstruction import ALLOWED_PSNR_DB, MAX_PSNR_DB  # noqa: E402
from export.losses import l2  # noqa: E402
from export.model import MultiTaskModel  # noqa: E402
from export.models.vit import NarrowPatches, Patches  # noqa: E402
from export.reconstruction import STEPS, measure_reconstruction  # noqa: E402

pytestmark = pytest.mark.workstation


def model(stem, example, *, seed=0):
    torch.manual_seed(seed)
    made = stem()
    return MultiTaskModel(
        stem=made,
        encoder=nn.Flatten(),
        heads={"level": nn.Identity()},
        losses={"level": l2},
        example_input=example,
        example_targets={"level": torch.rand(2, 1)},
    )


def images(size=16):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_images_come_back_from_patches_and_not_from_few_numbers_of_them():
    wide = measure_reconstruction(model(lambda: Patches(16, 4, 64), images()))
    assert wide.fp32 > 60 > wide.int8 > 2 * ALLOWED_PSNR_DB - 10
    assert wide.fp32 >= wide.fp16 >= wide.int8
    noisy = [each.psnr_db for each in wide.noisy]
    assert noisy == sorted(noisy, reverse=True)
    assert noisy[-1] < ALLOWED_PSNR_DB
    narrow = measure_reconstruction(model(lambda: NarrowPatches(4, 8), images()))
    assert max(narrow.fp32, narrow.fp16, narrow.int8) < ALLOWED_PSNR_DB


def test_signals_come_back_from_a_stem_that_is_not_linear():
    example = {"signal": torch.randn(2, 2, 32), "level": torch.rand(2, 5)}

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.signal, self.level = nn.Conv1d(2, 16, 4, 2), nn.Linear(5, 8)

        def forward(self, signal, level):
            return torch.cat([torch.tanh(self.signal(signal)).flatten(1), self.level(level)], 1)

    found = measure_reconstruction(model(Both, example))
    assert found.fp32 > 40
    assert found.fp32 <= MAX_PSNR_DB
    steps = []
    assert found == measure_reconstruction(model(Both, example), lambda *step: steps.append(step))
    assert steps == [(done, STEPS) for done in range(1, STEPS + 1)]


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        return 2 * dy


class Doubled(nn.Module):
    def forward(self, x):
        return OnceOnly.apply(x)


@pytest.mark.parametrize(
    ("stem", "example"),
    [
        (lambda: nn.Embedding(10, 4), {"tokens": torch.randint(0, 10, (2, 5))}),
        (Doubled, images(8)),
        (lambda: None, images(8)),
    ],
    ids=["integers", "differentiated once", "no stem"],
)
def test_nothing_is_said_where_nothing_was_measured(stem, example):
    assert measure_reconstruction(model(stem, example)) is None


def test_model_is_left_as_it_was():
    made = model(lambda: nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Dropout(0.5)), images(8))
    made.stem[0].bias.requires_grad_(requires_grad=False)
    before = {name: value.clone() for name, value in made.stem.named_parameters()}
    assert measure_reconstruction(made) is not None
    assert made.stem.training
    assert made.stem[1].training
    assert made.stem[0].weight.requires_grad
    assert not made.stem[0].bias.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in made.stem.named_parameters())
    assert made.stem[0].weight.grad is None
