"""Cut the encoder into stages, so that its backward pass needs the activations of one stage at a time.

Recomputing stage by stage (Chen et al., "Training deep nets with sublinear memory cost", arXiv 1604.06174) holds the
values that cross from stage to stage, and at any time the activations of one stage and the gradients of what crosses at
its two ends. The cuts are those with the lowest peak of these together, found exactly by dynamic programming over the
operators of the forward pass; of the numbers of stages that come close to the best, the smallest is taken.

A cut may be where all that crosses it is a batch of float32 arrays that depends on parameters, and where no parameter
and no state is used on both sides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, prod
from typing import Any

import torch
from torch import fx

from export.trace import Batch, Trace, TraceStep

MAX_STAGES = 8
NEAR = 1.1
"""A number of stages is good enough if its peak is within this factor of the lowest."""


@dataclass(frozen=True)
class ForwardSegment:
    """Some consecutive operators of a forward pass: the nodes that they read from others and write for others."""

    steps: tuple[TraceStep, ...]
    reads: tuple[fx.Node, ...]
    writes: tuple[fx.Node, ...]


def cut(trace: Trace, x: fx.Node, outputs: Sequence[fx.Node], stages: int | None = None) -> tuple[ForwardSegment, ...]:
    """Cut a forward pass from `x` to `outputs` into segments; every other input of the trace belongs to one of them.

    `stages` sets how many there are at most; None chooses.
    """
    flow = _Flow.of(trace, x)
    bounds = _bounds(flow, stages)
    segments = []
    for first, last in pairwise(bounds):
        inside = {step.node for step in trace.steps[first:last]}
        read = {node for step in trace.steps[first:last] for node in step.sources} & flow.crossing_nodes - inside
        wanted = {node for node in inside if flow.last_use.get(node, 0) >= last} | (inside & set(outputs))
        if last == len(trace.steps):
            passed_on = {x}.intersection(outputs)
            read |= passed_on
            wanted |= passed_on
        order = [x, *(step.node for step in trace.steps)]
        segments.append(
            ForwardSegment(
                steps=trace.steps[first:last],
                reads=tuple(node for node in order if node in read),
                writes=tuple(node for node in order if node in wanted),
            )
        )
    return tuple(segments)


@dataclass(frozen=True)
class _Flow:
    """A forward pass as positions: where it can be cut, what crosses there, what each operator leaves behind."""

    cuts: tuple[int, ...]
    crossing_bytes: Mapping[int, float]
    inner_bytes: tuple[float, ...]
    """The bytes that the operators before each position leave, for one sample."""
    last_use: Mapping[fx.Node, int]
    crossing_nodes: frozenset[fx.Node]

    @classmethod
    def of(cls, trace: Trace, x: fx.Node) -> "_Flow":
        steps = trace.steps
        position = {step.node: i for i, step in enumerate(steps)}
        fixed = {step.node for step in trace.inputs} - {x}
        last_use: dict[fx.Node, int] = {}
        first_use: dict[fx.Node, int] = {}
        trained: set[fx.Node] = set(fixed)
        for i, step in enumerate(steps):
            for source in step.sources:
                last_use[source] = i
                first_use.setdefault(source, i)
            if trained.intersection(step.sources):
                trained.add(step.node)
        barred = [False] * (len(steps) + 1)
        crossing = [0.0] * (len(steps) + 1)
        for node in fixed:
            for i in range(first_use.get(node, 0) + 1, last_use.get(node, 0) + 1):
                barred[i] = True
        for node, i in position.items():
            last = last_use.get(node, i)
            good = _batched(steps[i]) and node in trained
            for at in range(i + 1, last + 1):
                barred[at] = barred[at] or not good
                crossing[at] += _sample_bytes(steps[i])
        inner = [0.0]
        for step in steps:
            inner.append(inner[-1] + _inner_bytes(step))
        cuts = tuple(i for i in range(1, len(steps)) if not barred[i])
        return cls(
            cuts=cuts,
            crossing_bytes={i: crossing[i] for i in cuts} | {0: 0.0, len(steps): 0.0},
            inner_bytes=tuple(inner),
            last_use=last_use,
            crossing_nodes=frozenset(position) | {x},
        )


def _bounds(flow: _Flow, stages: int | None) -> list[int]:
    """Return the positions between which the segments are, the ends included."""
    total = len(flow.inner_bytes) - 1
    places = [0, *flow.cuts, total]
    most = min(stages or MAX_STAGES, len(places) - 1)
    # best[i]: the lowest peak of the operators before places[i] in a number of stages, the held values that lead there,
    # and the place before. What is held at a stage is what crosses all cuts up to its end.
    best: list[tuple[float, float, list[int]]] = [
        (flow.inner_bytes[at] + 2 * flow.crossing_bytes[at], flow.crossing_bytes[at], [0, at]) for at in places
    ]
    found = [best[-1]]
    for _ in range(1, most):
        following = []
        for i, at in enumerate(places):
            chosen: tuple[float, float, list[int]] = (inf, inf, [])
            for j in range(1, i):
                peak, held, bounds = best[j]
                here = held + flow.crossing_bytes[at]
                ends = flow.crossing_bytes[at] + flow.crossing_bytes[places[j]]
                peak = max(peak, here + ends + flow.inner_bytes[at] - flow.inner_bytes[places[j]])
                if (peak, here) < chosen[:2]:
                    chosen = (peak, here, [*bounds, at])
            following.append(chosen)
        best = following
        found.append(best[-1])
    if stages is not None:
        return found[-1][2] or found[0][2]
    lowest = min(peak for peak, _, _ in found)
    return next(bounds for peak, _, bounds in found if peak <= NEAR * lowest)


def _batched(step: TraceStep) -> bool:
    shape = step.shapes[0] or ()
    return (
        len(step.shapes) == 1
        and shape[:1] == (Batch(1.0),)
        and not any(isinstance(dim, Batch) for dim in shape[1:])
        and step.dtypes[0] == torch.float32
    )


def _sample_bytes(step: TraceStep) -> float:
    return sum(_bytes(shape, dtype) for shape, dtype in zip(step.shapes, step.dtypes, strict=True))


def _inner_bytes(step: TraceStep) -> float:
    """Return the bytes that an operator leaves for the backward pass; a view, or one of several results, is not new."""
    view = not isinstance(step.target, torch._ops.OpOverload) or step.target.is_view  # noqa: SLF001
    return 0.0 if view else _sample_bytes(step)


def _bytes(shape: tuple[Any, ...] | None, dtype: torch.dtype | None) -> float:
    if shape is None or dtype is None or not any(isinstance(dim, Batch) for dim in shape):
        return 0.0
    return prod(dim.factor if isinstance(dim, Batch) else dim for dim in shape) * dtype.itemsize
