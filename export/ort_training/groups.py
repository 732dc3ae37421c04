"""ONNX Runtime training artifacts for groups of tasks, compared with the portable graphs and written into a bundle.

The reference is the portable graphs, which are compared with PyTorch when a bundle is compiled. So the artifacts of a
group that is decided later are checked without PyTorch and without the model's file.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from edge_runtime.wire import bundle_folder
from edge_runtime.wire import manifest as wire
from edge_runtime.wire.errors import BundleInvalid
from edge_runtime.wire.files import write_atomic
from edge_runtime.wire.graph_names import input_of
from edge_runtime.wire.names import Tasks, group_id
from edge_runtime.wire.operators import check_graph_file
from edge_runtime.wire.tensors import STATE, TensorTable, Vector, transfer, unpack
from export.errors import ModelInvalid, OrtTrainingImpossible
from export.model import MultiTaskModel
from export.ort_training import branch_decisions
from export.ort_training.training_model import (
    ROOT,
    Arrays,
    ReferenceSample,
    VerifiedArtifacts,
    group_graph,
    make_artifacts,
)
from export.parity import encoder_passes
from export.parity.check import Runner
from export.signature import Role

DRAWS = 3
VARIABLE = "MAS_ORT_TRAINING_PYTHON"
GraphBytes = Callable[[str], bytes]


def ort_training_python(given: Path | None) -> Path:
    """Return the Python that has onnxruntime-training: given, named by the environment, or of .venv-ort-training here.

    Raises OrtTrainingImpossible.
    """
    named = given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    python = named or ROOT / ".venv-ort-training" / "bin" / "python"
    if not python.is_file():
        raise OrtTrainingImpossible(
            f"{python} does not exist: make the environment of onnxruntime-training with `make venv-ort-training`, or "
            f"name its Python with --ort-training-python or {VARIABLE}"
        )
    return python


def parse_groups(text: str, manifest: wire.Manifest) -> list[Tasks]:
    """Return the groups in `a,b;c,d`, each in the order of names. Raises BundleInvalid."""
    groups = [tuple(sorted({name.strip() for name in group.split(",")})) for group in text.split(";")]
    for name in (name for group in groups for name in group):
        manifest.task(name)
    return list(dict.fromkeys(groups))


T = TypeVar("T")


def only_image(inputs: Mapping[str, T]) -> T:
    """Return the only input of a model. Raises ModelInvalid for one that has others."""
    if inputs.keys() != {"x"}:
        raise ModelInvalid(
            "ONNX Runtime training artifacts are made of models of images alone, this one has "
            f"{', '.join(map(input_of, inputs))}: leave out --ort-training"
        )
    return inputs["x"]


def example_inputs(model: MultiTaskModel) -> list[Arrays]:
    """Return batches that vary around the model's example."""
    random = np.random.default_rng(0)
    x = only_image(model.inputs).numpy()
    targets = {f"target.{task}": model.example_targets[task].numpy() for task in model.tasks}
    noise = [0.01 * random.standard_normal(x.shape).astype(np.float32) * i for i in range(DRAWS)]
    return [{"x": x + each, **targets} for each in noise]


def random_inputs(manifest: wire.Manifest, batch: int = 2) -> list[Arrays]:
    """Return batches of the shapes and types of a bundle; classes are 0 and 1, which every classification has."""
    random = np.random.default_rng(0)

    def array(spec: wire.Array) -> NDArray[Any]:
        shape = (batch, *spec.shape)
        return random.random(shape, np.float32) if spec.dtype == "float32" else random.integers(0, 2, shape)

    return [
        {
            "x": array(only_image(manifest.sources)),
            **{f"target.{task.name}": array(task.target) for task in manifest.tasks},
        }
        for _ in range(DRAWS)
    ]


