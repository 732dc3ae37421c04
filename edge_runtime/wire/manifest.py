"""A bundle's manifest: tasks, tensors, graphs and initial weights, everything by SHA-256 digest.

On a workstation a bundle is a folder (edge_runtime.wire.bundle_folder). On a device and on the server it is the
manifest and a blob store. The split of a model is a new manifest over the same graph files and other weights: nothing
is compiled again and no graph is sent twice. What its graphs are called, take in and give is in graph_names.py.

A model may have a stem before its encoder, a part of its own: the encoder's stages then read its embedding e in place
of x, and give ∂L/∂e. So the encoder, which knows neither images nor labels, can be computed elsewhere. Without a stem
there are neither its graphs nor `embedding`. With one no part has state.

There are three kinds of tensor. A graph gives grad.<name> of what is trained, next.<name> of state, and only reads
what is fixed: frozen parameters, and the running statistics of a normalisation in evaluation mode. Trained tensors and
state are `tensors`, the vector that is trained, sent and averaged. Fixed ones are a file for each part, which devices
get once with the graphs. A gradient that nobody wants is in no graph: the first stages of an encoder without a stem in
which all is fixed have a forward graph alone, a stem that is fixed has no backward graph, and heads give no dz if there
is nothing to train before them.

A linear model (`linear`) has one task and no graph: its input `features` (d,) is its representation, and its one tensor
head.<task>.weight (d,). What a device does with it is in edge_runtime.linear.
"""

# coverage: every branch

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from devices.cli.text import PRINTABLE
from edge_runtime.wire.blob import MAX_BLOB_BYTES
from edge_runtime.wire.errors import BundleInvalid, TensorsInvalid, reason
from edge_runtime.wire.footprint import Footprint
from edge_runtime.wire.graph_names import (
    IMAGE,
    GraphName,
    PartName,
    PredictionName,
    ValueName,
    graph_names,
    graph_part,
    parts_of,
    prediction_of,
    value_of,
)
from edge_runtime.wire.labels import LabelContract
from edge_runtime.wire.linear import FEATURES, LinearModel
from edge_runtime.wire.metrics import MetricName, misfit
from edge_runtime.wire.names import MAX_TASKS, Digest, GroupId, TaskName, Tasks, group_id
from edge_runtime.wire.reconstruction import Reconstruction
from edge_runtime.wire.tensors import MAX_TENSORS, STATE, Dimension, Tensor, TensorTable, part_of

FORMAT = 2
MAX_MANIFEST_BYTES = 8 * 1024**2
FIXED = "fixed"
TRAINING = "training_model.onnx"
MAX_REPRESENTATIONS = 32
MAX_STAGES = 32
MAX_VALUES = 256
MAX_INPUTS = 16
MAX_PREDICTIONS = 16

Text = Annotated[str, Meta(max_length=200, pattern=PRINTABLE)]


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file by its content: SHA-256 in hexadecimal and bytes."""

    digest: Digest
    size_bytes: Annotated[int, Meta(ge=1, le=MAX_BLOB_BYTES)]


class Array(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An array that goes in or out: its shape without the batch dimension, and its type."""

    shape: Annotated[tuple[Dimension, ...], Meta(max_length=8)]
    dtype: Literal["float32", "int64"]


