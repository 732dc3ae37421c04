"""Recurrent layers: one operator for the whole sequence, and one for its backward pass.

Unrolled, each step is dozens of nodes. Here a sequence is one node that runs its cell step after step, forward and back
(export.lowering.recurrence): a graph's size does not depend on its length. The backward pass computes each step again
from the states before it, which the forward pass gives (Chen et al., arXiv 1604.06174). What does not depend on the
state, the products of inputs and weights and the gradient of the weights, is one matrix product for all steps.

Shapes: T steps, B samples, H cells, S states of a cell (1, and 2 with an LSTM's memory), G numbers of its gates (4 · H
of an LSTM, 3 · H of a GRU, H else), A numbers that gradients arrive at before the gates: G, but 4 · H of a GRU, whose
state goes through a gate before it is added.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


@dataclass(frozen=True)
class RecurrentCell:
    """One step of a recurrent layer and its backward pass, as functions of ordinary operators.

    `forward(x, state, weight, bias)` maps what arrives from the input, (B, G), and the state (S, B, H) to the next one.
    `backward(d, x, state, weight, bias)` maps the gradient of the next state to those of the numbers before the gates,
    (B, A), and of the state.
    """

    states: int
    arriving: Callable[[Tensor], Tensor]
    """Picks, of the last dimension A, the gradient of what arrives from the input."""
    recurrent: Callable[[Tensor], Tensor]
    """Picks that of what the state's product with the weight adds."""
    forward: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _lstm_gates(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    i, f, g, o = (x + F.linear(state[0], weight, bias)).chunk(4, 1)
    return torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)