def make_group(
    forward: onnx.ModelProto,
    whole: wire.Manifest,
    weights: Vector,
    tasks: Tasks,
    *,
    fixed: Arrays,
    batches: Sequence[Arrays],
    graph: GraphBytes,
    run: Runner,
    python: Path,
) -> VerifiedArtifacts:
    """Make a group's artifacts for `weights` (D,), laid out by the whole bundle's table, and `fixed` tensors by name.

    `graph` gives a portable graph by name. Raises OrtTrainingImpossible.
    """
    manifest = whole.group(tasks, whole.weights)
    vector = transfer(TensorTable(whole.tensors), weights, manifest.table)
    trained: Mapping[str, NDArray[Any]] = manifest.table.views(vector)
    tensors = {**trained, **fixed}
    samples = [_sample(manifest, tensors, batch, graph, run) for batch in batches]
    parameters = {name: value for name, value in trained.items() if not name.startswith(STATE)}

    def sample_with_decisions() -> tuple[ReferenceSample, list[NDArray[Any]]]:
        decided: list[NDArray[Any]] = []
        return _sample(manifest, tensors, batches[0], graph, _recording(run, decided)), decided

    return make_artifacts(group_graph(forward, tasks, parameters, fixed), samples, python, sample_with_decisions)


def _recording(run: Runner, decided: list[NDArray[Any]]) -> Runner:
    """Return a runner that adds the values that graphs decide by to `decided`."""

    def recorded(data: bytes, arrays: Arrays) -> Arrays:
        model = onnx.load_from_string(data)
        outputs = {output.name for output in model.graph.output}
        names = branch_decisions.deciding_values(model.graph)
        found = run(branch_decisions.with_outputs(model, names).SerializeToString(deterministic=True), arrays)
        decided.extend(found[name] for name in names)
        return {name: value for name, value in found.items() if name in outputs}

    return recorded


def _sample(manifest: wire.Manifest, tensors: Arrays, batch: Arrays, graph: GraphBytes, run: Runner) -> ReferenceSample:
    """Return one batch with the portable graphs' results: losses, gradients and the next state.

    The encoder's gradients are of Σ ∂L_i/∂z · 1/√T.
    """
    tasks = manifest.task_names
    parts = ("encoder", *(f"head.{task}" for task in tasks))
    own = encoder_passes.inputs_by_part(tensors, parts.index)

    def call(name: str, arrays: Arrays) -> Arrays:
        return run(graph(name), arrays)

    expected: dict[str, NDArray[Any]] = {}
    x = {"x": batch["x"], **own["encoder"]}
    passed = encoder_passes.forward(manifest.stages, call, x, "recompute", fixed=manifest.fixed_stages)
    expected |= _of_part("encoder", Role.NEXT_STATE, passed)
    z = {name: passed[name] for name in (f"z.{i}" for i in range(len(manifest.representation)))}
    dz = {Role.VALUE_GRADIENT.tensor_name(name): np.zeros_like(value) for name, value in z.items()}
    for task in tasks:
        part = f"head.{task}"
        found = call(f"{part}.step", {**z, "target": batch[f"target.{task}"], **own[part]})
        expected[f"loss.{task}"] = found["loss"]
        expected |= _of_part(part, Role.PARAMETER_GRADIENT, found) | _of_part(part, Role.NEXT_STATE, found)
        dz = {name: summed + found.get(name, 0) for name, summed in dz.items()}
    dz = {name: summed * np.float32(1 / np.sqrt(len(tasks))) for name, summed in dz.items()}
    gradients = encoder_passes.backward(manifest.stages, call, x, dz, passed, "recompute", fixed=manifest.fixed_stages)
    expected |= _of_part("encoder", Role.PARAMETER_GRADIENT, gradients)
    inputs = {"x": batch["x"], "loss_weights": np.ones(len(tasks), np.float32)}
    inputs |= {f"target.{task}": batch[f"target.{task}"] for task in tasks}
    moving = (tensor.name for tensor in manifest.tensors if tensor.name.startswith(STATE))
    inputs |= {name: tensors[name] for name in moving}
    inputs |= {f"seed.{part}": own[part]["seed"] for part in parts}
    return ReferenceSample(inputs, expected)


def _of_part(part: str, role: Role, found: Arrays) -> dict[str, NDArray[Any]]:
    """Return a part's tensors of a role by their names in the graph of a whole group."""
    return {role.tensor_name(f"{part}.{own}"): array for own, array in role.select(found).items()}


