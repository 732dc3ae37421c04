"""Small updates: trained weights as a safetensors file, in full or compressed, and back.

A compressed update carries the change (P,) of the parameters from the weights that the device received, which the
server has too. Its file has a fixed number of arrays, so its header does not grow with the model:

    fp32    the weights in full, as `tensors.pack` writes them: exact
    fp16    delta F16 (P,)
    int8    delta I8 (P,), scale F32 (one for each tensor of the table): change = delta · scale
    topk    index U16 (k,), value F16 (k,), scale F32 (1,), count U32 (one for each block of 65,536 parameters)

`index` counts from the beginning of its block, ascending; `count` is the number of the k in each block; the changes
there are value · scale, and zero elsewhere. State (running statistics, S elements) is in all of them in full, as
`state` F32 (S,): it is small, and a variance that was rounded or left behind could be negative.

Error feedback (Seide et al., Interspeech 2014; Stich et al., NeurIPS 2018; Karimireddy et al., ICML 2019): int8 and
topk leave out a residual, which the device adds to the change that it sends the next time. fp32 adds a residual and
leaves none; fp16 leaves out at most 2^-11 of a change, and no residual.

Both directions are pure; a file is checked against the table before anything is allocated for it.
"""

# coverage: every branch

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import safetensors.numpy
from msgspec import Meta
from numpy.typing import NDArray

from edge_runtime.wire.errors import TensorsInvalid, reason
from edge_runtime.wire.tensors import TensorTable, Vector, pack, read_header, unpack

Scheme = Literal["fp32", "fp16", "int8", "topk"]
AnyScheme = Literal["fp32", "fp16", "int8", "topk", "auto"]
"""With `auto` the upload speed that a device has measured decides."""
Arrays = dict[str, NDArray[Any]]
BLOCK = 65_536
"""Parameters in a block of topk: the number that 16 bits can index."""
MAX_HEADER_BYTES = 1024
TopkFraction = Annotated[float, Meta(gt=0, le=0.5)]
"""The share of the parameters that topk sends."""
TOPK_FRACTION = 0.04
INT8_BELOW_BYTES_PER_S = 1_000_000
"""`auto` sends int8 over a link that uploads less than this …"""
TOPK_BELOW_BYTES_PER_S = 50_000
"""… and topk below this."""
_LEVELS = np.float32(127)
_LEAST = np.finfo(np.float32).tiny
"""Below it a float32 has fewer digits, so a change that needs a smaller scale waits in the residual."""
_DTYPES = {"F32": np.float32, "F16": np.float16, "I8": np.int8, "U16": np.uint16, "U32": np.uint32}


class Updates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The form in which devices send trained weights."""

    scheme: Annotated[
        AnyScheme,
        Meta(description="how updates are compressed; auto: by the link's speed", extra={"flag": "--update-scheme"}),
    ] = "fp32"
    topk_fraction: Annotated[TopkFraction, Meta(description="with topk: the share of the parameters that is sent")] = (
        TOPK_FRACTION
    )


def choose(updates: Updates, upload_bytes_per_s: float | None) -> Scheme:
    """Return the scheme for a link's upload speed; None is a link that was not measured, which gets fp32."""
    if updates.scheme != "auto":
        return updates.scheme
    if upload_bytes_per_s is None or upload_bytes_per_s >= INT8_BELOW_BYTES_PER_S:
        return "fp32"
    return "int8" if upload_bytes_per_s >= TOPK_BELOW_BYTES_PER_S else "topk"


def working_bytes(table: TensorTable, updates: Updates) -> int:
    """Return the most bytes that writing an update allocates, its file and both residuals included.

    For each parameter: fp32 the file; fp16 the change, twice the delta and twice the file, and the mask of the test for
    finite values; int8 and topk two residuals and a third vector (a tensor in steps, or the sizes of all changes) with
    its mask, topk three times the indices that it sends. `auto` is the most of them. State is sent in full.
    """
    parameters = table.parameters.size
    sent = max(1, int(updates.topk_fraction * parameters))
    largest = {
        "fp32": 4 * table.size,
        "fp16": 11 * parameters,
        "int8": 13 * parameters,
        "topk": 13 * parameters + 24 * sent,
    }
    largest["auto"] = max(largest.values())
    state_bytes = 0 if updates.scheme == "fp32" else 3 * 4 * (table.size - parameters)
    return largest[updates.scheme] + state_bytes + MAX_HEADER_BYTES


