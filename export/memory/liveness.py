"""The memory of one run of a graph, as a function of the micro-batch.

onnxruntime runs a graph's nodes one after another. What a node puts out is allocated when it runs and freed when the
last node that reads it has run; the arrays of the caller cost nothing here. So from the nodes in their order, and the
size of each value, follows every allocation, and from those what the arena touches (export.memory.arena). Sizes are
observed at two micro-batches and are straight lines in between and beyond. In place is what allocates nothing: where
a node did not, its result is the buffer of an input of the same size.

What kernels allocate for themselves, read off the sources of onnxruntime 1.31 and checked against its profile:

- Conv: the columns of one image and group where there are more filters than pixels, else a part of them for each
  thread; nothing for 1×1 with stride 1. ConvTranspose: the columns of one image and group.
- Where: both sides, each as wide as itself and the condition, before they are put together.
- ScatterElements and GatherElements: the indices again (from the system, not from the arena).
- Scan: what the nodes of one step put out, taken together, which is more than they hold at once.

The nodes are those of the optimised graph: fusions and their order are onnxruntime's own.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

import onnx

from edge_runtime.training.engine import NodeExecution
from edge_runtime.wire.operators import SCAN
from export.errors import ExportError
from export.memory.arena import Arena

ELEMENT_BYTES = {"float": 4, "double": 8, "int64": 8, "int32": 4, "bool": 1, "uint8": 1}
THREADS = 4
"""The threads of a device, by assumption: each takes a part of a convolution's columns."""
COLUMNS_BYTES = 64 * 1024
SUMMAND = 3
"""The place of the summand among the inputs of a fused convolution."""
RUNS = 2
"""After the first run, a second one finds the arena as the first one left it, and may place values elsewhere."""

Shaped = tuple[str, tuple[int, ...]]
"""The type and the shape of a value."""
Executions = tuple[NodeExecution, NodeExecution]
"""One node at the two micro-batches."""


@dataclass(frozen=True)
class Size:
    """Bytes that are a straight line over the micro-batch."""

    fixed: int
    per_sample: int

    def at(self, batch: int) -> int:
        """Bytes for a micro-batch."""
        return max(0, self.fixed + self.per_sample * batch)

    @classmethod
    def through(cls, batches: tuple[int, int], sizes: tuple[int, int]) -> "Size":
        """Return the line through two points, in whole bytes."""
        slope = (sizes[1] - sizes[0]) // (batches[1] - batches[0])
        return cls(sizes[0] - slope * batches[0], slope)


@dataclass
class Moment:
    """One node: what it allocates, by name, what it takes while it runs, and what is free afterwards."""

    allocated: dict[str, Size] = field(default_factory=dict)
    scratch: tuple[Size, ...] = ()
    outside: Size = Size(0, 0)
    """While it runs, from the system instead of the arena."""
    freed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Liveness:
    """All allocations of one run of a graph, in order. `held` stays allocated afterwards, for another graph."""

    moments: tuple[Moment, ...]
    held: dict[str, Size]

    def held_bytes(self, batch: int) -> int:
        """Return how many bytes stay allocated after a run."""
        return sum(size.at(batch) for size in self.held.values())

    @property
    def held_line(self) -> tuple[int, int]:
        """Bytes that stay allocated: fixed, and for each sample."""
        return sum(size.fixed for size in self.held.values()), sum(size.per_sample for size in self.held.values())

    def transient_bytes(self, batch: int, spare_bytes: int) -> int:
        """Return the most bytes that a run takes, besides what stays held and the arrays of the caller.

        In an arena of its own, run by run; `spare_bytes` is the arena's setting.
        """
        arena = Arena(spare_bytes)
        peak = 0
        for _ in range(RUNS):
            known: dict[str, int] = {}
            for moment in self.moments:
                for name, size in moment.allocated.items():
                    known[name] = arena.allocate(size.at(batch))
                work = [arena.allocate(size.at(batch)) for size in moment.scratch]
                peak = max(peak, arena.touched_bytes + moment.outside.at(batch))
                for address in (*work, *(known.pop(name) for name in moment.freed)):
                    arena.free(address)
            for address in known.values():
                arena.free(address)
        return max(0, peak - self.held_bytes(batch))


def liveness(model: onnx.ModelProto, batches: tuple[int, int], runs: Sequence[Sequence[NodeExecution]]) -> Liveness:
    """Return the allocations of a graph as the engine runs it.

    `model` is the optimised graph; `runs` are its executions at the two micro-batches. Outputs that allocated memory
    are held by the engine after the run, all others are the caller's. Raises ExportError where they do not agree.
    """
    nodes = list(model.graph.node)
    first, second = (_outer(nodes, run) for run in runs)
    if [node.op_type for node in nodes] != [one.operator for one, _ in first] or len(first) != len(second):
        raise ExportError("the engine ran other nodes than its optimised graph has: its memory cannot be foreseen")
    reads = Counter(name for node in nodes for name in node.input if name)
    outputs = {output.name for output in model.graph.output}
    buffers = _Buffers(reads, outputs)
    moments = []
    for node, (one, step), (two, other_step) in zip(nodes, first, second, strict=True):
        moment = buffers.run(node, batches, (one, two))
        if step:
            moment.scratch += (Size.through(batches, (step, other_step)),)
        moments.append(moment)
    return Liveness(tuple(moments), buffers.held)