class Input(Array, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What goes into a model: its shape without the batch dimension, its type and, of integers, their number."""

    count: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    """Integers go from 0 to count - 1, as tokens of a vocabulary; None where nothing is known of them."""


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One task: its name, what its labels and its predictions look like."""

    name: TaskName
    target: Array
    prediction: Array | None = None
    """The only prediction; None where there are several."""
    predictions: Annotated[dict[PredictionName, Array], Meta(max_length=MAX_PREDICTIONS)] = {}
    """Several predictions, by name."""
    metric: MetricName | None = None
    """The measure of predictions besides the loss."""
    measured: PredictionName | None = None
    """The one of several predictions that the metric measures."""
    ignored: Annotated[int, Meta(ge=-(2**31), lt=2**31)] | None = None
    """The class that means no label, for a metric of classes."""
    labels: LabelContract | None = None
    """What the labels may be; None for a bundle that was made before labels had a contract."""
    whole_batch: bool = False
    """The loss compares the samples of a batch with one another: no batch is cut into micro-batches."""

    def __post_init__(self) -> None:
        if (self.prediction is None) != bool(self.predictions):
            raise ValueError(f"{self.name} needs one prediction, or several by name")
        if self.metric is None:
            return
        if self.measured_output not in self.outputs:
            raise ValueError(f"the metric of {self.name} is of no prediction that it has")
        classes = self.target.dtype == "int64"
        shape = self.outputs[self.measured_output].shape
        if (fault := misfit(self.metric, target=self.target.shape, classes=classes, prediction=shape)) is not None:
            raise ValueError(f"the metric of {self.name}: {fault}")

    @property
    def outputs(self) -> dict[str, Array]:
        """All predictions by their names in graphs."""
        if self.prediction is not None:
            return {prediction_of(""): self.prediction}
        return {prediction_of(name): array for name, array in self.predictions.items()}

    @property
    def measured_output(self) -> str:
        """The name in graphs of the prediction that the metric measures."""
        return prediction_of(self.measured or "")

    @property
    def unlabelled(self) -> tuple[int, ...]:
        """The classes that mean no label, as far as the bundle says."""
        if self.labels is not None:
            return self.labels.ignored
        return () if self.ignored is None else (self.ignored,)


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stage of the encoder: the values that it reads and writes, and its parameters, without their part."""

    reads: Annotated[tuple[ValueName, ...], Meta(min_length=1, max_length=MAX_VALUES)]
    writes: Annotated[tuple[ValueName, ...], Meta(min_length=1, max_length=MAX_VALUES)]
    parameters: Annotated[tuple[Text, ...], Meta(max_length=MAX_TENSORS)]


class FixedTensors(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tensors of a part that training does not change, and their safetensors file."""

    tensors: Annotated[tuple[Tensor, ...], Meta(min_length=1, max_length=MAX_TENSORS)]
    file: File

    @property
    def table(self) -> TensorTable:
        """The tensors' table."""
        return TensorTable(self.tensors)


class Parity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The difference of the graphs from PyTorch on the example batch.

    The error is the largest difference relative to the largest value of each tensor, over losses and every gradient.
    """

    max_relative_error: Annotated[float, Meta(ge=0)]
    worst: Text
    compared: Annotated[int, Meta(ge=0, le=2**31)]


class Artifacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ONNX Runtime training artifacts of one group, and their largest relative difference to the graphs.

    The training model has the inputs x, target.<task>, loss_weights (T,), the parameters and the state by their names
    and, where it draws, seed.<part>; and the outputs loss, loss.<task> and, for the state, next.<part>.<name>. What
    flows into the encoder is Σ weight_i · ∂L_i/∂z · 1/√T, as in the portable engine.
    """

    training_model: File
    eval_model: File
    optimizer_model: File
    checkpoint: File
    max_relative_error: Annotated[float, Meta(ge=0)]

    @property
    def files(self) -> dict[str, File]:
        """The files by their names in the group's folder."""
        models = {f"{kind}_model.onnx": getattr(self, f"{kind}_model") for kind in ("training", "eval", "optimizer")}
        return {**models, "checkpoint": self.checkpoint}


class OrtTrainingArtifacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training artifacts by group, and the forward graph of all tasks that those of other groups are made from."""

    groups: Annotated[dict[GroupId, Artifacts], Meta(max_length=4096)]
    forward: File | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A bundle's content: tasks, tensors, graphs, weights and how it was made."""

    format: Literal[2]
    name: Text
    tasks: Annotated[tuple[Task, ...], Meta(min_length=1, max_length=MAX_TASKS)]
    input: Array | None = None
    """The image, where there is one."""
    other_inputs: Annotated[dict[TaskName, Input], Meta(max_length=MAX_INPUTS)] = msgspec.field(
        default_factory=dict, name="inputs"
    )
    """The inputs besides the image, by the names of their files in a data set."""
    representation: Annotated[tuple[Array, ...], Meta(min_length=1, max_length=MAX_REPRESENTATIONS)]
    values: Annotated[tuple[Array, ...], Meta(max_length=MAX_VALUES)]
    stages: Annotated[tuple[Stage, ...], Meta(min_length=1, max_length=MAX_STAGES)]
    tensors: Annotated[tuple[Tensor, ...], Meta(min_length=1, max_length=MAX_TENSORS)]
    graphs: dict[GraphName, File]
    weights: File
    opset: Annotated[int, Meta(ge=1, le=1000)]
    parity: Parity
    versions: Annotated[dict[Text, Text], Meta(max_length=100)]
    ort_training: OrtTrainingArtifacts | None = msgspec.field(default=None, name="official")
    """`official` in the JSON: a device refuses unknown keys, so those of before could not read another."""
    footprint: Footprint | None = None
    embedding: Array | None = None
    """The stem's output, which the encoder reads; null where there is no stem."""
    reconstruction: Reconstruction | None = None
    """What the exporter has made of the stem's embeddings again; null where it was not measured."""
    fixed: Annotated[dict[PartName, FixedTensors], Meta(max_length=MAX_TASKS + 2)] = {}
    """What training does not change, by part."""
    linear: LinearModel | None = None
    """Set where the model is w·x, and there are no graphs."""

    @property
    def inputs(self) -> dict[str, Input]:
        """All inputs by the names of their files in a data set."""
        image = self.input
        first = {} if image is None else {IMAGE: Input(shape=image.shape, dtype=image.dtype)}
        return first | self.other_inputs

    @property
    def sources(self) -> dict[str, Array]:
        """The values that the encoder starts from: the inputs, or what the stem makes of them, e."""
        if self.embedding is not None:
            return {"e": self.embedding}
        return {value_of(name): array for name, array in self.inputs.items()}

    @property
    def task_names(self) -> tuple[str, ...]:
        """The names of the tasks, in order."""
        return tuple(task.name for task in self.tasks)

    @property
    def whole_batch(self) -> bool:
        """Return whether batches are never cut into micro-batches, because a task's loss compares their samples."""
        return any(task.whole_batch for task in self.tasks)

    @property
    def table(self) -> TensorTable:
        """The tensor table of all parts and their state."""
        return TensorTable(self.tensors)

    @property
    def fixed_stages(self) -> int:
        """Return how many of the encoder's first stages have nothing to train, in them or before them."""
        if self.embedding is not None or "encoder" not in self.fixed:
            return 0
        trained = (k for k, stage in enumerate(self.stages) if stage.parameters)
        return next(trained, len(self.stages))

    @property
    def trains_shared(self) -> bool:
        """Return whether anything before the heads is trained, so that they give ∂L/∂z."""
        return self.embedding is not None or self.fixed_stages < len(self.stages)

    @property
    def files(self) -> dict[str, File]:
        """The graphs by their names, and the files of fixed tensors by `fixed.<part>`; without the weights."""
        return {**self.graphs, **{f"{FIXED}.{part}": fixed.file for part, fixed in self.fixed.items()}}

    def task(self, name: str) -> Task:
        """Return the task of this name. Raises BundleInvalid if the bundle does not have it."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise BundleInvalid(f"the bundle has no task {name!r}; it has {', '.join(self.task_names)}")

    @property
    def encoder_table(self) -> TensorTable:
        """The table of the encoder's parameters alone: the encoder server's part in split learning.

        Raises BundleInvalid if the encoder has nothing to train.
        """
        if "encoder" not in self.table.parts:
            raise BundleInvalid("the encoder has nothing to train, so no encoder server is needed: train without one")
        return self.table.select(["encoder"])

    def local(self) -> "Manifest":
        """Return what a device has whose encoder is computed elsewhere: stem and heads, their tensors and graphs.

        It describes a part of a bundle, and is no bundle's manifest.
        """
        table = self.table
        return msgspec.structs.replace(
            self,
            tensors=table.select(part for part in table.parts if part != "encoder").tensors,
            graphs={name: file for name, file in self.graphs.items() if graph_part(name) != "encoder"},
            fixed={part: fixed for part, fixed in self.fixed.items() if part != "encoder"},
            stages=(),
            values=(),
        )

    def needs(self, *, ort_training: bool = False) -> dict[str, int]:
        """Return digests and bytes of a device's files; `ort_training` adds the training models of ONNX Runtime."""
        files = [*self.files.values()]
        if ort_training and self.ort_training is not None:
            files += [artifacts.training_model for artifacts in self.ort_training.groups.values()]
        return {file.digest: file.size_bytes for file in files}

    def group(self, tasks: Tasks, weights: File) -> "Manifest":
        """Return the manifest of some of the tasks: the same graphs, other weights, the group's own artifacts."""
        group = group_id(tasks)
        artifacts = self.ort_training.groups.get(group) if self.ort_training else None
        kept = tuple(self.task(name) for name in sorted(set(tasks)))
        parts = parts_of(tasks, stem=self.embedding is not None)
        table = self.table
        graphs = {name: file for name, file in self.graphs.items() if graph_part(name) in parts}
        digests = {file.digest for file in graphs.values()}
        return msgspec.structs.replace(
            self,
            tasks=kept,
            tensors=table.select(part for part in table.parts if part.removeprefix(STATE) in parts).tensors,
            graphs=graphs,
            fixed={part: fixed for part, fixed in self.fixed.items() if part in parts},
            weights=weights,
            ort_training=None if artifacts is None else OrtTrainingArtifacts(groups={group: artifacts}),
            footprint=None if self.footprint is None else self.footprint.of(digests),
        )


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as JSON: the same content gives the same bytes. Raises BundleInvalid where decode would."""
    data = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1) + b"\n"
    decode(data)
    return data


class _Format(msgspec.Struct):
    format: msgspec.Raw


def decode(data: bytes) -> Manifest:
    """Return a validated manifest. Raises BundleInvalid."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleInvalid(f"a manifest of {len(data)} bytes is over the {MAX_MANIFEST_BYTES} allowed")
    try:
        _check_format(bytes(msgspec.json.decode(data, type=_Format).format))
        manifest = msgspec.json.decode(data, type=Manifest)
        parts = set(manifest.table.parts)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TensorsInvalid) as exc:
        raise BundleInvalid(f"the manifest is not understood: {reason(exc)}") from exc
    names = manifest.task_names
    if not manifest.inputs or IMAGE in manifest.other_inputs:
        raise BundleInvalid(f"the manifest has no input, or names one {IMAGE!r} twice")
    if names != tuple(sorted(set(names))):
        raise BundleInvalid("the manifest's tasks are not in the order of their names, or one is there twice")
    if manifest.linear is not None:
        _check_linear(manifest)
        return manifest
    stem = manifest.embedding is not None
    expected = graph_names(
        names,
        len(manifest.stages),
        stem=stem,
        fixed_stages=manifest.fixed_stages,
        fixed_stem="stem" in manifest.fixed and "stem" not in parts,
    )
    if odd := sorted(set(expected) ^ set(manifest.graphs)):
        raise BundleInvalid(f"the manifest's graphs and tasks disagree about graph {odd[0]!r}")
    stateful = {part for part in parts if part.startswith(STATE)}
    unknown = {part for part in stateful if stem or part.removeprefix(STATE) not in parts_of(names, stem=stem)}
    if odd := sorted((parts - stateful | manifest.fixed.keys()) ^ set(parts_of(names, stem=stem)) | unknown):
        raise BundleInvalid(f"the tensor table and the tasks disagree about part {odd[0]!r}")
    _check_stages(manifest)
    _check_fixed(manifest)
    if manifest.footprint is not None:
        known = manifest.footprint.graphs.keys()
        if odd := sorted(name for name, file in manifest.graphs.items() if file.digest not in known):
            raise BundleInvalid(f"the manifest's footprint does not know graph {odd[0]!r}")
    return manifest


