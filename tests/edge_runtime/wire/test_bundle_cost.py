"""Graphs that are not what their manifest says, and those of a real bundle, which are."""

from pathlib import Path

import msgspec
import pytest

from edge_runtime.wire import bundle_folder
from edge_runtime.wire.bundle_cost import SPARE_BYTES, TIMES, check_costs
from edge_runtime.wire.errors import BundleInvalid
from edge_runtime.wire.footprint import MICRO_BATCHES, Footprint, GraphFootprint
from edge_runtime.wire.graph_cost import GraphCost, graph_cost
from edge_runtime.wire.manifest import Array, FixedTensors
from edge_runtime.wire.operators import check_graph_file
from edge_runtime.wire.tensors import Tensor

BUNDLE = Path(__file__).parents[2] / "fixtures" / "bundle"
MANIFEST = bundle_folder.read_folder(BUNDLE)


def costs(batch):
    paths = {name: bundle_folder.graph_path(BUNDLE, name) for name in MANIFEST.graphs}
    return {name: graph_cost(check_graph_file(path, name), name, batch) for name, path in paths.items()}


def found(*, inputs=(), outputs=(), peak_bytes=0, **more):
    shapes = dict(outputs)
    return GraphCost(
        inputs=dict(inputs),
        outputs=shapes,
        output_bytes=dict.fromkeys(shapes, 100),
        peak_bytes=peak_bytes,
        operations=0,
        **more,
    )


@pytest.mark.parametrize("batch", [1, 3])
def test_graphs_of_a_bundle_take_what_its_manifest_says(batch):
    check_costs(MANIFEST, costs(batch), batch)


def test_input_of_another_size_than_the_manifest_s_is_refused():
    with pytest.raises(
        BundleInvalid, match=r"is refused: input 'x' has the shape \(1, 3, .* but \(2, 3, .* by the manifest"
    ):
        check_costs(MANIFEST, costs(1), 2)
    with pytest.raises(BundleInvalid, match=r"input 'mine' has the shape \(7,\), but there is none of that name"):
        check_costs(MANIFEST, {"encoder.predict": found(inputs={"mine": (7,)})}, 1)


def test_graph_whose_arrays_do_not_follow_is_refused():
    unknown = found(unknown=("Expand", "Relu", "Add", "Neg"))
    with pytest.raises(BundleInvalid, match="how large its arrays are does not follow from Expand, Relu, Add$"):
        check_costs(MANIFEST, {"encoder.predict": unknown}, 1)


def test_what_is_kept_is_as_large_where_it_is_read():
    keep = found(outputs={"saved.0": (1, 5), "z.0": (1, 4)})
    kept = {name: found(inputs={"saved.0": shape}) for name, shape in (("good", (1, 5)), ("bad", (1, 6)))}
    check_costs(MANIFEST, {"encoder.0.kept": kept["good"], "encoder.0.keep": keep}, 1)
    with pytest.raises(BundleInvalid, match=r"encoder\.0\.kept is refused: input 'saved\.0' has the shape \(1, 6\)"):
        check_costs(MANIFEST, {"encoder.0.kept": kept["bad"], "encoder.0.keep": keep}, 1)


def test_arrays_are_no_more_than_what_the_footprint_allows():
    name = "encoder.predict"
    said = GraphFootprint(nodes=1, transient_bytes=(1000,) * len(MICRO_BATCHES), held_bytes=(10, 0))
    manifest = msgspec.structs.replace(MANIFEST, footprint=Footprint(graphs={MANIFEST.graphs[name].digest: said}))
    most = TIMES * 1010 + 100 + SPARE_BYTES
    outputs = {"z.0": (1,), "saved.0": (1,)}
    check_costs(manifest, {name: found(outputs=outputs, peak_bytes=most)}, 1)
    large = {name: found(outputs=outputs, peak_bytes=most + 1)}
    with pytest.raises(BundleInvalid, match=f"its arrays take {most + 1} bytes, and by what .* {most}$"):
        check_costs(manifest, large, 1)
    for footprint in (None, Footprint(graphs={})):  # an older bundle: its graphs have absolute limits alone
        check_costs(msgspec.structs.replace(manifest, footprint=footprint), large, 1)


def test_all_that_a_graph_may_read_has_its_size():
    fixed = FixedTensors(tensors=(Tensor(name="stem.f", shape=(6,), offset=0),), file=MANIFEST.weights)
    manifest = msgspec.structs.replace(
        MANIFEST,
        embedding=Array(shape=(5,), dtype="float32"),
        values=(Array(shape=(3,), dtype="float32"),),
        tensors=(
            Tensor(name="encoder.w", shape=(2, 3), offset=0),
            Tensor(name="state.encoder.mean", shape=(4,), offset=6),
        ),
        fixed={"stem": fixed},
    )
    task = manifest.tasks[0]
    read = {
        "encoder.predict": {
            "e": (2, 5),
            "param.w": (2, 3),
            "state.mean": (4,),
            "seed": (),
            "dv.0": (2, 3),
            "v.0": (2, 3),
        },
        "stem.predict": {"param.f": (6,)},
        f"head.{task.name}.step": {"target": (2, *task.target.shape)},
    }
    check_costs(manifest, {name: found(inputs=shapes) for name, shapes in read.items()}, 2)
    for name, shapes in read.items():
        for value in shapes:
            part = f"head.{task.name}" if name.startswith("stem") else "stem"
            other = {f"{part}.predict": found(inputs={value: (9, 9)})}
            with pytest.raises(BundleInvalid, match=f"input '{value}'"):
                check_costs(manifest, other, 2)