def _lstm(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    i, f, g, o = _lstm_gates(x, state, weight, bias)
    memory = f * state[1] + i * g
    return torch.stack([o * torch.tanh(memory), memory])


def _lstm_backward(d: Tensor, x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = _lstm_gates(x, state, weight, bias)
    shown = torch.tanh(f * state[1] + i * g)
    dm = d[1] + d[0] * o * (1 - shown * shown)
    gates = torch.cat(
        [dm * g * i * (1 - i), dm * state[1] * f * (1 - f), dm * i * (1 - g * g), d[0] * shown * o * (1 - o)], 1
    )
    return gates, torch.stack([gates @ weight, dm * f])


def _gru_gates(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    xr, xz, xn = x.chunk(3, 1)
    hr, hz, hn = F.linear(state[0], weight, bias).chunk(3, 1)
    r = torch.sigmoid(xr + hr)
    return r, torch.sigmoid(xz + hz), torch.tanh(xn + r * hn), hn


def _gru(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    _, z, n, _ = _gru_gates(x, state, weight, bias)
    return (n + z * (state[0] - n)).unsqueeze(0)


def _gru_backward(d: Tensor, x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    r, z, n, hn = _gru_gates(x, state, weight, bias)
    dn = d[0] * (1 - z) * (1 - n * n)
    reset, update = dn * hn * r * (1 - r), d[0] * (state[0] - n) * z * (1 - z)
    both = torch.cat([reset, update], 1)
    before = d[0] * z + torch.cat([both, dn * r], 1) @ weight
    return torch.cat([both, dn, dn * r], 1), before.unsqueeze(0)


def _plain(activation: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> RecurrentCell:
    """Return the cell of one gate; `slope` is the activation's derivative, from its result."""

    def forward(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return activation(x + F.linear(state[0], weight, bias)).unsqueeze(0)

    def backward(d: Tensor, x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        gate = d[0] * slope(activation(x + F.linear(state[0], weight, bias)))
        return gate, (gate @ weight).unsqueeze(0)

    return RecurrentCell(1, _all, _all, forward, backward)


def _all(d: Tensor) -> Tensor:
    return d


def _gru_arriving(d: Tensor) -> Tensor:
    return d[..., : 3 * d.shape[-1] // 4]


def _gru_recurrent(d: Tensor) -> Tensor:
    size = d.shape[-1] // 4
    return torch.cat([d[..., : 2 * size], d[..., 3 * size :]], -1)


CELLS: Mapping[str, RecurrentCell] = {
    "LSTM": RecurrentCell(2, _all, _all, _lstm, _lstm_backward),
    "GRU": RecurrentCell(1, _gru_arriving, _gru_recurrent, _gru, _gru_backward),
    "RNN_TANH": _plain(torch.tanh, lambda y: 1 - y * y),
    "RNN_RELU": _plain(torch.relu, lambda y: (y > 0).to(y.dtype)),
}


@torch.library.custom_op("mas_edge::recurrence", mutates_args=())
def recurrence(cell: str, x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the states after each step, (T, S, B, H), from what arrives, (T, B, G), and the first state (S, B, H)."""
    found = []
    for arrives in x:
        state = CELLS[cell].forward(arrives, state, weight, bias)
        found.append(state)
    return torch.stack(found)


@torch.library.custom_op("mas_edge::recurrence_backward", mutates_args=())
def recurrence_backward(
    cell: str, d: Tensor, x: Tensor, before: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients before the gates of each step, (T, B, A), and of the first state, from those of all states.

    `before` (T, S, B, H) are the states before each step.
    """
    found, carried = [], torch.zeros_like(d[0])
    for step in reversed(range(len(x))):
        gates, carried = CELLS[cell].backward(carried + d[step], x[step], before[step], weight, bias)
        found.append(gates)
    return torch.stack(found[::-1]), carried


@recurrence.register_fake
def _(cell: str, x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    del cell, weight, bias
    return torch.empty((x.shape[0], *state.shape), dtype=x.dtype)


@recurrence_backward.register_fake
def _(cell: str, d: Tensor, x: Tensor, before: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    del d, bias
    numbers = 4 * weight.shape[1] if cell == "GRU" else weight.shape[0]
    return torch.empty((*x.shape[:2], numbers), dtype=x.dtype), torch.empty(before.shape[1:], dtype=x.dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.cell, *given = inputs
    ctx.save_for_backward(*given, output)


def _differentiated(ctx: Any, d: Tensor) -> tuple[None, Tensor, Tensor, Tensor, Tensor]:
    x, state, weight, bias, after = ctx.saved_tensors
    cell = CELLS[ctx.cell]
    before = torch.cat([state.unsqueeze(0), after[:-1]])
    gates, first = recurrence_backward(ctx.cell, d, x, before, weight, bias)
    added = cell.recurrent(gates).flatten(0, 1)  # (T · B, G)
    return None, cell.arriving(gates), first, added.t() @ before[:, 0].flatten(0, 1), added.sum(0)


recurrence.register_autograd(_differentiated, setup_context=_keep)


def layers(
    cell: str,
    x: Tensor,
    first: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    biased: bool,
    count: int,
    dropout: float,
    bidirectional: bool,
) -> tuple[Tensor, ...]:
    """Run `count` recurrent layers over x (T, B, F); return the outputs of the last one and the last of all states.

    `first` are the first states (layers · directions, B, H), as many as the cell has; `weights` come in torch's order.
    """
    each = 4 if biased else 2
    groups = [weights[i : i + each] for i in range(0, len(weights), each)]
    directions = 1 + bidirectional
    last: list[Tensor] = []
    for layer in range(count):
        found = []
        for direction in range(directions):
            place = layer * directions + direction
            w_x, w_h, *biases = groups[place]
            b_x, b_h = biases or (None, torch.zeros(w_h.shape[0], dtype=w_h.dtype))
            arrives = F.linear(x, w_x, b_x)  # (T, B, G)
            state = torch.stack([each[place] for each in first])  # (S, B, H)
            states = recurrence(cell, arrives.flip(0) if direction else arrives, state, w_h, b_h)
            last.append(states[-1])
            found.append(states[:, 0].flip(0) if direction else states[:, 0])
        x = torch.cat(found, 2)
        if dropout and layer < count - 1:
            x = F.dropout(x, dropout)
    ends = torch.stack(last, 1)  # (S, layers · directions, B, H)
    return x, *ends.unbind(0)