def _check_stages(manifest: Manifest) -> None:
    """Raise BundleInvalid unless every value is written once, before it is read, and every parameter in one stage."""
    wanted = {f"z.{i}" for i in range(len(manifest.representation))} | {f"v.{i}" for i in range(len(manifest.values))}
    known = set(manifest.sources)
    for k, stage in enumerate(manifest.stages):
        if odd := sorted(set(stage.reads) - known):
            raise BundleInvalid(f"stage {k} of the encoder reads {odd[0]!r}, which no stage before it writes")
        for name in stage.writes:
            if name in known or name not in wanted:
                raise BundleInvalid(f"stage {k} of the encoder writes {name!r}, which is written already or unknown")
            known.add(name)
    if odd := sorted(wanted - known):
        raise BundleInvalid(f"no stage of the encoder writes {odd[0]!r}")
    listed = sorted(name for stage in manifest.stages for name in stage.parameters)
    parameters = [t.name.removeprefix("encoder.") for t in manifest.tensors if part_of(t.name) == "encoder"]
    if listed != sorted(parameters):
        raise BundleInvalid("the encoder's stages and the tensor table disagree about its parameters")


def _check_linear(manifest: Manifest) -> None:
    """Raise BundleInvalid unless a linear model has one task, one input, one tensor of its length, and nothing else."""
    task, shape = manifest.tasks[0], tuple(array.shape for array in manifest.inputs.values())
    wanted = TensorTable.of({f"head.{task.name}.weight": shape[0]})
    if len(manifest.tasks) > 1 or [*manifest.inputs] != [FEATURES] or len(shape[0]) != 1:
        raise BundleInvalid(f"a linear model has one task, and one input {FEATURES!r} of one dimension")
    if manifest.tensors != wanted.tensors or task.target.shape or task.target.dtype != "float32":
        raise BundleInvalid(f"a linear model of {shape[0][0]} features has one tensor of them, and values as labels")
    if manifest.graphs or manifest.fixed or manifest.embedding is not None or manifest.ort_training is not None:
        raise BundleInvalid("a linear model has no graphs, no fixed tensors and no stem")


