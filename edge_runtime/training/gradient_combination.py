"""How the tasks' gradients at the representation become the one that goes into the encoder, where they conflict.

The plain sum needs none of this: the model adds each task's ∂L_i/∂z as it comes. PCGrad and CAGrad (wire/conflict.py)
look at all of them at once, so T copies of ∂L_i/∂z are held while the heads run. They see a task's gradient over all
arrays and samples of what is run at once as one vector, weighted as the plan weights the task; where a batch is worked
through in micro-batches, each is merged by itself. Heads are trained by their own gradients in any case.
"""

# coverage: every branch

from collections.abc import Sequence

import numpy as np

from edge_runtime.training.encoder import Representation
from edge_runtime.training.model import CombineGradients
from edge_runtime.wire.conflict import Matrix, Row, cagrad, gram, pcgrad
from edge_runtime.wire.messages import Training


def gradient_combiner(settings: Training, place: Sequence[int]) -> CombineGradients | None:
    """What merges the gradients of a batch as a plan says; None for the plain sum.

    PCGrad draws its orders for the `place` of the batch: the same place, the same orders.
    """
    if settings.gradient_combination == "sum":
        return None

    def merge(gradients: list[Representation]) -> Representation:
        arrays = range(len(gradients[0]))
        inner: Matrix = np.sum([gram([gradient[k] for gradient in gradients]) for k in arrays], axis=0)  # (T, T)
        shares = np.ones(len(gradients))
        if settings.gradient_combination == "pcgrad":
            return summed(gradients, pcgrad(inner, shares, place))
        return summed(gradients, cagrad(inner, shares, settings.cagrad_c))

    return merge


def summed(gradients: list[Representation], coefficients: Row) -> Representation:
    """Σ c_i · ∂L_i/∂z, written over the first of the gradients; the list is used up, so that their memory is free."""
    total = gradients[0]
    for i, factor in enumerate(coefficients):
        for whole, part in zip(total, gradients[i], strict=True):
            np.multiply(part, np.float32(factor), out=part)
            if i:
                np.add(whole, part, out=whole)
    gradients.clear()
    return total
