"""Gradient combination: the tasks' gradients at the representation become one for the encoder, by one of some rules.

The plain sum needs none of this: the model adds each task's ∂L_i/∂z as it comes. PCGrad and CAGrad (wire/conflict.py)
see all of them at once, so T copies of ∂L_i/∂z are held while the heads run. A task's gradient over all arrays and
samples of a run is one vector, weighted by the task's weight. Each micro-batch is combined by itself. Heads are always
trained by their own gradients.

Of T gradients the sum that reaches the encoder is divided by √T, so that a group of tasks that pull one way takes a
step up to √T times as long as a single task's. With their mean the step is level across group sizes.
"""

# coverage: every branch

from collections.abc import Sequence

import numpy as np

from edge_runtime.training.encoder import Representation
from edge_runtime.training.gram import representation_gram
from edge_runtime.training.model import CombineGradients
from edge_runtime.wire.conflict import Row, cagrad, pcgrad
from edge_runtime.wire.messages import Training


def gradient_combiner(settings: Training, place: Sequence[int]) -> CombineGradients | None:
    """Return the rule that a plan sets for a batch's gradients; None for the plain sum.

    PCGrad's random orders follow from the `place` of the batch.
    """
    if settings.gradient_combination == "sum":
        return None

    def combine(gradients: list[Representation]) -> Representation:
        if settings.gradient_combination == "mean":  # over √T here, and over √T as every rule's result
            return summed(gradients, np.full(len(gradients), 1 / np.sqrt(len(gradients))))
        inner = representation_gram(gradients)  # (T, T)
        shares = np.ones(len(gradients))
        if settings.gradient_combination == "pcgrad":
            return summed(gradients, pcgrad(inner, shares, place))
        return summed(gradients, cagrad(inner, shares, settings.cagrad_c))

    return combine


def summed(gradients: list[Representation], coefficients: Row) -> Representation:
    """Return Σ c_i · ∂L_i/∂z, written over the first gradient. Empties the list, which frees the others."""
    total = gradients[0]
    for i, factor in enumerate(coefficients):
        for whole, part in zip(total, gradients[i], strict=True):
            np.multiply(part, np.float32(factor), out=part)
            if i:
                np.add(whole, part, out=whole)
    gradients.clear()
    return total