def _outer(nodes: Sequence[onnx.NodeProto], run: Sequence[NodeExecution]) -> list[tuple[NodeExecution, int]]:
    """Return the executions of a graph's own nodes, each with the bytes that one step of a graph inside it puts out.

    The engine tells of the nodes inside, step after step, before it tells of the Scan that they are in.
    """
    found: list[tuple[NodeExecution, int]] = []
    inside: list[NodeExecution] = []
    for execution in run:
        node = nodes[len(found)] if len(found) < len(nodes) else None
        if node is not None and node.op_type == SCAN and execution.operator != SCAN:
            inside.append(execution)
            continue
        count = sum(len(attribute.g.node) for attribute in node.attribute) if node is not None and inside else 0
        found.append((execution, sum(_bytes(output) for one in inside[:count] for output in one.outputs)))
        inside = []
    return found


class _Buffers:
    """Which buffer each value is in, and how many reads of it are still to come."""

    def __init__(self, reads: Counter[str], outputs: Collection[str]) -> None:
        self._reads, self._outputs = reads, outputs
        self._buffer: dict[str, str] = {}
        self._size: dict[str, Size] = {}
        self._left: Counter[str] = Counter()
        self.held: dict[str, Size] = {}

    def run(self, node: onnx.NodeProto, batches: tuple[int, int], ran: Executions) -> Moment:
        names = [name for name in node.output if name]
        sizes = {
            name: Size.through(batches, (_bytes(one), _bytes(two)))
            for name, one, two in zip(names, ran[0].outputs, ran[1].outputs, strict=True)
        }
        moment = Moment(scratch=tuple(_scratch(node, batches, ran)), outside=_outside(node, batches, ran))
        remaining = ran[1].allocated_bytes
        # The caller's outputs allocate nothing: inner values come first.
        for name in sorted(names, key=lambda name: name in self._outputs):
            size = sizes[name]
            if 0 < size.at(batches[1]) <= remaining:
                remaining -= size.at(batches[1])
                moment.allocated[name] = self._size[name] = size
                self._buffer[name] = name
                if name in self._outputs:
                    self.held[name] = size
            elif source := self._in_place(node, size):
                self._buffer[name] = source
            else:
                continue
            self._left[self._buffer[name]] += self._reads[name] + (name in self.held)
        used = [self._buffer[name] for name in node.input if name in self._buffer]
        self._left.subtract(used)
        for buffer in dict.fromkeys([*used, *moment.allocated]):
            if self._left[buffer] == 0:
                moment.freed.append(buffer)
                self._left[buffer] = -1
        return moment

    def _in_place(self, node: onnx.NodeProto, size: Size) -> str | None:
        """Return the input's buffer that a result is in: one that nothing else reads any more, or a view of any.

        A convolution never is in what it convolves: one that adds to its result is in what is added, its last input.
        """
        written = node.input[SUMMAND:] if node.op_type == "FusedConv" else node.input
        uses = Counter(self._buffer[name] for name in written if name in self._buffer)
        fits = [buffer for buffer in uses if self._left[buffer] > 0 and self._size[buffer] == size]
        return next((buffer for buffer in fits if self._left[buffer] == uses[buffer]), fits[0] if fits else None)


def _bytes(value: Shaped) -> int:
    dtype, shape = value
    if dtype not in ELEMENT_BYTES:
        raise ExportError(f"a value of type {dtype} in an exported graph: its memory cannot be foreseen")
    return ELEMENT_BYTES[dtype] * prod(shape)


def _scratch(node: onnx.NodeProto, batches: tuple[int, int], ran: Executions) -> Iterator[Size]:
    shapes = [shape for _, shape in ran[0].inputs]
    if node.op_type in ("Conv", "FusedConv"):
        filters, depth, *kernel = shapes[1]
        pixels = prod(ran[0].outputs[0][1][2:])
        if prod(kernel) == 1 and set(_ints(node, "strides")) <= {1}:
            return
        group = next(iter(_ints(node, "group")), 1)
        columns = 4 * depth * prod(kernel) * pixels
        yield Size(columns if filters // group > pixels else COLUMNS_BYTES * THREADS, 0)
    elif node.op_type == "ConvTranspose":
        yield Size(4 * prod(shapes[1][1:]) * prod(shapes[0][2:]), 0)
    elif node.op_type == "Where":
        for side in (1, 2):
            widened = [4 * prod(_broadcast(one.inputs[0][1], one.inputs[side][1])) for one in ran]
            yield Size.through(batches, (widened[0], widened[1]))


def _outside(node: onnx.NodeProto, batches: tuple[int, int], ran: Executions) -> Size:
    if node.op_type not in ("ScatterElements", "GatherElements"):
        return Size(0, 0)
    return Size.through(batches, (8 * prod(ran[0].inputs[1][1]), 8 * prod(ran[1].inputs[1][1])))


def _broadcast(one: Sequence[int], other: Sequence[int]) -> list[int]:
    rank = max(len(one), len(other))
    padded = ([1] * (rank - len(shape)) + list(shape) for shape in (one, other))
    return [max(pair) for pair in zip(*padded, strict=True)]


def _ints(node: onnx.NodeProto, name: str) -> list[int]:
    return [value for a in node.attribute if a.name == name for value in (a.ints or [a.i])]
