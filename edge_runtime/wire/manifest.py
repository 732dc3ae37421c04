"""A bundle's manifest: tasks, tensors, graphs and initial weights, everything by SHA-256 digest.

A bundle on a workstation is a folder:

    manifest.json
    weights.safetensors
    graphs/<graph name>.onnx

On a device and on the server it is the manifest and a blob store. The split of a model is a new manifest over the
same graph files and other weights: nothing is compiled again and no graph is sent twice.

Graph names, inputs and outputs (B is the micro-batch, the only dimension that varies):

    encoder.forward        x (B, …), parameters                → z (B, …)
    encoder.backward       x, dz (B, …), parameters            → grad.<parameter> …
    head.<task>.step       z, target (B, …), parameters        → loss (), dz (B, …), grad.<parameter> …
    head.<task>.loss       z, target, parameters               → loss ()
    head.<task>.predict    z, parameters                       → prediction (B, …)

A parameter's input has the tensor's name.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edge_runtime.wire.blob import MAX_BLOB_BYTES
from edge_runtime.wire.errors import BundleInvalid, TensorsInvalid
from edge_runtime.wire.files import digest_file, write_whole
from edge_runtime.wire.names import Digest, TaskName, Tasks
from edge_runtime.wire.tensors import MAX_TENSORS, Dimension, Tensor, TensorTable

FORMAT = 1
MAX_MANIFEST_BYTES = 8 * 1024**2
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
GRAPHS = "graphs"

GraphName = Annotated[str, Meta(pattern=r"^(encoder\.(forward|backward)|head\.[a-z][a-z0-9_]{0,31}\.(step|loss|predict))$")]
Text = Annotated[str, Meta(max_length=200)]


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file by its content: SHA-256 in hexadecimal and bytes."""

    digest: Digest
    size_bytes: Annotated[int, Meta(ge=1, le=MAX_BLOB_BYTES)]


class Array(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An array that goes in or out: its shape without the batch dimension, and its type."""

    shape: Annotated[tuple[Dimension, ...], Meta(max_length=8)]
    dtype: Literal["float32", "int64"]


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One task: its name, what its labels and its predictions look like."""

    name: TaskName
    target: Array
    prediction: Array


class Parity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far the graphs are from PyTorch on the example batch: the largest difference relative to the largest value
    of each tensor, over losses and every gradient."""

    max_relative_error: float
    worst: Text
    compared: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bundle is."""

    format: Literal[1]
    name: Text
    tasks: Annotated[tuple[Task, ...], Meta(min_length=1)]
    input: Array
    representation: Array
    tensors: Annotated[tuple[Tensor, ...], Meta(min_length=1, max_length=MAX_TENSORS)]
    graphs: dict[GraphName, File]
    weights: File
    opset: int
    parity: Parity
    versions: dict[Text, Text]

    @property
    def task_names(self) -> tuple[str, ...]:
        """The names of the tasks, in order."""
        return tuple(task.name for task in self.tasks)

    @property
    def table(self) -> TensorTable:
        """The tensor table of all parts."""
        return TensorTable(self.tensors)

    def task(self, name: str) -> Task:
        """One task. Raises BundleInvalid if the bundle does not have it."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise BundleInvalid(f"the bundle has no task {name!r}; it has {', '.join(self.task_names)}")

    def group(self, tasks: Tasks, weights: File) -> "Manifest":
        """The manifest of some of the tasks alone: the same graphs, other weights."""
        kept = tuple(self.task(name) for name in sorted(tasks))
        parts = ["encoder", *(f"head.{name}" for name in tasks)]
        return msgspec.structs.replace(
            self,
            tasks=kept,
            tensors=self.table.select(parts).tensors,
            graphs={name: file for name, file in self.graphs.items() if _part(name) in parts},
            weights=weights,
        )


def graph_names(tasks: Tasks) -> tuple[str, ...]:
    """The graphs that a bundle of these tasks has."""
    heads = (f"head.{task}.{kind}" for task in tasks for kind in ("step", "loss", "predict"))
    return ("encoder.forward", "encoder.backward", *heads)


def _part(graph: str) -> str:
    return graph.rpartition(".")[0]


def encode(manifest: Manifest) -> bytes:
    """The manifest as JSON: the same content gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1) + b"\n"


def decode(data: bytes) -> Manifest:
    """A validated manifest. Raises BundleInvalid."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleInvalid(f"a manifest of {len(data)} bytes is over the {MAX_MANIFEST_BYTES} allowed")
    try:
        version = msgspec.json.decode(data, type=dict[str, msgspec.Raw]).get("format")
        if version is not None and bytes(version) != str(FORMAT).encode():
            raise BundleInvalid(f"the bundle has format {bytes(version)[:20].decode()}, this software reads {FORMAT}")
        manifest = msgspec.json.decode(data, type=Manifest)
        parts = set(manifest.table.parts)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TensorsInvalid) as exc:
        raise BundleInvalid(f"the manifest is not understood: {exc}") from exc
    names = manifest.task_names
    if names != tuple(sorted(set(names))):
        raise BundleInvalid("the manifest's tasks are not in the order of their names, or one is there twice")
    if missing := sorted(set(graph_names(names)) - set(manifest.graphs)):
        raise BundleInvalid(f"the manifest names no graph {missing[0]!r}")
    if odd := sorted(parts ^ {"encoder", *(f"head.{name}" for name in names)}):
        raise BundleInvalid(f"the tensor table and the tasks disagree about part {odd[0]!r}")
    return manifest


def graph_path(folder: Path, name: str) -> Path:
    """Where a bundle's folder keeps a graph; `name` is one of a validated manifest."""
    return folder / GRAPHS / f"{name}.onnx"


def read_folder(folder: Path) -> Manifest:
    """The manifest of a bundle's folder, after checking every file against it. Raises BundleInvalid."""
    try:
        manifest = decode((folder / MANIFEST).read_bytes())
    except FileNotFoundError as exc:
        raise BundleInvalid(f"{folder} is not a bundle: it has no {MANIFEST}") from exc
    check_file(folder / WEIGHTS, manifest.weights)
    for name, file in manifest.graphs.items():
        check_file(graph_path(folder, name), file)
    return manifest


def check_file(path: Path, file: File) -> None:
    """Raises BundleInvalid unless the file at `path` is the one that the manifest names."""
    try:
        size = path.stat().st_size
    except FileNotFoundError as exc:
        raise BundleInvalid(f"{path} is missing from the bundle") from exc
    if size != file.size_bytes or digest_file(path) != file.digest:
        raise BundleInvalid(f"{path} is not the file that the manifest names (its size or SHA-256 is another)")


def write_folder(folder: Path, manifest: Manifest, weights: bytes, graphs: dict[str, bytes]) -> None:
    """Write a bundle: graphs and weights first, the manifest last, so a folder with a manifest is whole."""
    for name, data in graphs.items():
        write_whole(graph_path(folder, name), data)
    write_whole(folder / WEIGHTS, weights)
    write_whole(folder / MANIFEST, encode(manifest))
