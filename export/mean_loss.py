"""Whether a loss is a mean over the batch, as training needs it: whole batches and their parts then agree.

A mean over whatever counts (samples, labelled pixels, weights of classes) is the same for a batch and for the batch
repeated. A sum grows by as much with each repetition, also where it is one term among others.

A loss may also compare the samples of a batch: contrastive losses, Dice of a whole batch, the root of a mean, the
hardest samples alone. Then a sample's gradient depends on what the others are, beyond which of them have labels, and a
batch is more than its parts.
"""

import torch
from torch import Tensor

from export.prediction import Batch, Loss, Prediction, loss_and_gradient, mapped

_NOTICEABLE = 1e-3
"""The least difference that is not rounding, relative to the loss or to the gradient."""
_ALIKE = 0.01


def grows_with_batch(loss: Loss, prediction: Prediction, target: Tensor) -> bool:
    """Return whether the loss of a batch (B, …) grows in proportion as the batch is repeated.

    False for a loss that fails on the repeated batch, which has faults of its own.
    """

    def repeated(times: int) -> float:
        return float(loss(mapped(lambda one: torch.cat([one] * times), prediction), torch.cat([target] * times)))

    try:
        once, twice, four_times = map(repeated, (1, 2, 4))
    except Exception:  # noqa: BLE001 - a user's loss may raise anything
        return False
    growth = twice - once
    if not abs(growth) > _NOTICEABLE * max(abs(once), abs(twice)):
        return False
    return abs((four_times - twice) - 2 * growth) <= _ALIKE * abs(2 * growth)


def compares_samples(loss: Loss, prediction: Prediction, target: Tensor) -> bool:
    """Return whether the gradient at a sample depends on predictions and values of others in the batch (B, …).

    False for a loss that fails on another batch.
    """
    values = target
    if target.is_floating_point():  # what is NaN or zero may mean no label, and stays; so does 0 to 1
        values = target * target.abs() / target.nan_to_num().abs().max().clamp(min=1.0)
    try:
        as_they_are = _gradient(loss, (prediction, target), (prediction, target))
        changed = _gradient(loss, (prediction, target), (mapped(lambda one: 0.5 * one + 0.01, prediction), values))
    except Exception:  # noqa: BLE001 - a user's loss may raise anything
        return False
    scale = torch.maximum(as_they_are.abs().max(), changed.abs().max())
    return bool((as_they_are - changed).abs().max() > _NOTICEABLE * scale)


def _gradient(loss: Loss, batch: Batch, others: Batch) -> Tensor:
    """Return the gradient (B, N) at the predictions of a batch that is followed by another one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a loss that draws numbers draws the same ones each time
        return loss_and_gradient(loss, batch, others)[1]
