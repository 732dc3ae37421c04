"""Arrays under the names that graphs have for them: a representation's, and the views of a flat vector."""

# coverage: every branch

from collections.abc import Sequence

from edge_runtime.training.encoder import Array
from edge_runtime.wire.tensors import STATE, TensorTable, Vector, part_of


def numbered(name: str, arrays: Sequence[Array]) -> dict[str, Array]:
    """Return the arrays of a representation under their names in the graphs."""
    return {f"{name}.{i}": array for i, array in enumerate(arrays)}


def named(table: TensorTable, vector: Vector, kind: str) -> dict[str, dict[str, Array]]:
    """Return views of a vector by part, under their names in the graphs; a part's state is with the part."""
    named: dict[str, dict[str, Array]] = {}
    for name, view in table.views(vector).items():
        part = part_of(name)
        owner = part.removeprefix(STATE)
        prefix = kind if owner == part else STATE.rstrip(".")
        named.setdefault(owner, {})[f"{prefix}.{name.removeprefix(f'{part}.')}"] = view
    return named
