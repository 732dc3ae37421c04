"""Split learning on the wire: the messages between a device and the encoder server, batch by batch.

The device has the stem and the heads, the server the shared encoder. Images and labels never leave the device. Within a
round:

    device                                        encoder server
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

A `probe` (step, part; e) comes between steps; its reply is a representation in evaluation mode, computed with the
weights that the step begins with. `refused`, with a reason, may take the place of any reply. A step is an optimizer's
step. A part is a micro-batch of the step; probes have part numbers of their own. The server takes a step when a message
belongs to the next one. The same request gets the same reply, so both sides may send again what may be lost.

A message is two bytes with the length of its header, the header as JSON, and its arrays one after the other. Shapes
follow from the bundle's manifest and the number of samples, so a header cannot state wrong ones. Arrays travel as

    fp32    float32: exact
    fp16    for each sample a scale, the power of two above its largest value, float32; then float16 of value / scale
    int8    for each sample a scale, its largest value / 127, float32; then int8 of value / scale, rounded

Each sample has its own scale, because the gradients of one sample may be a thousand times those of another, and all of
them too small for float16.
"""

# coverage: every branch

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Literal, Protocol

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edge_runtime.wire.errors import MessageInvalid
from edge_runtime.wire.errors import reason as reason_of
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import Count, Precision, RoundNumber, Text, text

MAX_HEADER_BYTES = 4096
MAX_PARTS = 1024
MAX_SAMPLES = 65_536
EVALUATION_SAMPLES = 16
"""The most samples in a message of a round that evaluates; in a round that trains it is the batch."""

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
"""Another round is open · not the current step · a part that the server does not have · more parts than it holds ·
content that cannot be used · the device was silent for too long."""
Batch = NDArray[np.float32]
Shape = tuple[int, ...]
_LEAST = np.finfo(np.float32).tiny


class SplitHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The kind, the place in the round and the encoding of a message."""

    kind: MessageKind
    round: RoundNumber
    step: Count = 0
    part: Annotated[int, Meta(ge=0, lt=MAX_PARTS)] = 0
    samples: Annotated[int, Meta(ge=0, le=MAX_SAMPLES)] = 0
    """In each array; 0 without arrays."""
    precision: Precision = "fp32"
    seed: Annotated[int, Meta(ge=0, le=2**62)] = 0
    """Of an embedding: the seed of the encoder's random operators. Of a `begin`: its identity."""
    about: MessageKind | None = None
    """Of a refusal: the kind of message that was refused."""
    reason: RefusalReason | None = None
    detail: Text = ""


@dataclass(frozen=True, kw_only=True)
class SplitMessage:
    """A header and its arrays, (B, …) float32 each."""

    header: SplitHeader
    arrays: tuple[Batch, ...] = ()


class MessageChannel(Protocol):
    """A seam: carries messages to the encoder server and back, and may lose, repeat and reorder them."""

    def send(self, data: bytes) -> None:
        """Send without waiting."""
        ...

    def receive(self, timeout_s: float) -> bytes | None:
        """Return the next message, or None if none comes in that time."""
        ...


@dataclass(frozen=True, kw_only=True)
class MessageLayout:
    """The shapes of a bundle's arrays, and the most samples that a message may have."""

    embedding: Shape
    representation: tuple[Shape, ...]
    max_samples: int

    @classmethod
    def of(cls, manifest: Manifest, max_samples: int) -> "MessageLayout":
        """Return the layout of a bundle with a stem."""
        assert manifest.embedding is not None
        z = tuple(array.shape for array in manifest.representation)
        return cls(embedding=manifest.embedding.shape, representation=z, max_samples=max_samples)

    def shapes(self, kind: MessageKind) -> tuple[Shape, ...]:
        """Return the shapes of a message's arrays, without the batch."""
        shapes: Mapping[str, tuple[Shape, ...]] = {
            "embedding": (self.embedding,),
            "probe": (self.embedding,),
            "return": (self.embedding,),
            "representation": self.representation,
            "gradient": self.representation,
        }
        return shapes.get(kind, ())

    @property
    def max_message_bytes(self) -> int:
        """The length of the longest message."""
        values = max(prod(self.embedding), sum(prod(shape) for shape in self.representation))
        return 2 + MAX_HEADER_BYTES + 4 * self.max_samples * values

    def arrays_bytes(self, header: SplitHeader) -> int:
        """Return the length of a message's arrays together."""
        each = {"fp32": 4, "fp16": 2, "int8": 1}[header.precision]
        scales = 0 if header.precision == "fp32" else 4
        return sum(header.samples * (each * prod(shape) + scales) for shape in self.shapes(header.kind))

    def message_bytes(self, header: SplitHeader) -> int:
        """Return the length of a message with this header."""
        return 2 + len(msgspec.json.encode(header)) + self.arrays_bytes(header)


