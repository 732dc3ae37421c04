"""Parameters as one flat float32 vector with named views, and that vector as a safetensors file.

Rules
- A table lists tensors in the order of their names, without gaps: the vector is then byte for byte the data
  section of the safetensors file, so loading needs no copy and the same values give the same bytes.
- The first component of a name, or the first two where it is `head`, is the tensor's part: `encoder`,
  `head.depth`, `stem`. A part is one contiguous slice of the vector.
- What training changes without a gradient (running statistics of batch normalisation) is state. Its names begin with
  `state.` and then with a part's name: `state.encoder.stem.running_mean` is in part `state.encoder`. State sorts after
  all parameters, so the parameters are the front of the vector; where there is a stem, no part has state.
- What training does not change at all, frozen parameters and the statistics of a normalisation in evaluation mode, is
  fixed. It has the same names in a table of its own (edge_runtime.wire.manifest), so that no vector here has it.
- A file is checked against the table (names, shapes, dtype, length, finite values) before it is used.
"""

# coverage: every branch

import math
import mmap
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edge_runtime.wire.errors import TensorsInvalid, reason
from edge_runtime.wire.names import TensorName

Vector = NDArray[np.float32]
STATE = "state."
MAX_TENSORS = 20_000
MAX_ELEMENTS = 2**29
MAX_ENTRY_BYTES = 512
"""Room for one tensor in a file's header: a name of 200 characters, 8 dimensions, two offsets."""
Dimension = Annotated[int, Meta(ge=1, le=MAX_ELEMENTS)]


class Tensor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One named tensor: its shape and its offset in the flat vector, in elements."""

    name: TensorName
    shape: Annotated[tuple[Dimension, ...], Meta(max_length=8)]
    offset: Annotated[int, Meta(ge=0, le=MAX_ELEMENTS)]

    @property
    def size(self) -> int:
        """How many elements the tensor has."""
        return math.prod(self.shape)

    @property
    def part(self) -> str:
        """The part of the model that the tensor belongs to: `encoder`, `head.<task>` or `stem`, or the state of one."""
        return part_of(self.name)


def part_of(name: str) -> str:
    """Return the part of the model that a tensor's name belongs to."""
    owner = name.removeprefix(STATE)
    pieces = owner.split(".")
    return name[: len(name) - len(owner)] + (".".join(pieces[:2]) if pieces[0] == "head" else pieces[0])


class TensorTable:
    """The place of each tensor in the flat vector.

    Raises TensorsInvalid if the tensors are not sorted by name, not contiguous or too many.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.tensors = tuple(tensors)
        if not 0 < len(self.tensors) <= MAX_TENSORS:
            raise TensorsInvalid(f"a tensor table has 1 to {MAX_TENSORS} tensors, not {len(self.tensors)}")
        offset = 0
        previous = ""
        for tensor in self.tensors:
            if tensor.name <= previous:
                raise TensorsInvalid(f"tensor {tensor.name!r} is not in the order of names, or is there twice")
            if tensor.offset != offset:
                raise TensorsInvalid(f"tensor {tensor.name!r} is at offset {tensor.offset} instead of {offset}")
            previous = tensor.name
            offset += tensor.size
            if offset > MAX_ELEMENTS:
                raise TensorsInvalid(f"the tensor table has more than {MAX_ELEMENTS} elements")
        self.size = offset
        """How many elements the flat vector has."""

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> "TensorTable":
        """Return the table of tensors with these names and shapes."""
        tensors, offset = [], 0
        for name in sorted(shapes):
            tensors.append(Tensor(name=name, shape=tuple(shapes[name]), offset=offset))
            offset += tensors[-1].size
        return cls(tensors)

    @cached_property
    def parts(self) -> dict[str, slice]:
        """Each part's slice of the flat vector, in order."""
        bounds: dict[str, slice] = {}
        for tensor in self.tensors:
            start = bounds[tensor.part].start if tensor.part in bounds else tensor.offset
            bounds[tensor.part] = slice(start, tensor.offset + tensor.size)
        return bounds

    def where(self, part: str) -> slice:
        """Return a part's slice of the flat vector, empty for a part of which the table has nothing."""
        return self.parts.get(part, slice(0, 0))

    @cached_property
    def parameters(self) -> "TensorTable":
        """The table of the parameters, which gradients train: the front of the vector, without the state.

        Raises TensorsInvalid for a table in which the parameters are not the front.
        """
        return TensorTable(t for t in self.tensors if not t.part.startswith(STATE))

    def select(self, parts: Iterable[str]) -> "TensorTable":
        """Return the table of some parts alone. Raises TensorsInvalid for a part that is not there."""
        wanted = set(parts)
        if unknown := sorted(wanted - set(self.parts)):
            raise TensorsInvalid(f"the tensor table has no part {unknown[0]!r}")
        return TensorTable.of({t.name: t.shape for t in self.tensors if t.part in wanted})

    def views(self, vector: Vector) -> dict[str, Vector]:
        """Return each tensor as a view of the vector (no copy), by name."""
        self.check(vector)
        return {t.name: vector[t.offset : t.offset + t.size].reshape(t.shape) for t in self.tensors}

    def check(self, vector: Vector) -> None:
        """Raise TensorsInvalid unless `vector` is a float32 vector of this table's length."""
        if vector.dtype != np.float32 or vector.shape != (self.size,):
            raise TensorsInvalid(
                f"a float32 vector of {self.size} elements is needed, not {vector.dtype} of shape {vector.shape}"
            )


