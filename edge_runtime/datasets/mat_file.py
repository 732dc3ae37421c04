"""MATLAB's level 5 files, as far as public data sets need them: arrays of numbers, and cells of such arrays.

Nothing is executed and nothing is unpickled; sizes are checked before anything is allocated. Structures, characters,
sparse arrays and complex numbers are refused by name.

Source: MathWorks, "MAT-File Format", version 5.
"""

# coverage: every branch

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.datasets.dataset import DatasetInvalid

Array = NDArray[Any]
Value = Array | list[Array]
"""An array, or a cell's arrays in the order of its columns."""
HEADER_BYTES = 128
MAX_BYTES = 1 << 30
MATRIX, COMPRESSED = 14, 15
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""The numbers of the file's types, by numpy's names."""
CELL = 1
NUMBERS = range(6, 16)
KINDS = {2: "a structure", 3: "an object", 4: "text", 5: "a sparse array"}


def read_mat(path: Path) -> dict[str, Value]:
    """Return the arrays and cells of a file by name. Raises DatasetInvalid, naming the file and what is wrong."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DatasetInvalid(f"{path} is larger than {MAX_BYTES} bytes")
        data = path.read_bytes()
    except OSError as exc:
        raise DatasetInvalid(f"{path} cannot be read: {exc.strerror}") from exc
    if len(data) < HEADER_BYTES or data[126:128] != b"IM":
        raise DatasetInvalid(f"{path} is not a MAT file of level 5, little-endian: save it with -v7")
    found = {}
    try:
        for kind, body in _elements(data[HEADER_BYTES:]):
            if kind == COMPRESSED:
                (element,) = _elements(_inflated(body))
                kind, body = element  # noqa: PLW2901
            name, value = _matrix(kind, body)
            found[name] = value
    except (ValueError, struct.error, zlib.error, KeyError) as exc:
        raise DatasetInvalid(f"{path} is damaged, or holds more than arrays of numbers: {exc}") from exc
    return found


def _inflated(body: bytes) -> bytes:
    machine = zlib.decompressobj()
    data = machine.decompress(body, MAX_BYTES)
    if machine.unconsumed_tail:
        raise ValueError(f"an array is larger than {MAX_BYTES} bytes")
    return data


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Give the elements in some bytes: type and content."""
    at = 0
    while at < len(data):
        (first,) = struct.unpack_from("<I", data, at)
        if first >> 16:  # a small element: type and length share four bytes, and the content has the other four
            kind, size, start, step = first & 0xFFFF, first >> 16, at + 4, 8
        else:
            kind, (size,), start = first, struct.unpack_from("<I", data, at + 4), at + 8
            step = 8 + size + (-size % 8 if kind != COMPRESSED else 0)
        if start + size > len(data):
            raise ValueError("it ends in the middle of an array")
        yield kind, data[start : start + size]
        at += step


def _matrix(kind: int, body: bytes) -> tuple[str, Value]:
    """Return an array's name and values."""
    if kind != MATRIX:
        raise ValueError(f"an element of type {kind} where an array is expected")
    parts = list(_elements(body))
    if len(parts) < 3:
        raise ValueError("an array without a name")
    (flags,) = struct.unpack_from("<I", parts[0][1])
    shape = np.frombuffer(parts[1][1], "<i4").tolist()
    name = parts[2][1].decode("ascii")
    form = flags & 0xFF
    if form == CELL:
        cells = [_matrix(*part)[1] for part in parts[3:]]
        return name, [cell for cell in cells if not isinstance(cell, list)]
    if form not in NUMBERS or flags & 0x800 or len(parts) != 4:
        raise ValueError(f"{name or 'a cell'} is {KINDS.get(form, 'complex, or of an unknown kind')}")
    values = np.frombuffer(parts[3][1], "<" + TYPES[parts[3][0]])
    return name, values.reshape(shape, order="F")
