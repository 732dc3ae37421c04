"""A bundle's files: the manifest, and beside it what it names, each checked by size and digest.

manifest.json
weights.safetensors
graphs/<graph name>.onnx
fixed/<part>.safetensors                   only with tensors that training does not change
made-from.json                             what it was made from; for the exporter alone
official/forward.onnx                      only with ONNX Runtime training artifacts
official/<group>/<artifact>
"""

# coverage: every branch

import mmap
from collections.abc import Mapping
from pathlib import Path

from edge_runtime.wire.errors import BundleInvalid
from edge_runtime.wire.files import digest_file, write_atomic
from edge_runtime.wire.manifest import FIXED, MAX_MANIFEST_BYTES, File, FixedTensors, Manifest, decode, encode
from edge_runtime.wire.tensors import Vector, unpack

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
GRAPHS = "graphs"
ORT_TRAINING = "official"
"""The folder of ONNX Runtime training artifacts, named as the first bundles of format 2 named it."""
FORWARD = "forward.onnx"


def graph_path(folder: Path, name: str) -> Path:
    """Return the path of a graph, or of a part's fixed tensors, by its name in `files` of a validated manifest."""
    kind, _, part = name.partition(".")
    if kind == FIXED:
        return folder / FIXED / f"{part}.safetensors"
    return folder / GRAPHS / f"{name}.onnx"


def artifact_path(folder: Path, group: str, name: str) -> Path:
    """Return the path of a training artifact in a bundle's folder; `group` and `name` are of a validated manifest."""
    return folder / ORT_TRAINING / group / name


def read_folder(folder: Path) -> Manifest:
    """Return the manifest of a bundle's folder after checking every file against it. Raises BundleInvalid."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            manifest = decode(file.read(MAX_MANIFEST_BYTES + 1))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as exc:
        raise BundleInvalid(f"{folder} is not a bundle: it has no file {MANIFEST}") from exc
    check_file(folder / WEIGHTS, manifest.weights)
    for name, content in manifest.files.items():
        check_file(graph_path(folder, name), content)
    if manifest.ort_training is not None:
        if manifest.ort_training.forward is not None:
            check_file(folder / ORT_TRAINING / FORWARD, manifest.ort_training.forward)
        for group, artifacts in manifest.ort_training.groups.items():
            for name, artifact in artifacts.files.items():
                check_file(artifact_path(folder, group, name), artifact)
    return manifest


def read_fixed(path: Path, fixed: FixedTensors) -> Vector:
    """Return a part's fixed tensors as a read-only vector, mapped from their file. Raises BundleInvalid.

    The vector keeps the map. A file that is replaced stays as it was for those who have it open.
    """
    try:
        with path.open("rb") as file:
            return unpack(fixed.table, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as exc:
        raise BundleInvalid(f"{path} cannot be read: {exc}") from exc


def check_file(path: Path, file: File) -> None:
    """Raise BundleInvalid unless the file at `path` is the one that the manifest names."""
    if not path.is_file():
        raise BundleInvalid(f"{path} is missing from the bundle")
    if path.stat().st_size != file.size_bytes or digest_file(path) != file.digest:
        raise BundleInvalid(f"{path} is not the file that the manifest names (its size or SHA-256 is another)")


def write_folder(folder: Path, manifest: Manifest, weights: bytes, files: Mapping[str, bytes]) -> None:
    """Write a bundle: files and weights first, the manifest last, so a folder with a manifest is whole.

    `files` are those of the manifest by name.
    """
    content = encode(manifest)
    (folder / MANIFEST).unlink(missing_ok=True)
    before = {*(folder / GRAPHS).glob("*.onnx"), *(folder / FIXED).glob("*.safetensors")}
    for left in before - {graph_path(folder, name) for name in files}:
        left.unlink()
    for name, data in files.items():
        write_atomic(graph_path(folder, name), data)
    write_atomic(folder / WEIGHTS, weights)
    write_atomic(folder / MANIFEST, content)