def _check_fixed(manifest: Manifest) -> None:
    """Raise BundleInvalid for fixed tensors of another part or trained ones, and a task with nothing to train."""
    trained = {tensor.name for tensor in manifest.tensors}
    for part, fixed in manifest.fixed.items():
        try:
            table = fixed.table
        except TensorsInvalid as exc:
            raise BundleInvalid(f"the fixed tensors of {part}: {exc}") from exc
        odd = (t.name for t in table.tensors if t.part.removeprefix(STATE) != part or t.name in trained)
        if (name := next(odd, None)) is not None:
            raise BundleInvalid(f"the fixed tensors of {part} have {name!r}, which is another part's, or trained")
    if not manifest.trains_shared:
        for task in manifest.task_names:
            if f"head.{task}" not in manifest.table.parts:
                raise BundleInvalid(f"nothing is trained for task {task!r}")


def _check_format(version: bytes) -> None:
    if version == str(FORMAT).encode():
        return
    read = f"the bundle has format {reason(version[:20].decode())}, this software reads {FORMAT}"
    if version.isdigit() and len(version) <= len(str(FORMAT)) and int(version) < FORMAT:
        raise BundleInvalid(f"{read}: the bundle is older, compile it again")
    raise BundleInvalid(f"{read}: a newer exporter made it, update this software (or compile it again with this one)")
