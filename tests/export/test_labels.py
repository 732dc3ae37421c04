from functools import partial

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from edge_runtime.wire.labels import LabelContract  # noqa: E402
from export import losses  # noqa: E402
from export.compile import compile_model, describe  # noqa: E402
from export.labels import label_contract  # noqa: E402
from export.parity.check import check_parity  # noqa: E402

pytestmark = pytest.mark.workstation

torch.manual_seed(0)
DENSE = torch.randint(0, 4, (2, 8, 8)), torch.randn(2, 4, 8, 8)
KIND = torch.randint(0, 4, (3,)), torch.randn(3, 4)
VALUES = torch.rand(2, 3, 8, 8), torch.randn(2, 3, 8, 8)


def picked(logits, target):
    """A focal loss as people write it: a look-up by the class."""
    chance = logits.softmax(1).gather(1, target.unsqueeze(1))
    return (-((1 - chance) ** 2) * chance.log()).mean()


def left_out_below_zero(logits, target):
    known = target >= 0
    each = F.cross_entropy(logits, target.clamp(min=0), reduction="none")
    return torch.where(known, each, 0.0).sum() / known.sum()


def finite_only(prediction, target):
    known = torch.isfinite(target)
    return torch.where(known, prediction - torch.where(known, target, 0.0), 0.0).abs().sum() / known.sum()


def count(prediction, target):
    """Integers that are no classes, of one score each."""
    return (prediction[:, 0] - target).square().mean()


@pytest.mark.parametrize(
    ("loss", "arrays", "expected"),
    [
        (losses.pixel_cross_entropy, DENSE, LabelContract(classes=4, ignored=(0,))),
        (losses.cross_entropy(), DENSE, LabelContract(classes=4)),
        (losses.cross_entropy(ignore=255), DENSE, LabelContract(classes=4, ignored=(255,))),
        (nn.CrossEntropyLoss(), KIND, LabelContract(classes=4, ignored=(-100,))),
        (nn.CrossEntropyLoss(ignore_index=-1), DENSE, LabelContract(classes=4, ignored=(-1,))),
        (nn.NLLLoss(ignore_index=2), DENSE, LabelContract(classes=4, ignored=(2,))),
        (F.cross_entropy, DENSE, LabelContract(classes=4, ignored=(-100,))),
        (partial(F.cross_entropy, ignore_index=255), DENSE, LabelContract(classes=4, ignored=(255,))),
        (nn.MultiMarginLoss(), KIND, LabelContract(classes=4)),
        (picked, DENSE, LabelContract(classes=4)),
        (lambda p, t: F.cross_entropy(p, t, ignore_index=255), DENSE, LabelContract(classes=4, ignored=(255,))),
        (left_out_below_zero, DENSE, LabelContract(classes=4, ignored=(-100, -1))),
        (count, (KIND[0], KIND[1][:, :1]), LabelContract()),
        (lambda p, t: (p - t).abs().mean(), (torch.ones(2, 3, 8, 8, dtype=torch.int64), VALUES[1]), LabelContract()),
        (losses.masked_l1, VALUES, LabelContract(nan=True)),
        (losses.l1, VALUES, LabelContract()),
        (losses.cosine, VALUES, LabelContract(nan=True)),
        (finite_only, VALUES, LabelContract(nan=True, inf=True)),
        (losses.masked_binary_cross_entropy, VALUES, LabelContract(bounds=(0, 1), nan=True)),
        (nn.BCEWithLogitsLoss(), VALUES, LabelContract(bounds=(0, 1))),
        (losses.dice, VALUES, LabelContract(bounds=(0, 1), nan=True)),
        (nn.CrossEntropyLoss(), (VALUES[0].softmax(1), VALUES[1]), LabelContract(bounds=(0, 1))),
        (nn.MSELoss(), VALUES, LabelContract()),
    ],
)
def test_contract_is_what_the_loss_takes(loss, arrays, expected):
    assert label_contract(loss, *arrays) == expected


def test_contract_of_a_loss_of_ones_own_has_the_ignored_class_that_the_model_names():
    def loss(logits, target):
        return F.cross_entropy(logits, target, ignore_index=77)

    assert label_contract(loss, *DENSE) == LabelContract(classes=4)
    assert label_contract(loss, *DENSE, ignored_class=77) == LabelContract(classes=4, ignored=(77,))
    assert label_contract(loss, *DENSE, ignored_class=78) == LabelContract(classes=4)  # which the loss does not take


def test_contract_of_a_single_sample():
    assert label_contract(left_out_below_zero, DENSE[0][:1], DENSE[1][:1]).ignored == (-100, -1)
    assert label_contract(losses.masked_l1, VALUES[0][:1, :1, :1, :1], VALUES[1][:1, :1, :1, :1]).nan


def test_contract_is_in_the_manifest(make, run):
    compiled = compile_model(make(losses={"a": losses.masked_l1, "b": nn.MSELoss()}))
    tasks = describe(compiled, "m", check_parity(compiled, run)).tasks
    assert [task.labels for task in tasks] == [LabelContract(nan=True), LabelContract()]
