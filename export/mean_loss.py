"""Whether a loss is a mean over the batch, as training needs it: whole batches and their parts then agree.

A mean over whatever counts (samples, labelled pixels, weights of classes) is the same for a batch and for the batch
repeated. A sum grows by as much with each repetition, also where it is one term among others.

A loss may also compare the samples of a batch: contrastive losses, Dice of a whole batch, the root of a mean, the
hardest samples alone. Then a sample's gradient depends on what the others are, beyond which of them have labels, and a
batch is more than its parts.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
_NOTICEABLE = 1e-3
"""The least difference that is not rounding, relative to the loss or to the gradient."""
_ALIKE = 0.01


def grows_with_batch(loss: Loss, prediction: Tensor, target: Tensor) -> bool:
    """Return whether the loss of a batch (B, …) grows in proportion as the batch is repeated.

    False for a loss that fails on the repeated batch, which has faults of its own.
    """
    try:
        once, twice, four_times = (
            float(loss(torch.cat([prediction] * times), torch.cat([target] * times))) for times in (1, 2, 4)
        )
    except Exception:  # noqa: BLE001 - a user's loss may raise anything
        return False
    growth = twice - once
    if not abs(growth) > _NOTICEABLE * max(abs(once), abs(twice)):
        return False
    return abs((four_times - twice) - 2 * growth) <= _ALIKE * abs(2 * growth)


def compares_samples(loss: Loss, prediction: Tensor, target: Tensor) -> bool:
    """Return whether the gradient at a sample depends on predictions and values of others in the batch (B, …).

    False for a loss that fails on another batch.
    """
    values = target
    if target.is_floating_point():  # what is NaN or zero may mean no label, and stays; so does 0 to 1
        values = target * target.abs() / target.nan_to_num().abs().max().clamp(min=1.0)
    try:
        as_they_are = _gradient(loss, (prediction, target), (prediction, target))
        changed = _gradient(loss, (prediction, target), (0.5 * prediction + 0.01, values))
    except Exception:  # noqa: BLE001 - a user's loss may raise anything
        return False
    scale = torch.maximum(as_they_are.abs().max(), changed.abs().max())
    return bool((as_they_are - changed).abs().max() > _NOTICEABLE * scale)


def _gradient(loss: Loss, batch: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor]) -> Tensor:
    """Return the gradient at the predictions of a batch (B, …) that is followed by another one."""
    given = batch[0].detach().clone().requires_grad_()
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a loss that draws numbers draws the same ones each time
        value = loss(torch.cat([given, others[0].detach()]), torch.cat([batch[1], others[1]]))
        found: Tensor = torch.autograd.grad(value, given)[0]
    return found