def with_artifacts(manifest: wire.Manifest, forward: bytes, made: Mapping[Tasks, VerifiedArtifacts]) -> wire.Manifest:
    """Return the manifest with these groups' artifacts beside those that it has."""
    groups = dict(manifest.ort_training.groups) if manifest.ort_training else {}
    for tasks, each in made.items():
        files = {name.removesuffix(".onnx"): _file(data) for name, data in each.files.items()}
        groups[group_id(tasks)] = wire.Artifacts(**files, max_relative_error=each.max_relative_error)
    artifacts = wire.OrtTrainingArtifacts(groups=dict(sorted(groups.items())), forward=_file(forward))
    return msgspec.structs.replace(manifest, ort_training=artifacts)


def write_artifacts(folder: Path, forward: bytes, made: Mapping[Tasks, VerifiedArtifacts]) -> None:
    """Write the files that the manifest of `with_artifacts` names."""
    write_atomic(folder / bundle_folder.ORT_TRAINING / bundle_folder.FORWARD, forward)
    for tasks, each in made.items():
        for name, data in each.files.items():
            write_atomic(bundle_folder.artifact_path(folder, group_id(tasks), name), data)


def split(
    folder: Path, groups: str, weights: Vector | None, *, run: Runner, python: Path, out: Path | None = None
) -> list[str]:
    """Make artifacts for groups of a bundle's tasks and write them into it; returns the groups' names.

    With `out` they go to that folder, with the manifest that names them, and the bundle stays as it is. `weights` is
    laid out by the bundle's table; None for the bundle's own. Raises BundleInvalid, OrtTrainingImpossible.
    """
    manifest = bundle_folder.read_folder(folder)
    for name in manifest.graphs:
        check_graph_file(bundle_folder.graph_path(folder, name), name)
    chosen = parse_groups(groups, manifest)
    path = folder / bundle_folder.ORT_TRAINING / bundle_folder.FORWARD
    if manifest.ort_training is None or manifest.ort_training.forward is None:
        raise BundleInvalid(
            f"{folder} has no {path.name} to make artifacts from: compile it with --ort-training require"
        )
    data = path.read_bytes()
    forward = onnx.load_from_string(data)
    fixed: dict[str, NDArray[Any]] = {}
    for part, tensors in manifest.fixed.items():
        vector = bundle_folder.read_fixed(bundle_folder.graph_path(folder, f"{wire.FIXED}.{part}"), tensors)
        fixed |= tensors.table.views(vector)
    start = unpack(manifest.table, (folder / bundle_folder.WEIGHTS).read_bytes()) if weights is None else weights
    made = {}
    for tasks in chosen:
        made[tasks] = make_group(
            forward,
            manifest,
            start,
            tasks,
            fixed=fixed,
            batches=random_inputs(manifest),
            graph=lambda name: bundle_folder.graph_path(folder, name).read_bytes(),
            run=run,
            python=python,
        )
    target = out or folder
    write_artifacts(target, data, made)
    write_atomic(target / bundle_folder.MANIFEST, wire.encode(with_artifacts(manifest, data, made)))
    return [group_id(tasks) for tasks in chosen]


def artifacts_of_all_tasks(
    forward: onnx.ModelProto,
    manifest: wire.Manifest,
    weights: Vector,
    model: MultiTaskModel,
    *,
    fixed: Arrays,
    graphs: Mapping[str, bytes],
    run: Runner,
    python: Path,
) -> Mapping[Tasks, VerifiedArtifacts]:
    """Make the artifacts of all tasks together for a model that was just compiled. Raises OrtTrainingImpossible."""
    made = make_group(
        forward,
        manifest,
        weights,
        manifest.task_names,
        fixed=fixed,
        batches=example_inputs(model),
        graph=lambda name: graphs[name],
        run=run,
        python=python,
    )
    return {manifest.task_names: made}


def _file(data: bytes) -> wire.File:
    return wire.File(digest=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
