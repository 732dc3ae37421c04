"""FedHCA²: devices with other tasks help one another by conflict-averse changes and by attention, as far as it pays.

For T devices with changes Δ_i, from what they were sent to what they have trained, the new weights of device i are

    trained_i + gate · U        of the encoder, U being near the mean of all changes, where the worst off gains most
    trained_i + gate · A_i      of a layer of a head, A = softmax(ΔΔᵀ / √p) Δ over all heads with such a layer

Gates, between 0 and 1, are learned on the server: what training does next shows whether a push was welcome, by the
gradient −⟨Δ_i, push of the round before⟩. Source: Lu et al., "FedHCA²: Towards Hetero-Client Federated
Multi-Task Learning", CVPR 2024, sections 3.2 to 3.4, and its released code (its names: c, hyper-weights).
"""

# coverage: every branch

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from broker_server.aggregation.fedavg import HEAD
from edge_runtime.wire.conflict import Matrix, Row, cagrad, combine, gram
from edge_runtime.wire.tensors import TensorTable, Vector

ENCODER = "encoder"
START, RATE, MOMENTUM, DECAY = 0.1, 0.01, 0.9, 1e-4
"""Of the gates: where they begin, and how they are learned."""


class PushGate(msgspec.Struct, frozen=True, kw_only=True):
    """A device's share of pushes of one kind: between 0 and 1, outside of them as the nearest of both."""

    value: float = START
    speed: float = 0.0

    @property
    def open(self) -> float:
        """The share of a push that is taken."""
        return min(max(self.value, 0.0), 1.0)

    def learned(self, gradient: float) -> "PushGate":
        """Return the gate after a step of gradient descent with momentum and weight decay."""
        speed = MOMENTUM * self.speed + gradient + DECAY * self.value
        return PushGate(value=self.value - RATE * speed, speed=speed)


Gates = dict[str, PushGate]
"""By the encoder, and by the names of heads' tensors."""


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """A device's new weights (D,), and what pushed them, (D,): the gates have let a part of it through."""

    weights: Vector
    push: Vector
    gates: Gates


def conflict_averse(inner: Matrix, c: float) -> Row:
    """Return the coefficients (T,) of U = (mean + c‖mean‖ · g_w/‖g_w‖) / (1 + c²), from inner products (T, T)."""
    shares = np.full(len(inner), 1 / len(inner))
    found: Row = cagrad(inner, shares, c) / (1 + c * c)
    return found


def attention(changes: Matrix) -> Matrix:
    """Return softmax(ΔΔᵀ / √p) Δ for the changes Δ (K, p) of one layer of K heads."""
    scores = changes @ changes.T / np.sqrt(changes.shape[1])  # (K, K)
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    found: Matrix = raised / raised.sum(axis=1, keepdims=True) @ changes
    return found


@dataclass(frozen=True, kw_only=True)
class HyperWeights:
    """The rule. `c` is how far U may go from the mean, in parts of its length."""

    c: float

    def pushed(
        self,
        table: TensorTable,
        trained: Sequence[Vector],
        sent: Sequence[Vector],
        before: Sequence[tuple[Vector, Gates] | None],
    ) -> Iterator[Pushed]:
        """Yield the new weights of T devices, all laid out by `table`.

        `before` has each device's push of the round before, None for one that had none, and its gates.
        """
        encoder = table.where(ENCODER)
        changes = [np.subtract(new, old) for new, old in zip(trained, sent, strict=True)]
        shared = combine([each[encoder] for each in changes], self._coefficients(changes, encoder))
        pushes = _attentions(table, changes)
        for number, (new, known) in enumerate(zip(trained, before, strict=True)):
            push = pushes[number]
            push[encoder] = shared
            gates = {} if known is None else learned(table, known[1], changes[number], known[0])
            weights = np.array(new)
            kept: Gates = {}
            for name, where in gated(table).items():
                kept[name] = gates.get(name, PushGate())
                weights[where] += np.float32(kept[name].open) * push[where]
            yield Pushed(weights=weights, push=push, gates=kept)

    def _coefficients(self, changes: Sequence[Vector], encoder: slice) -> Row:
        return conflict_averse(gram([each[encoder] for each in changes]), self.c)


def gated(table: TensorTable) -> dict[str, slice]:
    """Return the ranges that have gates of their own: the encoder, and each tensor of a head."""
    heads = {t.name: slice(t.offset, t.offset + t.size) for t in table.tensors if t.part.startswith(HEAD)}
    return {ENCODER: table.where(ENCODER)} | heads


def learned(table: TensorTable, gates: Mapping[str, PushGate], change: Vector, push: Vector) -> Gates:
    """Return the gates after a device's change (D,), which the `push` (D,) of the round before went before."""
    found = {}
    for name, where in gated(table).items():
        gradient = -float(np.dot(change[where].astype(np.float64), push[where].astype(np.float64)))
        found[name] = gates.get(name, PushGate()).learned(gradient)
    return found


def _attentions(table: TensorTable, changes: Sequence[Vector]) -> list[Vector]:
    """Return what attention over heads makes of their changes, by device. Layers of one form attend to each other."""
    layers: dict[tuple[str, tuple[int, ...]], list[slice]] = {}
    for tensor in table.tensors:
        if tensor.part.startswith(HEAD):
            layer = (tensor.name.removeprefix(f"{tensor.part}."), tensor.shape)
            layers.setdefault(layer, []).append(slice(tensor.offset, tensor.offset + tensor.size))
    found = [np.zeros_like(change) for change in changes]
    for places in layers.values():
        rows = np.array([change[where] for change in changes for where in places], np.float64)  # (T · tasks, p)
        attended = iter(attention(rows))
        for push in found:
            for where in places:
                push[where] = next(attended)
    return found
