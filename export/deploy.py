"""Plain inference models: inputs in, predictions out, weights inside; any stock onnxruntime loads them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper

from edge_runtime.wire import bundle_folder
from edge_runtime.wire import manifest as wire
from edge_runtime.wire.errors import BundleInvalid
from edge_runtime.wire.graph_names import value_of
from edge_runtime.wire.operators import OPSET
from edge_runtime.wire.tensors import STATE, Vector
from export.lowering.context import SEED
from export.onnx_graph import IR_VERSION, PRODUCER
from export.signature import Role


def inference_model(folder: Path, manifest: wire.Manifest, weights: Vector) -> onnx.ModelProto:
    """One model of the manifest's tasks: its inputs (batch, …), as `image`, and an output for each task, by its name.

    Several predictions of a task are outputs TASK.NAME.

    `folder` is a bundle that has the manifest's graphs and fixed tensors; `weights` (D,) is laid out by the manifest's
    table. Raises BundleInvalid for a file that cannot be read.
    """
    tensors = manifest.table.views(weights)
    for part, fixed in manifest.fixed.items():
        tensors |= fixed.table.views(
            bundle_folder.read_fixed(bundle_folder.graph_path(folder, f"{wire.FIXED}.{part}"), fixed)
        )
    given = {value_of(name): name for name in manifest.inputs}
    z = {f"z.{i}": f"z.{i}" for i in range(len(manifest.representation))}
    encoder = _load(folder, "encoder.predict")
    nodes, constants = _renamed(encoder, "encoder", {**given, "e": "e", **z})
    if manifest.embedding is not None:
        before = _renamed(_load(folder, "stem.predict"), "stem", {**given, "e": "e"})
        nodes, constants = before[0] + nodes, before[1] + constants
    outputs = []
    for task in manifest.tasks:
        part = f"head.{task.name}"
        named = {name: f"{task.name}{name.removeprefix(Role.PREDICTION.value)}" for name in task.outputs}
        more = _renamed(_load(folder, f"{part}.predict"), part, {**z, **named})
        nodes += more[0]
        constants += more[1]
        for name, array in task.outputs.items():
            shape: list[str | int | None] = ["batch", *array.shape]
            outputs.append(helper.make_tensor_value_info(named[name], onnx.TensorProto.FLOAT, shape))
    constants += [numpy_helper.from_array(np.ascontiguousarray(view), name) for name, view in tensors.items()]
    types = {"float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64}
    inputs = [
        helper.make_tensor_value_info(name, types[array.dtype], ["batch", *array.shape])
        for name, array in manifest.inputs.items()
    ]
    graph = helper.make_graph(nodes, manifest.name or "mas-edge", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name=PRODUCER)
    onnx.checker.check_model(model)
    return model


def _load(folder: Path, name: str) -> onnx.GraphProto:
    path = bundle_folder.graph_path(folder, name)
    try:
        return onnx.load(path).graph
    except (OSError, DecodeError) as exc:
        raise BundleInvalid(f"{path} is not an ONNX graph: {exc}") from exc


def _renamed(
    graph: onnx.GraphProto, part: str, kept: Mapping[str, str]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return a part's nodes and constants: tensors of the table by their names there, all else marked as its own."""
    inputs = {value.name: value.name for value in graph.input}
    in_table = {name: f"{part}.{own}" for own, name in Role.PARAMETER.select(inputs).items()}
    in_table |= {name: f"{STATE}{part}.{own}" for own, name in Role.STATE.select(inputs).items()}

    def name(old: str) -> str:
        if not old or old in kept:
            return kept.get(old, "")
        return in_table.get(old, f"{part}/{old}")

    nodes, constants = [], []
    if SEED in inputs:  # a model that draws where it predicts: each time the same
        constants.append(numpy_helper.from_array(np.array(0, np.int64), name(SEED)))
    for node in graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for values in (copy.input, copy.output):
            values[:] = [name(value) for value in values]
        nodes.append(copy)
    for tensor in graph.initializer:
        constant = onnx.TensorProto()
        constant.CopyFrom(tensor)
        constant.name = name(tensor.name)
        constants.append(constant)
    return nodes, constants
