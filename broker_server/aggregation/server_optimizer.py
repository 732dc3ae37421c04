"""The server optimizer: it takes the clients' mean change for a gradient, and steps along it.

A change is the weights that a round began with less those that it ended with, so that it points uphill as a gradient
does. With SGD of rate 1 and no momentum the step is federated averaging. Source: FedOpt (Reddi et al., ICLR 2021,
algorithms 1 and 2), without their bias correction, as there.

    sgd     v ← momentum · v + g                            w ← w − lr · v
    adam    m ← beta1 · m + (1 − beta1) · g                 w ← w − lr · m / (√v + tau)
            v ← beta2 · v + (1 − beta2) · g²
"""

# coverage: every branch

from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from edge_runtime.wire.tensors import Vector


class ServerOptimizer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server's optimizer; `momentum` is Adam's beta1."""

    method: Annotated[
        Literal["sgd", "adam"], Meta(description="the server's optimizer", extra={"flag": "--server-optimizer"})
    ] = "sgd"
    lr: Annotated[float, Meta(gt=0, le=1e3, description="its learning rate; 1 with sgd is federated averaging")] = 1.0
    momentum: Annotated[float, Meta(ge=0, lt=1, description="its momentum; with adam beta1")] = 0.0
    beta2: Annotated[float, Meta(ge=0, lt=1, description="beta2 of adam")] = 0.99
    tau: Annotated[float, Meta(gt=0, le=1, description="how far adam adapts: a step is at most lr · |m| / tau")] = 1e-3

    @property
    def is_plain(self) -> bool:
        """Return whether a step is the change itself, so that steps along means are federated averaging."""
        return self.method == "sgd" and self.lr == 1.0 and not self.momentum

    def state_size(self, parameters: int) -> int:
        """Return how many elements of state go with this many parameters; they begin at zero."""
        if self.method == "adam":
            return 2 * parameters
        return parameters if self.momentum else 0

    def step(self, weights: Vector, change: Vector, state: Vector) -> tuple[Vector, Vector]:
        """Return new weights (P,) and state for an aggregated `change` (P,), computed in float64."""
        w, g = weights.astype(np.float64), change.astype(np.float64)
        if self.method == "sgd":
            if not self.momentum:
                return (w - self.lr * g).astype(np.float32), state
            v = self.momentum * state + g
            return (w - self.lr * v).astype(np.float32), v.astype(np.float32)
        m, v = np.split(state.astype(np.float64), 2)
        m = self.momentum * m + (1 - self.momentum) * g
        v = self.beta2 * v + (1 - self.beta2) * g**2
        new = w - self.lr * m / (np.sqrt(v) + self.tau)
        return new.astype(np.float32), np.concatenate([m, v]).astype(np.float32)
