"""What a graph takes, bytes and operations, from the shapes of its arrays: a small file may ask for terabytes.

Rules
- Shapes follow from the inputs' and from the constants, node by node (graph_inference.py); nothing is run.
- The bytes are the most that the arrays between inputs and outputs take at once if each is kept until its last use and
  none takes another's place. An engine takes less. Constants and inputs are not counted, for they are there anyway.
- A node may come only after those that it reads, as the format says. A Scan takes what its graph does, in each step.
"""

# coverage: every branch

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from edge_runtime.wire.errors import BundleInvalid
from edge_runtime.wire.graph_inference import outputs_of
from edge_runtime.wire.graph_node import Attributes, KnownArray, Node, Shape
from edge_runtime.wire.graph_work import operations_of

MAX_ELEMENTS = 2**27
"""Of one array, for each sample of a micro-batch: half a gigabyte in float32."""
MAX_OPERATIONS = 2**40
"""Of one run, for each sample: a thousand times those of a ViT-Base."""

STEP_OPERATIONS = 10_000
"""What calling a node costs, however small its arrays are: some microseconds."""

_VIEWS = {"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
"""Operators whose output is their input's memory."""
_WIDE = {"ArgMax", "ArgMin", "Shape", "Size", "TopK"}
_WIDE_TYPES = {7, 11}
"""int64 and double."""
_SCAN_AXES = {"scan_input_axes", "scan_output_axes"}
"""Attributes that no exporter of ours writes: a Scan goes along the first axis."""
_DATA = {"OneHot": 2, "Where": 1}
"""The input whose type an operator's output has, where that is not the first."""


class _TooCostly(Exception):
    """A graph takes more than any that a bundle has."""


@dataclass(frozen=True)
class Step:
    """A node of a graph, by names; an empty one is an input or output that is left out."""

    operator: str
    attributes: Attributes
    inputs: Sequence[str]
    outputs: Sequence[str]
    body: "GraphContent | None" = None
    """The graph of a Scan, for one of its steps."""


@dataclass(frozen=True, kw_only=True)
class GraphContent:
    """A graph as far as its cost matters. A dimension of an input that varies is a text; unknown shapes are None."""

    inputs: Mapping[str, tuple[int | str, ...] | None]
    constants: Mapping[str, KnownArray]
    wide: Collection[str]
    """Inputs and constants whose elements have 8 bytes."""
    steps: Sequence[Step]
    outputs: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class GraphCost:
    """What a run of a graph takes, and the shapes of what goes in and out."""

    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    output_bytes: Mapping[str, int]
    peak_bytes: int
    operations: int
    unknown: tuple[str, ...] = ()
    """Operators, and inputs, of which no shape is known: what follows of them is not counted."""


@dataclass
class _Live:
    """The arrays that are in memory: bytes by name, and by how many names each is still wanted."""

    bytes: dict[str, int] = field(default_factory=dict)
    owner: dict[str, str] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)
    total: int = 0
    peak: int = 0

    def add(self, name: str, size_bytes: int, uses: int, *, of: str | None = None) -> None:
        """Take an array in that is read so many times; `of` names the one whose memory it is."""
        own = name if of is None else self.owner.get(of)
        if own is None:  # the memory of an input or a constant
            return
        self.owner[name] = own
        self.uses[own] = self.uses.get(own, 0) + uses
        if of is None:
            self.bytes[own] = size_bytes
            self.total += size_bytes
            self.peak = max(self.peak, self.total)

    def read(self, name: str) -> None:
        """Note that a name was read once."""
        own = self.owner.get(name)
        if own is not None:
            self.uses[own] -= 1

    def clean(self, names: Sequence[str]) -> None:
        """Give up what nobody reads any more, of these names."""
        for own in {self.owner[name] for name in names if name in self.owner}:
            if self.uses[own] == 0:
                self.total -= self.bytes.pop(own, 0)


def graph_cost(graph: GraphContent, name: str, batch: int = 1) -> GraphCost:
    """Return what a run of a graph takes on a micro-batch of this many samples.

    An input's dimension batch_<k> is k times the micro-batch. Raises BundleInvalid, which names the graph, where that
    is more than any bundle takes.
    """
    try:
        return _cost(graph, batch)
    except _TooCostly as exc:
        raise BundleInvalid(f"graph {name} is refused: {exc}") from exc


def _cost(graph: GraphContent, batch: int) -> GraphCost:
    sizes = {name: _sized(shape, batch) for name, shape in graph.inputs.items()}
    known = {name: shape for name, shape in sizes.items() if shape is not None}
    run = _Run(batch, {name: None if shape is None else KnownArray(shape) for name, shape in sizes.items()})
    run.unknown += [f"input {name}" for name, shape in sizes.items() if shape is None]
    found = dict(zip(graph.outputs, run.through(graph), strict=True))
    made = {name: value for name, value in found.items() if value is not None}
    return GraphCost(
        inputs=known,
        outputs={name: value.shape for name, value in made.items()},
        output_bytes={name: run.widths.get(name, 4) * value.elements for name, value in made.items()},
        peak_bytes=run.live.peak,
        operations=run.operations,
        unknown=tuple(dict.fromkeys(run.unknown)),
    )


