"""Whether a loss is a mean over the batch, as training needs it: whole batches and their parts then agree.

A mean over whatever counts (samples, labelled pixels, weights of classes) is the same for a batch and for the batch
repeated. A sum grows by as much with each repetition, also where it is one term among others. A loss that compares the
samples of a batch with one another, as contrastive losses do, does neither, and is not judged here.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_NOTICEABLE = 1e-3
"""The least growth that is not rounding, relative to the loss."""
_ALIKE = 0.01


def grows_with_batch(loss: Callable[[Tensor, Tensor], Tensor], prediction: Tensor, target: Tensor) -> bool:
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
