"""Encoder aggregation: the changes of a round's devices as one step of the encoder. Stems and heads are averaged.

A change is the encoder's weights that a round began with less those that a device ended with. The rule makes one change
of them, and the server's optimizer steps along it:

- mean: the weighted mean; with the plain step this is federated averaging, bit for bit
- gpaggregation: FedBone's rule, by history attention and projection (gpaggregation.py)
- pcgrad, cagrad: the rules that devices have for tasks (wire/conflict.py), with n_k / Σ n as shares

The aggregation state goes on from one round of a group to the next: the last aggregate and the server optimizer's
state, one flat vector. A group's first round in a phase has none.
"""

# coverage: every branch

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from broker_server.aggregation.fedavg import FedAvg, part_weight
from broker_server.aggregation.gpaggregation import aggregate
from broker_server.aggregation.server_optimizer import ServerOptimizer
from broker_server.aggregation.sums import Sums
from edge_runtime.wire.conflict import cagrad, combine, gram, pcgrad
from edge_runtime.wire.tensors import TensorTable, Vector
from edge_runtime.wire.training import CAGradRadius

ENCODER = "encoder"
Rule = Literal["auto", "mean", "gpaggregation", "pcgrad", "cagrad"]
"""`auto` is the strategy's own rule: the mean, unless something else is said."""


class Aggregation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rule that combines devices' changes of the encoder, and the optimizer that steps along the result."""

    rule: Annotated[
        Rule,
        Meta(
            description="the rule; auto: gpaggregation with the strategy fedbone, the mean with all others",
            extra={"flag": "--aggregation"},
        ),
    ] = "auto"
    optimizer: Annotated[
        ServerOptimizer,
        Meta(description="how the server steps along what they are combined to", extra={"prefix": "server-"}),
    ] = ServerOptimizer()
    cagrad_c: Annotated[
        CAGradRadius,
        Meta(
            description="with cagrad: how far from the mean it may go, in parts of its length",
            extra={"flag": "--aggregation-cagrad-c"},
        ),
    ] = 0.4

    @property
    def is_mean(self) -> bool:
        """Return whether the rule is the mean."""
        return self.rule in {"auto", "mean"}

    @property
    def is_plain(self) -> bool:
        """Return whether it is federated averaging."""
        return self.is_mean and self.optimizer.is_plain

    def resolved(self, own: Rule) -> "Aggregation":
        """Return it with the strategy's own rule for `auto`, and CAGrad's constant where that counts alone."""
        rule = own if self.rule == "auto" else self.rule
        cagrad_c = self.cagrad_c if rule == "cagrad" else Aggregation().cagrad_c
        return Aggregation(rule=rule, optimizer=self.optimizer, cagrad_c=cagrad_c)

    def state_table(self, table: TensorTable) -> TensorTable | None:
        """Return the layout of the aggregation state of a group with this table; None where there is no state."""
        where = table.where(ENCODER)
        size = where.stop - where.start
        sizes = {
            "history": size if self.rule == "gpaggregation" else 0,
            "optimizer": self.optimizer.state_size(size),
        }
        shapes = {name: (length,) for name, length in sizes.items() if length}
        return TensorTable.of(shapes) if shapes else None


class RoundAggregation:
    """The aggregation of one round: from its initial weights (P,), laid out by `table`, and devices' weights (P,).

    `state` is left by the group's round before, laid out by aggregation.state_table(table); None in its first round.
    `seed` draws PCGrad's orders. Devices are folded in an order that means nothing, such as that of their names: PCGrad
    and GPAggregation depend on it. In memory are one device's weights and the sums of FedAvg; the changes of the
    encoder, for the rules that need all of them at once, are in a temporary file in `folder`.
    """

    def __init__(
        self,
        table: TensorTable,
        initial: Vector,
        aggregation: Aggregation,
        *,
        state: Vector | None,
        seed: Sequence[int],
        folder: Path,
        sums: Sums | None = None,
    ) -> None:
        table.check(initial)
        self._table = table
        self._initial = initial
        self._aggregation = aggregation
        self._state = state
        self._seed = tuple(seed)
        self._where = table.where(ENCODER)
        self._mean = FedAvg(table, sums)
        self._examples: list[int] = []
        self._folder = folder
        self._file: IO[bytes] | None = None
        self.diverged = False
        """True if the step was not finite, so that it was not taken: the encoder is as it was, its state is dropped."""

    def fold(self, vector: Vector, examples: Mapping[str, int]) -> None:
        """Add one device's weights; `examples` is what it trained on, by task.

        Raises TensorsInvalid for another length or dtype.
        """
        self._mean.fold(vector, examples)
        if weight := part_weight(ENCODER, examples):
            self._examples.append(weight)
            if not self._aggregation.is_mean and len(self._initial[self._where]):
                self._file = self._file or tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
                self._file.write((self._initial[self._where] - vector[self._where]).data.cast("B"))

    def result(self) -> tuple[Vector, Vector | None]:
        """Return the new weights, and the state for the next round. Parts that no device trained keep their weights."""
        new = self._mean.result(self._initial)
        if self._aggregation.is_plain or not self._examples or not len(new[self._where]):
            return new, self._state
        with np.errstate(over="ignore", invalid="ignore"):
            weights, state = self._step(new[self._where])
        finite = bool(np.isfinite(weights).all() and (state is None or np.isfinite(state).all()))
        new[self._where] = weights if finite else self._initial[self._where]
        self.diverged = not finite
        return new, state if finite else None

    def _step(self, mean: Vector) -> tuple[Vector, Vector | None]:
        """Return the new weights of the encoder, and the aggregation state."""
        layout = self._aggregation.state_table(self._table)
        size = 0 if layout is None else layout.size
        state = np.zeros(size, np.float32) if self._state is None else self._state.copy()
        parts = {} if layout is None else layout.views(state)
        change = self._change(mean, None if self._state is None else parts.get("history"))
        initial = self._initial[self._where]
        weights, optimizer_state = self._aggregation.optimizer.step(initial, change, parts.get("optimizer", state[:0]))
        for name, value in (("history", change), ("optimizer", optimizer_state)):
            if name in parts:
                parts[name][:] = value
        return weights, None if layout is None else state

    def _change(self, mean: Vector, history: Vector | None) -> Vector:
        """Return the devices' changes as one."""
        if self._file is None:
            change: Vector = self._initial[self._where] - mean
            return change
        with self._file as file:
            file.flush()
            changes = list(np.memmap(file, np.float32, "r", shape=(len(self._examples), len(mean))))
        shares = np.array(self._examples, np.float64) / sum(self._examples)
        match self._aggregation.rule:
            case "pcgrad":
                return combine(changes, pcgrad(gram(changes), shares, self._seed))
            case "cagrad":
                return combine(changes, cagrad(gram(changes), shares, self._aggregation.cagrad_c))
            case _:
                return aggregate(changes, self._examples, history)
