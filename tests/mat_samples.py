"""MATLAB files of level 5, written byte by byte."""

import struct
import zlib

import numpy as np

HEADER = b"made by a test".ljust(124) + b"\x00\x01IM"
DOUBLE, UINT8, STRUCTURE, CELL, SPARSE = 6, 9, 2, 1, 5


def element(kind, data, *, small=False):
    if small:
        return struct.pack("<I", len(data) << 16 | kind) + data.ljust(4, b"\0")
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def matrix(name, form, shape, *parts, flags=0):
    small = 0 < len(name) <= 4
    head = [
        element(6, struct.pack("<II", form | flags, 0)),
        element(5, struct.pack(f"<{len(shape)}i", *shape)),
        element(1, name.encode(), small=small),
    ]
    return element(14, b"".join([*head, *parts]))


def numbers(name, values, form=DOUBLE, kind=9, **more):
    values = np.asarray(values)
    data = values.tobytes(order="F")
    return matrix(name, form, values.shape, element(kind, data, small=len(data) <= 4 and kind != 9), **more)


def cell(name, *inside):
    return matrix(name, CELL, (1, len(inside)), *inside)


def compressed(data):
    packed = zlib.compress(data)
    return struct.pack("<II", 15, len(packed)) + packed


def written(tmp_path, *elements, header=HEADER):
    path = tmp_path / "some.mat"
    path.write_bytes(header + b"".join(elements))
    return path
