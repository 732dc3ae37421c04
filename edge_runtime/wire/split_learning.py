"""Split training on the wire: what a device and the host of a general model say to one another, batch by batch.

The device has the stem and the heads, the host the encoder. Images and labels never leave the device. Within a round:

    device                                        host
    begin (round, step)              ──►
                                     ◄──          ready (step)
    embedding (step, part; e)        ──►
                                     ◄──          representation (step, part; z)
    gradient (step, part; ∂L/∂z)     ──►
                                     ◄──          return (step, part; ∂L/∂e)
    …
    mark (step)                      ──►                                   the device has written a checkpoint
                                     ◄──          marked (step)
    finish (step)                    ──►
                                     ◄──          finished (step)

and `probe` (step, part; e), between steps, which is answered by a representation in evaluation mode, of the weights
that the step begins with; and `refused`, with a reason, instead of any answer. A step is an optimizer's step; a part is
a micro-batch of it, and tells probes apart. The host takes a step when a message belongs to the next one. Whatever is
said twice has the same answer twice, so both sides may send again what may be lost.

A message is two bytes with the length of its header, the header as JSON, and its arrays one after the other: shapes
follow from the bundle's manifest and the number of samples, so a header cannot lie about them. Arrays travel as

    fp32    float32: exact
    fp16    for each sample a scale, the power of two above its largest value, float32; then float16 of value / scale
    int8    for each sample a scale, its largest value / 127, float32; then int8 of value / scale, rounded

A scale for each sample, because gradients of one sample may be a thousand times those of another, and all of them far
below what float16 tells from zero.
"""

# coverage: every branch

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edge_runtime.wire.errors import MessageInvalid, reason
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import Count, Precision, RoundNumber, Text

MAX_HEADER_BYTES = 4096
MAX_PARTS = 1024
MAX_SAMPLES = 65_536
EVALUATION_SAMPLES = 16
"""Samples in a message of a round that measures losses; of one that trains it is the batch."""

MessageKind = Literal[
    "begin",
    "ready",
    "embedding",
    "probe",
    "representation",
    "gradient",
    "return",
    "mark",
    "marked",
    "finish",
    "finished",
    "refused",
]
RefusalReason = Literal["round", "step", "unknown", "full", "invalid", "timeout"]
"""Another round is on · a step that is not the present one · a batch that the host does not have · more parts at once
than it holds · what was sent is not usable · the device was silent for too long."""
Batch = NDArray[np.float32]
Shape = tuple[int, ...]
_LEAST = np.finfo(np.float32).tiny


class SplitHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a message is about."""

    kind: MessageKind
    round: RoundNumber
    step: Count = 0
    part: Annotated[int, Meta(ge=0, lt=MAX_PARTS)] = 0
    samples: Annotated[int, Meta(ge=0, le=MAX_SAMPLES)] = 0
    """In each array; 0 without arrays."""
    precision: Precision = "fp32"
    seed: Annotated[int, Meta(ge=0, le=2**62)] = 0
    """Of an embedding: what is random in the encoder; of a beginning: which one it is."""
    about: MessageKind | None = None
    """Of a refusal: what was refused."""
    reason: RefusalReason | None = None
    detail: Text = ""


@dataclass(frozen=True, kw_only=True)
class SplitMessage:
    """A header and its arrays, (B, …) float32 each."""

    header: SplitHeader
    arrays: tuple[Batch, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MessageLayout:
    """What the arrays of a bundle look like, and how many samples a message may have."""

    embedding: Shape
    representation: tuple[Shape, ...]
    most: int

    @classmethod
    def of(cls, manifest: Manifest, most: int) -> "MessageLayout":
        """The layout of a bundle with a stem."""
        assert manifest.embedding is not None
        z = tuple(array.shape for array in manifest.representation)
        return cls(embedding=manifest.embedding.shape, representation=z, most=most)

    def arrays(self, kind: MessageKind) -> tuple[Shape, ...]:
        """The shapes of a message's arrays, without the batch."""
        shapes: Mapping[str, tuple[Shape, ...]] = {
            "embedding": (self.embedding,),
            "probe": (self.embedding,),
            "return": (self.embedding,),
            "representation": self.representation,
            "gradient": self.representation,
        }
        return shapes.get(kind, ())

    @property
    def longest_bytes(self) -> int:
        """How long a message can be."""
        values = max(prod(self.embedding), sum(prod(shape) for shape in self.representation))
        return 2 + MAX_HEADER_BYTES + 4 * self.most * values

    def size_bytes(self, header: SplitHeader) -> int:
        """How many bytes the arrays of a message have."""
        each = {"fp32": 4, "fp16": 2, "int8": 1}[header.precision]
        scales = 0 if header.precision == "fp32" else 4
        return sum(header.samples * (each * prod(shape) + scales) for shape in self.arrays(header.kind))

    def message_bytes(self, header: SplitHeader) -> int:
        """How long a message with this header is."""
        return 2 + len(msgspec.json.encode(header)) + self.size_bytes(header)


