"""A bundle's graphs held to its manifest before an engine reads them: their inputs' sizes, and what a run takes.

Rules
- An input is as large as the manifest says: a tensor as in its table, a value as its array, saved.<i> as what the
  keeping graph gives. So what is worked out of a graph's own description is what it will take.
- Every shape follows. A graph of which one does not is refused, whoever has signed it.
- Arrays take no more than a few times what the manifest's footprint says, by which a device plans its memory: an engine
  takes less than they would one by one, and how much less depends on its version.
"""

# coverage: every branch

from collections.abc import Mapping

from edge_runtime.wire.errors import BundleInvalid
from edge_runtime.wire.graph_cost import GraphCost
from edge_runtime.wire.graph_names import graph_part, value_of
from edge_runtime.wire.graph_node import Shape
from edge_runtime.wire.manifest import Array, Manifest
from edge_runtime.wire.tensors import STATE

TIMES = 4
"""The arrays one by one take at most so many times what the engine does; 3.4 times was seen."""
SPARE_BYTES = 32 * 1024**2
"""And so much more: of small graphs an engine keeps hardly anything."""


def check_costs(manifest: Manifest, costs: Mapping[str, GraphCost], batch: int) -> None:
    """Raise BundleInvalid unless graphs, by their names, take on this micro-batch what the manifest says."""
    sizes = _sizes(manifest, batch)
    saved: dict[str, Mapping[str, Shape]] = {}
    for name in sorted(costs, key=lambda name: name.endswith(".kept")):  # what was kept is known by then
        found = costs[name]
        if found.unknown:
            raise BundleInvalid(
                f"graph {name} is refused: how large its arrays are does not follow from {', '.join(found.unknown[:3])}"
            )
        _check_inputs(name, found, {**sizes, **_own(manifest, name, batch), **saved.get(name, {})})
        if name.endswith(".keep"):
            kept = {value: shape for value, shape in found.outputs.items() if value.startswith("saved.")}
            saved[f"{name.removesuffix('.keep')}.kept"] = kept
        _check_bytes(manifest, name, found, batch)


def _check_inputs(name: str, found: GraphCost, sizes: Mapping[str, Shape]) -> None:
    for value, shape in found.inputs.items():
        wanted = sizes.get(value)
        if wanted != shape:
            should = "there is none of that name" if wanted is None else f"{wanted} by the manifest"
            raise BundleInvalid(f"graph {name} is refused: input {value[:80]!r} has the shape {shape}, but {should}")


def _check_bytes(manifest: Manifest, name: str, found: GraphCost, batch: int) -> None:
    said = None if manifest.footprint is None else manifest.footprint.graphs.get(manifest.graphs[name].digest)
    if said is None:
        return
    given = sum(found.output_bytes.get(value, 0) for value in found.outputs if not value.startswith("saved."))
    most = TIMES * (said.transient(batch) + said.held(batch)) + given + SPARE_BYTES
    if found.peak_bytes > most:
        raise BundleInvalid(
            f"graph {name} is refused: its arrays take {found.peak_bytes} bytes, and by what the manifest says of its "
            f"memory they cannot be more than {most}"
        )


def _sizes(manifest: Manifest, batch: int) -> dict[str, Shape]:
    """Return the shapes of values and of what flows back into them."""
    arrays: dict[str, Array] = {value_of(name): array for name, array in manifest.inputs.items()}
    arrays |= {f"z.{at}": array for at, array in enumerate(manifest.representation)}
    arrays |= {f"v.{at}": array for at, array in enumerate(manifest.values)}
    if manifest.embedding is not None:
        arrays["e"] = manifest.embedding
    shapes: dict[str, Shape] = {name: (batch, *array.shape) for name, array in arrays.items()}
    shapes |= {f"d{name}": shape for name, shape in shapes.items()}
    shapes["seed"] = ()
    return shapes


def _own(manifest: Manifest, name: str, batch: int) -> dict[str, Shape]:
    """Return the shapes of a part's tensors, under their names in its graphs, and of its labels."""
    part = graph_part(name)
    fixed = manifest.fixed.get(part)
    tensors = (*manifest.tensors, *(() if fixed is None else fixed.tensors))
    found: dict[str, Shape] = {}
    for tensor in tensors:
        if tensor.part == part:
            found[f"param.{tensor.name.removeprefix(f'{part}.')}"] = tensor.shape
        elif tensor.part == f"{STATE}{part}":
            found[f"{STATE}{tensor.name.removeprefix(f'{tensor.part}.')}"] = tensor.shape
    for task in manifest.tasks:
        if part == f"head.{task.name}":
            found["target"] = (batch, *task.target.shape)
    return found