@dataclass
class _Run:
    """A run of a graph, for a micro-batch: what is known of its arrays, and what it has taken so far."""

    batch: int
    values: dict[str, KnownArray | None]
    widths: dict[str, int] = field(default_factory=dict)
    live: _Live = field(default_factory=_Live)
    operations: int = 0
    unknown: list[str] = field(default_factory=list)

    def through(self, graph: GraphContent) -> list[KnownArray | None]:
        """Go through a graph's steps; return its outputs, None for what is not known. Raises _TooCostly."""
        self.values |= graph.constants
        self.widths |= dict.fromkeys(graph.wide, 8)
        wanted = Counter([*graph.outputs, *(name for step in graph.steps for name in step.inputs)])
        for step in graph.steps:
            read = [self.values.get(name) for name in step.inputs]
            made = self._made(step, read)
            if made is None:
                self.unknown.append(step.operator)
                made = [None] * len(step.outputs)
            node = Node(step.operator, step.attributes, read, len(step.outputs))
            self.operations += STEP_OPERATIONS + operations_of(node, made)
            _check(step.operator, made, self.operations, self.batch)
            self._keep(step, made, wanted)
        return [self.values.get(name) for name in graph.outputs]

    def _keep(self, step: Step, made: Sequence[KnownArray | None], wanted: Mapping[str, int]) -> None:
        width, of = _width(step, self.widths), step.inputs[0] if step.operator in _VIEWS and step.inputs else None
        for name, value in zip(step.outputs, made, strict=True):
            if name:
                self.values[name], self.widths[name] = value, width
                self.live.add(name, 0 if value is None else width * value.elements, wanted.get(name, 0), of=of)
        for name in step.inputs:
            self.live.read(name)
        self.live.clean([*step.inputs, *step.outputs])

    def _made(self, step: Step, read: Sequence[KnownArray | None]) -> list[KnownArray | None] | None:
        """Return what a step makes; None where something of it does not follow that others may read."""
        if any(name and value is None for name, value in zip(step.inputs, read, strict=True)):
            return None
        if step.body is not None:
            made = self._scanned(step, step.body, [value for value in read if value is not None])
        else:
            made = outputs_of(Node(step.operator, step.attributes, read, len(step.outputs)))
        is_whole = all(value is not None for name, value in zip(step.outputs, made, strict=True) if name)
        return made if is_whole else None

    def _scanned(self, step: Step, body: GraphContent, read: list[KnownArray]) -> list[KnownArray | None]:
        """Return what a Scan makes: its states as they are after a step, and rows of what each step has written."""
        rows = step.attributes.get("num_scan_inputs")
        unknown: list[KnownArray | None] = [None] * len(step.outputs)
        if not isinstance(rows, int) or not 0 < rows <= len(read) or _SCAN_AXES & set(step.attributes):
            return unknown
        states, scanned = read[:-rows], read[-rows:]
        if not all(value.shape for value in scanned) or len(read) != len(body.inputs):
            return unknown
        given = [*states, *(KnownArray(value.shape[1:]) for value in scanned)]
        inner = _Run(self.batch, {**self.values, **dict(zip(body.inputs, given, strict=True))}, dict(self.widths))
        made, steps = inner.through(body), scanned[0].shape[0]
        self.operations += steps * inner.operations
        self.unknown += inner.unknown
        self.live.peak = max(self.live.peak, self.live.total + inner.live.peak)
        written = [None if value is None else KnownArray((steps, *value.shape)) for value in made[len(states) :]]
        return [*made[: len(states)], *written] if len(made) == len(step.outputs) else unknown


def _sized(shape: tuple[int | str, ...] | None, batch: int) -> Shape | None:
    """Return an input's shape on a micro-batch; None if a dimension varies with something else."""
    if shape is None:
        return None
    sizes = []
    for size in shape:
        if isinstance(size, str):
            word, _, times = size.partition("_")
            if word != "batch" or not ((times.isascii() and times.isdecimal()) or not times) or len(times) > 6:
                return None
            sizes.append(batch * int(times or 1))
        else:
            sizes.append(size)
    return tuple(sizes)


def _check(operator: str, made: Sequence[KnownArray | None], operations: int, batch: int) -> None:
    largest = max((value.elements for value in made if value is not None), default=0)
    if largest > MAX_ELEMENTS * batch:
        raise _TooCostly(f"{operator} makes an array of {largest:.3g} elements, and {MAX_ELEMENTS * batch} are allowed")
    if operations > MAX_OPERATIONS * batch:
        raise _TooCostly(f"it takes more than {MAX_OPERATIONS * batch:.3g} operations")


def _width(step: Step, widths: Mapping[str, int]) -> int:
    """Return the bytes of an element of what a step makes: at least as many as there are."""
    if step.operator == "Cast":
        return 8 if step.attributes.get("to") in _WIDE_TYPES else 4
    if step.operator in _WIDE:
        return 8
    place = _DATA.get(step.operator, 0)
    return widths.get(step.inputs[place], 4) if place < len(step.inputs) else 4