def encode(message: SplitMessage) -> bytes:
    """The message as bytes. Raises MessageInvalid for an array that is not finite."""
    header = msgspec.json.encode(message.header)
    pieces = [len(header).to_bytes(2, "little"), header]
    for array in message.arrays:
        if not np.isfinite(array).all():
            raise MessageInvalid(f"a value of the {message.header.kind} is not finite: training has diverged")
        pieces += _packed(np.ascontiguousarray(array, np.float32), message.header.precision)
    return b"".join(pieces)


def decode(layout: MessageLayout, data: bytes | memoryview) -> SplitMessage:
    """A validated message. Raises MessageInvalid; nothing is allocated before the size has been checked."""
    view = memoryview(data)
    length = int.from_bytes(view[:2], "little")
    if not 0 < length <= MAX_HEADER_BYTES or 2 + length > len(view):
        raise MessageInvalid(f"a message of {len(view)} bytes has a header of {length}")
    try:
        header = msgspec.json.decode(view[2 : 2 + length], type=SplitHeader)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise MessageInvalid(f"message not understood: {reason(exc)}") from exc
    shapes = layout.arrays(header.kind)
    if bool(shapes) != bool(header.samples) or header.samples > layout.most:
        raise MessageInvalid(f"a message of kind {header.kind} with {header.samples} samples, at most {layout.most}")
    start, needed = 2 + length, layout.size_bytes(header)
    if len(view) - start != needed:
        raise MessageInvalid(f"a {header.kind} of {header.samples} samples has {needed} bytes, not {len(view) - start}")
    arrays = []
    for shape in shapes:
        array, start = _unpacked(view, start, (header.samples, *shape), header.precision)
        if not np.isfinite(array).all():
            raise MessageInvalid(f"a value of the {header.kind} is not finite")
        arrays.append(array)
    return SplitMessage(header=header, arrays=tuple(arrays))


def _packed(array: Batch, precision: Precision) -> Sequence[bytes]:
    if precision == "fp32":
        return [array.tobytes()]
    rows = array.reshape(len(array), -1)  # (B, n)
    largest = np.abs(rows).max(axis=1, initial=0)  # (B,)
    if precision == "fp16":
        scale = np.ldexp(np.float32(1), np.clip(np.frexp(largest)[1], -125, 127)).astype(np.float32)
        return [scale.tobytes(), (rows / scale[:, None]).astype(np.float16).tobytes()]
    scale = (largest / np.float32(127)).astype(np.float32)
    scale[scale < _LEAST] = 0
    steps = np.divide(rows, scale[:, None], out=np.zeros_like(rows), where=scale[:, None] > 0)
    return [scale.tobytes(), np.rint(steps).astype(np.int8).tobytes()]


def _unpacked(view: memoryview, start: int, shape: Shape, precision: Precision) -> tuple[Batch, int]:
    """An array that begins at `start`, as a copy, and where the next begins; `shape` is (B, …)."""
    count = prod(shape)
    if precision == "fp32":
        return np.frombuffer(view, np.float32, count, start).reshape(shape).copy(), start + 4 * count
    scale = np.frombuffer(view, np.float32, shape[0], start)
    start += 4 * shape[0]
    dtype = np.dtype(np.float16 if precision == "fp16" else np.int8)
    rows = np.frombuffer(view, dtype, count, start).reshape(shape[0], -1)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused in words
        array: Batch = np.multiply(rows, scale[:, None], dtype=np.float32)
    return array.reshape(shape), start + dtype.itemsize * count
