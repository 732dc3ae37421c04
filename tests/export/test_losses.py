import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from export import losses  # noqa: E402
from export.compile import compile_model  # noqa: E402
from export.model import MultiTaskModel  # noqa: E402
from export.parity.check import TOLERANCE, check_parity  # noqa: E402

pytestmark = pytest.mark.workstation

NAN = float("nan")


def dense(*shape):
    """A target in which some elements have no label."""
    target = torch.rand(shape)
    return torch.where(torch.rand(shape) < 0.3, NAN, target)


def classes(*shape):
    return torch.randint(0, 4, (shape[0], *shape[2:]))


CASES = {
    "masked_l1": (losses.masked_l1, dense),
    "masked_l2": (losses.masked_l2, dense),
    "huber": (losses.masked_huber(0.3), dense),
    "binary_cross_entropy": (losses.masked_binary_cross_entropy, dense),
    "l1": (losses.l1, torch.rand),
    "l2": (losses.l2, torch.rand),
    "pixel_cross_entropy": (losses.pixel_cross_entropy, classes),
    "cross_entropy": (losses.cross_entropy(), classes),
    "cross_entropy_ignoring": (losses.cross_entropy(ignore=2), classes),
    "cross_entropy_weighted": (losses.cross_entropy(ignore=3, weights=[1.0, 2.0, 0.5, 3.0]), classes),
    "cross_entropy_smoothed": (losses.cross_entropy(smoothing=0.1), classes),
    "cosine": (losses.cosine, dense),
    "dice": (losses.dice, dense),
    "torch_binary_weighted": (
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([0.5, 1.0, 2.0, 3.0]).reshape(4, 1, 1)),
        torch.rand,
    ),
    "torch_huber": (nn.HuberLoss(delta=0.3), torch.rand),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_exports(case, run):
    loss, target = CASES[case]
    torch.manual_seed(0)
    model = MultiTaskModel(
        encoder=nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh()),
        heads={"a": nn.Conv2d(4, 4, 1)},
        losses={"a": loss},
        example_input=torch.rand(3, 3, 6, 5),
        example_targets={"a": target(3, 4, 6, 5)},
    )
    assert check_parity(compile_model(model), run).max_relative_error <= TOLERANCE


P, Y = torch.randn(2, 4, 5, 3), torch.rand(2, 4, 5, 3)
C = torch.randint(0, 4, (2, 5, 3))
W = torch.tensor([1.0, 2.0, 0.5, 3.0])
SAME = {
    "masked_l2": (losses.masked_l2, Y, F.mse_loss(P, Y)),
    "huber": (losses.masked_huber(0.7), Y, F.huber_loss(P, Y, delta=0.7)),
    "binary": (losses.masked_binary_cross_entropy, Y, F.binary_cross_entropy_with_logits(P, Y)),
    "l2": (losses.l2, Y, F.mse_loss(P, Y)),
    "classes": (losses.cross_entropy(), C, F.cross_entropy(P, C)),
    "classes_ignored": (losses.cross_entropy(ignore=1), C, F.cross_entropy(P, C, ignore_index=1)),
    "classes_weighted": (
        losses.cross_entropy(ignore=1, weights=W.tolist()),
        C,
        F.cross_entropy(P, C, W, ignore_index=1),
    ),
    "classes_smoothed": (losses.cross_entropy(smoothing=0.2), C, F.cross_entropy(P, C, label_smoothing=0.2)),
    "cosine": (losses.cosine, Y, (1 - F.cosine_similarity(P, Y, dim=1)).mean()),
}


@pytest.mark.parametrize("case", SAME)
def test_loss_of_labels_everywhere_is_pytorchs_own(case):
    loss, target, expected = SAME[case]
    torch.testing.assert_close(loss(P, target), expected)


def test_loss_counts_labelled_elements_alone():
    target = torch.where(torch.arange(3).reshape(1, 1, 1, 3) == 1, NAN, Y)
    kept = torch.tensor([0, 2])
    for loss in (losses.masked_l1, losses.masked_l2, losses.masked_huber(), losses.masked_binary_cross_entropy):
        torch.testing.assert_close(loss(P, target), loss(P[..., kept], Y[..., kept]))
    torch.testing.assert_close(losses.cosine(P, target), losses.cosine(P[..., kept], Y[..., kept]))
    torch.testing.assert_close(losses.dice(P, target), losses.dice(P[..., kept], Y[..., kept]))


def test_loss_without_any_label_is_zero():
    nothing = torch.full_like(P, NAN)
    for loss in (
        losses.masked_l1,
        losses.masked_l2,
        losses.masked_huber(),
        losses.masked_binary_cross_entropy,
        losses.cosine,
        losses.dice,
    ):
        assert loss(P, nothing).item() == 0
    assert losses.cross_entropy(ignore=2)(P, torch.full_like(C, 2)).item() == 0


def test_dice_of_a_sure_prediction_is_nothing_and_of_a_wrong_one_nearly_one():
    mask = (torch.rand(2, 1, 20, 20) > 0.5).float()
    sure = 40 * (2 * mask - 1)
    assert losses.dice(sure, mask).item() == pytest.approx(0, abs=1e-5)
    assert losses.dice(-sure, mask).item() > 0.99