def refusal(about: SplitHeader, reason: RefusalReason, detail: str) -> SplitMessage:
    """Return the reply that refuses the message with the header `about`."""
    header = SplitHeader(
        kind="refused",
        round=about.round,
        step=about.step,
        part=about.part,
        about=about.kind,
        reason=reason,
        detail=text(detail),
    )
    return SplitMessage(header=header)


def encode(message: SplitMessage) -> bytes:
    """Encode a message. Raises MessageInvalid for an array that is not finite."""
    header = msgspec.json.encode(message.header)
    chunks = [len(header).to_bytes(2, "little"), header]
    for array in message.arrays:
        if not np.isfinite(array).all():
            raise MessageInvalid(f"a value of the {message.header.kind} is not finite: training has diverged")
        chunks += _pack(np.ascontiguousarray(array, np.float32), message.header.precision)
    return b"".join(chunks)


def decode(layout: MessageLayout, data: bytes | memoryview) -> SplitMessage:
    """Decode and validate a message. Raises MessageInvalid.

    Nothing is allocated before the size has been checked.
    """
    view = memoryview(data)
    length = int.from_bytes(view[:2], "little")
    if not 0 < length <= MAX_HEADER_BYTES or 2 + length > len(view):
        raise MessageInvalid(f"a message of {len(view)} bytes has a header of {length}")
    try:
        header = msgspec.json.decode(view[2 : 2 + length], type=SplitHeader)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise MessageInvalid(f"a split-learning message is not understood: {reason_of(exc)}") from exc
    shapes = layout.shapes(header.kind)
    if bool(shapes) != bool(header.samples) or header.samples > layout.max_samples:
        raise MessageInvalid(
            f"a message of kind {header.kind} with {header.samples} samples, at most {layout.max_samples}"
        )
    start, needed = 2 + length, layout.arrays_bytes(header)
    if len(view) - start != needed:
        raise MessageInvalid(f"a {header.kind} of {header.samples} samples has {needed} bytes, not {len(view) - start}")
    arrays = []
    for shape in shapes:
        array, start = _unpack(view, start, (header.samples, *shape), header.precision)
        if not np.isfinite(array).all():
            raise MessageInvalid(f"a value of the {header.kind} is not finite")
        arrays.append(array)
    return SplitMessage(header=header, arrays=tuple(arrays))


def _pack(array: Batch, precision: Precision) -> Sequence[bytes]:
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


def _unpack(view: memoryview, start: int, shape: Shape, precision: Precision) -> tuple[Batch, int]:
    """Return the array of shape (B, …) that begins at `start`, as a copy, and the start of the next one."""
    count = prod(shape)
    if precision == "fp32":
        return np.frombuffer(view, np.float32, count, start).reshape(shape).copy(), start + 4 * count
    scale = np.frombuffer(view, np.float32, shape[0], start)
    start += 4 * shape[0]
    dtype = np.dtype(np.float16 if precision == "fp16" else np.int8)
    rows = np.frombuffer(view, dtype, count, start).reshape(shape[0], -1)
    with np.errstate(over="ignore", invalid="ignore"):  # decode refuses values that are not finite
        array: Batch = np.multiply(rows, scale[:, None], dtype=np.float32)
    return array.reshape(shape), start + dtype.itemsize * count
