import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from export import losses  # noqa: E402
from export.compile import compile_model, describe  # noqa: E402
from export.errors import ModelInvalid  # noqa: E402
from export.mean_loss import compares_samples, grows_with_batch  # noqa: E402
from export.parity.check import check_parity  # noqa: E402

pytestmark = pytest.mark.workstation

torch.manual_seed(0)
P, Y, C = torch.randn(4, 3, 5, 5), torch.rand(4, 3, 5, 5), torch.randint(0, 3, (4, 5, 5))
GAPS = torch.where(torch.rand(4, 3, 5, 5) < 0.4, torch.nan, Y)


def contrastive(prediction, target):
    embedded = F.normalize(prediction.flatten(1), dim=1)
    return F.cross_entropy(embedded @ F.normalize(target.flatten(1), dim=1).T, torch.arange(len(prediction)))


def batch_dice(logits, target):
    found = torch.sigmoid(logits)
    return 1 - 2 * (found * target).sum() / (found.sum() + target.sum())


SUMS = {
    "mse": (nn.MSELoss(reduction="sum"), Y),
    "classes": (nn.CrossEntropyLoss(reduction="sum"), C),
    "divided by pixels": (lambda p, t: (p - t).abs().sum() / 75, Y),
    "one term of two": (lambda p, t: (p - t).abs().mean() + 0.01 * (p - t).square().sum(), Y),
    "masked": (lambda p, t: torch.where(torch.isnan(t), 0.0, (p - t).abs()).sum(), GAPS),
}
MEANS = {
    "mse": (nn.MSELoss(), Y),
    "masked": (losses.masked_l1, GAPS),
    "weighted": (losses.cross_entropy(ignore=2, weights=[1.0, 5.0, 0.2]), C),
    "dice": (losses.dice, Y),
    "dice of the batch": (batch_dice, Y),
    "root": (lambda p, t: F.mse_loss(p, t).sqrt(), Y),
    "by the batch": (lambda p, t: F.kl_div(p.log_softmax(1), t.softmax(1), reduction="batchmean"), Y),
    "contrastive": (contrastive, Y),
    "largest": (lambda p, t: (p - t).abs().amax(), Y),
    "nothing": (lambda p, t: 0.0 * (p - t).sum(), Y),
    "fails on other batches": (lambda p, t: (p.reshape(4, -1) - t.reshape(4, 75)).sum(), Y),
}


@pytest.mark.parametrize("case", SUMS)
def test_sum_over_samples_grows(case):
    loss, target = SUMS[case]
    assert grows_with_batch(loss, P, target)
    assert grows_with_batch(loss, P[:1], target[:1])


@pytest.mark.parametrize("case", MEANS)
def test_mean_of_any_weights_does_not(case):
    loss, target = MEANS[case]
    assert not grows_with_batch(loss, P, target)


COMPARING = {
    "contrastive": (contrastive, Y),
    "dice of the batch": (batch_dice, Y),
    "root": (lambda p, t: F.mse_loss(p, t).sqrt(), Y),
    "largest": (lambda p, t: (p - t).abs().amax(), Y),
    "hardest": (lambda p, t: (p - t).abs().flatten().topk(30)[0].mean(), Y),
}
APART = {
    "mse": (nn.MSELoss(), Y),
    "masked": (losses.masked_l1, GAPS),
    "weighted": (losses.cross_entropy(ignore=2, weights=[1.0, 5.0, 0.2]), C),
    "probabilities": (lambda p, t: F.binary_cross_entropy(p.sigmoid(), t), Y),
    "dice": (losses.dice, Y),
    "cosine": (losses.cosine, Y),
    "noise": (lambda p, t: (p + torch.randn_like(p) - t).square().mean(), Y),
    "nothing": (lambda p, t: 0.0 * (p - t).sum(), Y),
    "fails on other batches": (lambda p, t: (p.reshape(4, -1) - t.reshape(4, 75)).sum(), Y),
}


@pytest.mark.parametrize("prediction", [P, torch.zeros_like(P)])
@pytest.mark.parametrize("case", COMPARING)
def test_loss_that_compares_samples_is_known(case, prediction):
    loss, target = COMPARING[case]
    if case != "contrastive" or prediction.any():  # of vectors without a length nothing can be said
        assert compares_samples(loss, prediction, target)


@pytest.mark.parametrize("case", APART)
def test_loss_that_takes_samples_apart_is_known(case):
    loss, target = APART[case]
    assert not compares_samples(loss, P, target)
    assert not compares_samples(loss, P[:1], target[:1])


def test_loss_that_compares_samples_is_in_the_manifest(make, run):
    compiled = compile_model(make(losses={"a": losses.l1, "b": lambda p, t: (p - t).square().mean().sqrt()}))
    manifest = describe(compiled, "m", check_parity(compiled, run))
    assert [task.whole_batch for task in manifest.tasks] == [False, True]
    assert manifest.whole_batch
    assert not manifest.group(("a",), manifest.weights).whole_batch


def test_model_whose_loss_is_a_sum_is_refused(make):
    with pytest.raises(ModelInvalid, match="the loss of b adds samples up, .* take the mean over the batch"):
        compile_model(make(losses={"a": losses.l1, "b": nn.MSELoss(reduction="sum")}))
