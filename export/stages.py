"""Cut the encoder into stages, so that its backward pass needs the activations of one stage at a time.

Recomputing stage by stage (Chen et al., "Training deep nets with sublinear memory cost", arXiv 1604.06174) holds the
values that cross from stage to stage, and at any time the activations of one stage and the gradients of what crosses at
its two ends. The cuts are those with the lowest peak of these together, found exactly by dynamic programming over the
operators of the forward pass; of the numbers of stages that come close to the best, the smallest is taken.

A cut may be where all that crosses it is a batch of float32 arrays that depends on parameters, and where no parameter
and no state is used on both sides. Fixed tensors may be used anywhere. What comes before the first use of a trained
parameter, if fixed tensors are used there, is a segment of its own where it can be cut off: it needs no backward pass.
"""

from collections.abc import Collection, Mapping, Sequence
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


def cut(
    trace: Trace,
    sources: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
    stages: int | None = None,
    *,
    fixed: Collection[fx.Node] = (),
    state: Collection[fx.Node] = (),
    of_source: bool = False,
) -> tuple[ForwardSegment, ...]:
    """Cut a forward pass from `sources` to `outputs` into segments.

    Every other input that is not fixed belongs to one of them.

    `stages` sets how many there are at most; None chooses. There is no gradient of inputs that are `fixed` or `state`,
    and one of the sources only with `of_source`.
    """
    flow = _Flow.of(trace, sources, fixed, state, of_source=of_source)
    first = flow.bottom if stages is None or stages > 1 else 0
    bounds = [0, *_bounds(flow, stages and stages - 1, first)] if first else _bounds(flow, stages)
    segments = []
    for first, last in pairwise(bounds):
        inside = {step.node for step in trace.steps[first:last]}
        read = {node for step in trace.steps[first:last] for node in step.sources} & flow.crossing_nodes - inside
        wanted = {node for node in inside if flow.last_use.get(node, 0) >= last} | (inside & set(outputs))
        if last == len(trace.steps):
            passed_on = set(sources).intersection(outputs)
            read |= passed_on
            wanted |= passed_on
        order = [*sources, *(step.node for step in trace.steps)]
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
    bottom: int
    """Where the last cut is before which nothing depends on what is trained, though on fixed tensors; 0 if nowhere."""

    @classmethod
    def of(
        cls,
        trace: Trace,
        starts: Sequence[fx.Node],
        fixed: Collection[fx.Node],
        state: Collection[fx.Node],
        *,
        of_source: bool,
    ) -> "_Flow":
        steps = trace.steps
        position = {step.node: i for i, step in enumerate(steps)}
        held = {step.node for step in trace.inputs} - set(starts) - set(fixed)
        last_use: dict[fx.Node, int] = {}
        first_use: dict[fx.Node, int] = {}
        for i, step in enumerate(steps):
            for source in step.sources:
                last_use[source] = i
                first_use.setdefault(source, i)
        trained = _depending(steps, held | (set(starts) if of_source and fixed else set()))
        untrained = 0  # operators before any that has a gradient
        if not of_source:
            differentiated = _depending(steps, held - set(state))
            untrained = next((i for i, step in enumerate(steps) if step.node in differentiated), len(steps))
        if not any(first_use.get(node, len(steps)) < untrained for node in fixed):
            untrained = 0
        barred = [False] * (len(steps) + 1)
        crossing = [0.0] * (len(steps) + 1)
        for node in held:
            for i in range(first_use.get(node, 0) + 1, last_use.get(node, 0) + 1):
                barred[i] = True
        for node, i in position.items():
            last = last_use.get(node, i)
            good = _batched(steps[i]) and (node in trained or i < untrained)
            for at in range(i + 1, last + 1):
                barred[at] = barred[at] or not good
                crossing[at] += _sample_bytes(steps[i])
        inner = [0.0]
        for step in steps:
            inner.append(inner[-1] + _inner_bytes(step))
        whole = 0 < untrained == len(steps)  # nothing has a gradient, so nothing is held and there is nothing to cut
        cuts = tuple(i for i in range(1, len(steps)) if not barred[i] and not whole)
        return cls(
            cuts=cuts,
            crossing_bytes={i: crossing[i] for i in cuts} | {0: 0.0, len(steps): 0.0},
            inner_bytes=tuple(inner),
            last_use=last_use,
            crossing_nodes=frozenset(position) | frozenset(starts),
            bottom=max((i for i in cuts if i <= untrained), default=0),
        )


def _bounds(flow: _Flow, stages: int | None, first: int = 0) -> list[int]:
    """Return the positions between which the segments from `first` on are, the ends included.

    What crosses there gets no gradient, so it counts for nothing.
    """
    total = len(flow.inner_bytes) - 1
    places = [first, *(at for at in flow.cuts if at > first), total]
    crossing = {**flow.crossing_bytes, first: 0.0}
    most = min(stages or MAX_STAGES, len(places) - 1)
    # best[i]: the lowest peak of the operators before places[i] in a number of stages, the held values that lead there,
    # and the place before. What is held at a stage is what crosses all cuts up to its end.
    best: list[tuple[float, float, list[int]]] = [
        (flow.inner_bytes[at] - flow.inner_bytes[first] + 2 * crossing[at], crossing[at], [first, at]) for at in places
    ]
    found = [best[-1]]
    for _ in range(1, most):
        following = []
        for i, at in enumerate(places):
            chosen: tuple[float, float, list[int]] = (inf, inf, [])
            for j in range(1, i):
                peak, held, bounds = best[j]
                here = held + crossing[at]
                ends = crossing[at] + crossing[places[j]]
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


def _depending(steps: Sequence[TraceStep], nodes: Collection[fx.Node]) -> set[fx.Node]:
    """Return these nodes and all whose results depend on them."""
    found = set(nodes)
    for step in steps:
        if found.intersection(step.sources):
            found.add(step.node)
    return found


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