def max_bytes(full_bytes: int) -> int:
    """Return the most bytes that an update may have where the weights in full have `full_bytes`."""
    return full_bytes + MAX_HEADER_BYTES


@np.errstate(over="ignore", invalid="ignore")  # values that are not finite raise TensorsInvalid
def encode(
    table: TensorTable,
    *,
    received: Vector,
    trained: Vector,
    residual: Vector | None,
    scheme: Scheme,
    topk_fraction: float,
) -> tuple[bytes, Vector | None]:
    """Return the file of an update, and the residual that it leaves.

    `received` and `trained` (D,) are laid out by `table`; the residuals (P,) by its parameters, None being none. With
    fp32 and no residual this is `pack(table, trained)`. Raises TensorsInvalid for vectors of another length, a change
    that is not finite, and one that the scheme cannot hold.
    """
    table.check(received)
    table.check(trained)
    parameters = table.parameters
    if residual is not None:
        parameters.check(residual)
    if scheme == "fp32":
        if residual is not None:
            trained = trained.copy()
            trained[: parameters.size] += residual
            _check_finite(trained, "the update")
        return pack(table, trained), None
    change = trained[: parameters.size] - received[: parameters.size]  # (P,), becomes the residual
    if residual is not None:
        change += residual
    _check_finite(change, "the change of the weights in training")
    if scheme == "fp16":
        arrays = _to_fp16(change)
    elif scheme == "int8":
        arrays = _to_int8(parameters, change)
    else:
        arrays = _to_topk(change, max(1, int(topk_fraction * parameters.size)))
    if table.size > parameters.size:
        arrays["state"] = trained[parameters.size :]
    return safetensors.numpy.save(arrays), None if scheme == "fp16" else change