def pack(table: TensorTable, vector: Vector) -> bytes:
    """Return the vector as a safetensors file: the same values give the same bytes."""
    return b"".join(file_parts(table, vector))


def file_parts(table: TensorTable, vector: Vector) -> tuple[bytes, memoryview]:
    """Return the safetensors file of a vector as its header and its data, a view of the vector: nothing is copied.

    The header is as safetensors writes it: the length in 8 bytes, little-endian, and JSON, padded with spaces to a
    multiple of 8.
    """
    table.check(vector)
    entries = {
        t.name: {"dtype": "F32", "shape": t.shape, "data_offsets": (4 * t.offset, 4 * (t.offset + t.size))}
        for t in table.tensors
    }
    header = msgspec.json.encode(entries)
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header, np.ascontiguousarray(vector).data.cast("B")


_Bytes = Annotated[int, Meta(ge=0, le=4 * MAX_ELEMENTS)]


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One array in the header of a safetensors file; its offsets are in bytes after the header."""

    dtype: Literal["F32", "F16", "I8", "U16", "U32"]
    shape: Annotated[tuple[_Bytes, ...], Meta(max_length=8)]
    data_offsets: tuple[_Bytes, _Bytes]


def read_header(data: bytes | mmap.mmap, max_header_bytes: int) -> tuple[dict[str, TensorEntry], int]:
    """Return the entries of a safetensors file by name, and the offset of its data, which are not checked against it.

    Raises TensorsInvalid for a header that is malformed or longer than `max_header_bytes`.
    """
    header_bytes = int.from_bytes(data[:8], "little")
    start = 8 + header_bytes
    if header_bytes > max_header_bytes or start > len(data):
        raise TensorsInvalid(f"not a tensor file: {len(data)} bytes with a header of {header_bytes}")
    try:
        return msgspec.json.decode(data[8:start], type=dict[str, TensorEntry]), start
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise TensorsInvalid(f"not a tensor file: {reason(exc)}") from exc


def unpack(table: TensorTable, data: bytes | mmap.mmap) -> Vector:
    """Return the flat vector in a safetensors file, as a read-only view of `data`.

    Raises TensorsInvalid if the file is malformed, has other tensors than the table, or in another order, or holds
    a value that is not finite.
    """
    header, start = read_header(data, MAX_ENTRY_BYTES * (1 + len(table.tensors)))
    if start % 8:  # the vector is handed to native code, which needs it aligned
        raise TensorsInvalid(f"a tensor file's header is a multiple of 8 bytes, not {start - 8}")
    if len(data) - start != 4 * table.size:
        raise TensorsInvalid(f"a tensor file of {start + 4 * table.size} bytes is needed, this one has {len(data)}")
    if unexpected := sorted(header.keys() ^ {t.name for t in table.tensors}):
        raise TensorsInvalid(f"tensor {unexpected[0][:200]!r} is in the file or in the table, but not in both")
    for tensor in table.tensors:
        entry = header[tensor.name]
        expected = TensorEntry("F32", tensor.shape, (4 * tensor.offset, 4 * (tensor.offset + tensor.size)))
        if entry != expected:
            raise TensorsInvalid(f"tensor {tensor.name!r} is described as {entry} instead of {expected}")
    vector = np.frombuffer(data, np.float32, offset=start)
    if not np.isfinite(vector).all():
        raise TensorsInvalid("the tensor file holds a value that is not finite")
    return vector


def unpack_known(table: TensorTable, data: bytes) -> tuple[TensorTable, Vector] | None:
    """Return those tensors of a safetensors file that `table` has in the same shape; None where there are none.

    Raises TensorsInvalid if the file is malformed, or holds a value that is not finite.
    """
    header, _ = read_header(data, MAX_ENTRY_BYTES * (1 + MAX_TENSORS))
    whole = TensorTable.of({name: entry.shape for name, entry in header.items()})
    vector = unpack(whole, data)
    shapes = {tensor.name: tensor.shape for tensor in whole.tensors}
    known = {t.name: t.shape for t in table.tensors if shapes.get(t.name) == t.shape}
    if not known:
        return None
    found = TensorTable.of(known)
    return found, transfer(whole, vector, found)


def transfer(source: TensorTable, vector: Vector, target: TensorTable) -> Vector:
    """Return the values of `target`'s tensors in a vector laid out by `source`, as a new vector.

    Raises TensorsInvalid for a tensor that the source lacks or has in another shape.
    """
    views = source.views(vector)
    result = np.empty(target.size, np.float32)
    for name, view in target.views(result).items():
        if name not in views or views[name].shape != view.shape:
            raise TensorsInvalid(f"tensor {name!r} of shape {view.shape} is not in the source")
        view[...] = views[name]
    return result


def replaced(table: TensorTable, vector: Vector, source: TensorTable, values: Vector) -> Vector:
    """Return a vector laid out by `table`, as a new one, with the values of `source`'s tensors, which `table` has."""
    changed = np.array(vector)
    views = table.views(changed)
    for name, view in source.views(values).items():
        views[name][...] = view
    return changed
