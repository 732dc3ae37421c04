"""pFedMe's two models in one training: a device's own, which the loss steps, and the federation's, which follows it.

    θ ← θ − lr · (∇F(θ) + strength · (θ − w) + decay · θ)        `steps` times on each batch
    w ← w − rate · strength · (w − θ)                            then, once

θ is what is trained, w the front of the state. Both begin with the weights that were received. Source: Dinh, Tran and
Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020, algorithm 1.
"""

# coverage: every branch

from dataclasses import dataclass

import numpy as np

from edge_runtime.training.optimizer import Ranges, blocks
from edge_runtime.wire.tensors import TensorTable, Vector


@dataclass(frozen=True, kw_only=True)
class MoreauSgd:
    """Stochastic gradient descent on both models. The state is w and the number of steps, (P + 1,)."""

    lr: float
    weight_decay: float
    strength: float
    steps: int
    """On each batch."""
    rate: float
    """Of w."""

    def table(self, parameters: TensorTable) -> TensorTable:
        """Return the table of w and of the number of steps."""
        return TensorTable.of(
            {"steps": (1,)} | {f"centre.{tensor.name}": tensor.shape for tensor in parameters.tensors}
        )

    @np.errstate(over="ignore", invalid="ignore")  # training that diverges shows in its losses and weights
    def step(self, weights: Vector, gradient: Vector, state: Vector, trained: Ranges | None = None) -> None:
        """Update θ in `weights` (P,) and w in `state` (P + 1,) in place. `gradient` is used as scratch."""
        centre = state[:-1]
        if not state[-1]:
            centre[:] = weights
        state[-1] += 1
        follows = state[-1] % self.steps == 0
        for part in blocks(trained, len(weights)):
            theta, g, w = weights[part], gradient[part], centre[part]
            away = theta - w
            g += np.float32(self.strength) * away + np.float32(self.weight_decay) * theta
            theta -= np.float32(self.lr) * g
            if follows:
                w += np.float32(self.rate * self.strength) * (theta - w)