@np.errstate(over="ignore", invalid="ignore")
def decode(table: TensorTable, data: bytes, scheme: Scheme, received: Vector) -> Vector:
    """Return the weights (D,) in an update's file, whose device received the weights `received` (D,).

    Raises TensorsInvalid if the file is malformed, does not fit the table, or gives a value that is not finite.
    """
    if scheme == "fp32":
        return unpack(table, data)
    table.check(received)
    parameters = table.parameters
    size, state = parameters.size, table.size - parameters.size
    layout: dict[str, tuple[str, int | None]] = {"state": ("F32", state)} if state else {}
    if scheme == "fp16":
        layout["delta"] = ("F16", size)
    elif scheme == "int8":
        layout |= {"delta": ("I8", size), "scale": ("F32", len(parameters.tensors))}
    else:
        blocks = -(-size // BLOCK)
        layout |= {"index": ("U16", None), "value": ("F16", None), "scale": ("F32", 1), "count": ("U32", blocks)}
    arrays = _arrays(data, layout)
    if "scale" in arrays and not (np.isfinite(arrays["scale"]) & (arrays["scale"] >= 0)).all():
        raise TensorsInvalid("a scale of the update is negative or not finite")
    weights = received.copy()
    if scheme == "fp16":
        weights[:size] += arrays["delta"]
    elif scheme == "int8":
        for tensor, scale in zip(parameters.tensors, arrays["scale"], strict=True):
            where = slice(tensor.offset, tensor.offset + tensor.size)
            weights[where] += np.multiply(arrays["delta"][where], scale, dtype=np.float32)
    else:
        _add_topk(weights[:size], arrays)
    if state:
        weights[size:] = arrays["state"]
    _check_finite(weights, "the update")
    return weights


def _to_fp16(change: Vector) -> Arrays:
    delta = change.astype(np.float16)
    _check_finite(delta, "a change of more than 65,504, the most that fp16 holds: the update")
    return {"delta": delta}


def _to_int8(parameters: TensorTable, change: Vector) -> Arrays:
    """Quantise each tensor to 255 steps, symmetric about zero; `change` becomes the residual."""
    delta = np.zeros(parameters.size, np.int8)
    scales = np.zeros(len(parameters.tensors), np.float32)
    for i, tensor in enumerate(parameters.tensors):
        where = slice(tensor.offset, tensor.offset + tensor.size)
        part = change[where]
        scale = np.maximum(part.max(), -part.min()) / _LEVELS
        if scale >= _LEAST:
            steps = part / scale
            np.rint(steps, out=steps)  # in −127 … 127
            delta[where], scales[i] = steps, scale
            steps *= scale
            part -= steps
    return {"delta": delta, "scale": scales}


def _to_topk(change: Vector, k: int) -> Arrays:
    """Select the k largest changes, of equal ones the first, zeros never; `change` becomes the residual."""
    chosen = _largest(change, k)  # (k,), ascending
    values = change[chosen]
    scale = np.abs(values).max(initial=0)
    if scale < _LEAST:
        chosen, values, scale = chosen[:0], values[:0], np.float32(0)
    else:
        values /= scale  # in −1 … 1
    value = values.astype(np.float16)
    change[chosen] -= np.multiply(value, scale, dtype=np.float32)
    block, index = np.divmod(chosen, BLOCK)
    count = np.bincount(block, minlength=-(-len(change) // BLOCK))
    return {
        "index": index.astype(np.uint16),
        "value": value,
        "scale": np.array([scale], np.float32),
        "count": count.astype(np.uint32),
    }


def _largest(change: Vector, k: int) -> NDArray[np.intp]:
    """Return the indices of the k largest sizes of `change` (P,), ascending, without zeros."""
    sizes = np.abs(change)
    sizes.partition(len(sizes) - k)
    threshold = sizes[len(sizes) - k]
    np.abs(change, out=sizes)
    above = np.flatnonzero(sizes > threshold)
    equal = np.flatnonzero(sizes == threshold)[: k - len(above)] if threshold else above[:0]
    return np.sort(np.concatenate([above, equal]))


def _add_topk(weights: Vector, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Add the changes of a topk file to `weights` (P,), block by block."""
    index, value, (scale,) = arrays["index"], arrays["value"], arrays["scale"]
    counts = [int(count) for count in arrays["count"]]
    if not len(index) == len(value) == sum(counts):
        raise TensorsInvalid(
            f"a topk update of {len(index)} indices, {len(value)} values and counts of {sum(counts)} in all"
        )
    start = 0
    for number, count in enumerate(counts):
        block = weights[number * BLOCK : (number + 1) * BLOCK]
        here = index[start : start + count]
        if count and (int(here[-1]) >= len(block) or (here[1:] <= here[:-1]).any()):
            raise TensorsInvalid(f"the indices of block {number} of a topk update do not ascend, or leave it")
        block[here] += np.multiply(value[start : start + count], scale, dtype=np.float32)
        start += count


def _check_finite(values: NDArray[Any], what: str) -> None:
    if not np.isfinite(values).all():
        raise TensorsInvalid(f"{what} has a value that is not finite")


def _arrays(data: bytes, layout: Mapping[str, tuple[str, int | None]]) -> Arrays:
    """Return the arrays of an update's file as read-only views. `layout` gives their types, and lengths if known."""
    header, start = read_header(data, MAX_HEADER_BYTES)
    if unexpected := sorted(header.keys() ^ layout.keys()):
        raise TensorsInvalid(f"the update has, or lacks, an array {reason(unexpected[0])!r}")
    arrays: Arrays = {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1].data_offsets):
        dtype, length = layout[name]
        found = entry.shape[0] if entry.shape else 0
        if (entry.dtype, entry.shape) != (dtype, (found if length is None else length,)):
            raise TensorsInvalid(
                f"array {name!r} of the update is {entry.dtype} {entry.shape}, not {dtype} ({length},)"
            )
        size_bytes = found * np.dtype(_DTYPES[dtype]).itemsize
        if entry.data_offsets != (end, end + size_bytes):
            raise TensorsInvalid(f"array {name!r} of the update is not where the one before it ends, or has a gap")
        end += size_bytes
        if start + end > len(data):
            raise TensorsInvalid(f"the update ends within array {name!r}")
        arrays[name] = np.frombuffer(data, _DTYPES[dtype], found, start + end - size_bytes)
    if start + end != len(data):
        raise TensorsInvalid(f"the update has {len(data) - start - end} bytes after its arrays")
    return arrays
