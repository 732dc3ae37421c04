import hashlib
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.wire.budget import (
    ENGINE_BYTES,
    FREE_CHOICE,
    GRAM_BLOCK,
    NODE_BYTES,
    MemoryPlan,
    Workload,
    choose,
    plans,
    predict,
)
from edge_runtime.wire.compression import Updates, working_bytes
from edge_runtime.wire.errors import BudgetTooSmall, BundleInvalid
from edge_runtime.wire.footprint import MICRO_BATCHES, Footprint, GraphFootprint
from edge_runtime.wire.graph_names import graph_names
from edge_runtime.wire.manifest import (
    FORMAT,
    Array,
    File,
    FixedTensors,
    Manifest,
    Parity,
    Stage,
    Task,
    decode,
    encode,
)
from edge_runtime.wire.tensors import TensorTable

KB = 1000
WORK = Workload(batch=8, base_bytes=50_000 * KB)
STEM = {"forward": 950 * KB, "backward": 1000 * KB, "predict": 100 * KB}
"""What the graphs of a stem take for a sample."""


def graph(per_sample, *, nodes=10, held=0):
    return GraphFootprint(
        nodes=nodes, transient_bytes=tuple(per_sample * batch for batch in MICRO_BATCHES), held_bytes=(0, held)
    )


def footprint_of(name, stages):
    """Keeping a stage holds 600 KB a sample; its backward pass takes 900 KB if it recomputes, else 500 KB."""
    part, _, kind = name.rpartition(".")
    if kind == "keep":
        return graph(200 * KB, held=600 * KB)
    if kind == "kept":
        return graph(500 * KB)
    if kind == "backward":
        return graph(900 * KB)
    if kind == "forward":
        return graph(200 * KB, nodes=10 * (stages - int(part.split(".")[1])))  # later stages are less work
    return graph(300 * KB)


def manifest_of(stages=2, **change):
    """Stage k reads v.k−1 (or x) and writes v.k; the last writes z.0. Values are 4 KB a sample."""
    value = Array(shape=(10, 10, 10), dtype="float32")
    names = graph_names(("depth", "parts"), stages)
    files = {name: File(digest=hashlib.sha256(name.encode()).hexdigest(), size_bytes=100) for name in names}
    chain = ["x", *(f"v.{k}" for k in range(stages - 1)), "z.0"]
    fields = {
        "format": FORMAT,
        "name": "test",
        "tasks": tuple(
            Task(name=task, target=Array(shape=(50,), dtype="int64"), prediction=Array(shape=(1,), dtype="float32"))
            for task in ("depth", "parts")
        ),
        "input": Array(shape=(3, 10, 10), dtype="float32"),
        "representation": (value,),
        "values": (value,) * (stages - 1),
        "stages": tuple(
            Stage(reads=(chain[k],), writes=(chain[k + 1],), parameters=(f"{k}.w",)) for k in range(stages)
        ),
        "tensors": TensorTable.of(
            {
                **{f"encoder.{k}.w": (1000,) for k in range(stages)},
                "head.depth.w": (500,),
                "head.parts.w": (500,),
                "state.encoder.0.mean": (100,),
            }
        ).tensors,
        "graphs": files,
        "weights": File(digest="0" * 64, size_bytes=1),
        "opset": 18,
        "parity": Parity(max_relative_error=0.0, worst="", compared=0),
        "versions": {},
        "footprint": Footprint(graphs={file.digest: footprint_of(name, stages) for name, file in files.items()}),
    }
    return Manifest(**fields | change)


def plan(batch=8, saved=(False, False), frozen=0):
    return MemoryPlan(micro_batch=batch, saved=saved, frozen=frozen)


def test_predict_recomputing_takes_the_largest_graph():
    found = predict(manifest_of(), plan(), WORK)
    assert (found.saved, found.transient) == (0, 8 * 900 * KB)


def test_predict_keeping_holds_what_is_saved_while_others_run():
    found = predict(manifest_of(), plan(saved=(True, True)), WORK)
    assert (found.saved, found.transient) == (8 * 1200 * KB, 8 * 500 * KB)
    mixed = predict(manifest_of(), plan(saved=(True, False)), WORK)
    assert (mixed.saved, mixed.transient) == (8 * 600 * KB, 8 * 900 * KB)
    # What the second stage saved is given up before the first recomputes.
    last = predict(manifest_of(), plan(saved=(False, True)), WORK)
    assert (last.saved, last.transient) == (8 * 600 * KB, 8 * 500 * KB)


def test_predict_frozen_stages_have_no_backward_pass():
    found = predict(manifest_of(), plan(frozen=2), WORK)
    assert (found.saved, found.transient) == (0, 8 * 300 * KB)


def test_predict_counts_the_sessions_of_the_graphs_that_the_plan_loads():
    evaluating = predict(manifest_of(), plan(), WORK).sessions
    training = predict(manifest_of(), plan(), Workload(batch=8, base_bytes=0, evaluates=False)).sessions
    # Two forward passes (20 and 10 nodes), two backward passes and two heads; then predict and two heads.
    assert training == ENGINE_BYTES + NODE_BYTES * (20 + 10 + 4 * 10)
    assert evaluating == training + NODE_BYTES * 3 * 10


def test_predict_counts_the_graphs_that_metrics_need():
    fields = {"name": "depth", "prediction": Array(shape=(2, 50), dtype="float32"), "metric": "miou"}
    first, second = manifest_of().tasks
    manifest = manifest_of(tasks=(Task(target=first.target, **fields), second))
    plain, more = (predict(manifest, plan(), replace(WORK, predicts=each)) for each in (False, True))
    assert more.sessions == plain.sessions + NODE_BYTES * 10


def test_predict_loads_a_file_that_two_graphs_share_once():
    manifest = manifest_of()
    graphs = manifest.graphs | {"head.parts.step": manifest.graphs["head.depth.step"]}
    shared = msgspec.structs.replace(manifest, graphs=graphs)
    apart, together = predict(manifest, plan(), WORK), predict(shared, plan(), WORK)
    assert together.sessions == apart.sessions - NODE_BYTES * 10


def test_predict_counts_vectors():
    parameters, state = 3000, 100
    found = predict(manifest_of(), plan(), WORK)
    assert found.vectors == 4 * (3 * parameters + 2 * state)
    accumulating = predict(manifest_of(), plan(batch=4), WORK)
    assert accumulating.vectors == found.vectors + 4 * parameters
    adamw = predict(manifest_of(), plan(), Workload(batch=8, base_bytes=0, state_vectors=2))
    assert adamw.vectors == found.vectors + 4 * parameters


def test_predict_counts_the_arrays_of_a_step():
    x, target, value = 4 * 300, 2 * 8 * 50, 4000
    # The batch, v.0 and z.0, the sum of ∂L/∂z, and what flows back to v.0.
    assert predict(manifest_of(), plan(batch=8), WORK).arrays == 8 * (x + target + 2 * value + 2 * value)
    # The batch is loaded whole, the values are those of the micro-batch.
    assert predict(manifest_of(), plan(batch=2), WORK).arrays == 8 * (x + target) + 2 * 4 * value


def work(**change):
    return Workload(batch=8, base_bytes=0, evaluates=False, **change)


def test_predict_probe_runs_while_all_that_was_saved_is_held():
    """The first stage's backward pass, for which the second stage's values are otherwise given up."""
    without = predict(manifest_of(), plan(saved=(False, True)), work())
    assert (without.saved, without.transient) == (8 * 600 * KB, 8 * 500 * KB)
    for method in ("exact", "encoder"):
        found = predict(manifest_of(), plan(saved=(False, True)), work(probe=method))
        assert (found.saved, found.transient) == (8 * 600 * KB, 8 * 900 * KB)
    free = predict(manifest_of(), plan(saved=(False, True)), work(probe="representation"))
    assert (free.saved, free.transient) == (without.saved, without.transient)


def test_predict_counts_the_sessions_that_a_probe_alone_needs():
    without = predict(manifest_of(), plan(saved=(True, True)), work()).sessions
    # Both heads' losses, and the forward passes that keep nothing.
    exact = predict(manifest_of(), plan(saved=(True, True)), work(probe="exact")).sessions
    assert exact == without + NODE_BYTES * (2 * 10 + 20 + 10)
    for method in ("encoder", "representation"):
        assert predict(manifest_of(), plan(saved=(True, True)), work(probe=method)).sessions == without


def test_predict_counts_the_vectors_and_arrays_of_a_probe():
    encoder, rows = 4 * 2000, 8 * 2 * GRAM_BLOCK
    without = predict(manifest_of(), plan(), work())
    found = {m: predict(manifest_of(), plan(), work(probe=m)) for m in ("exact", "encoder", "representation")}
    assert found["exact"].vectors == without.vectors + encoder
    assert found["encoder"].vectors == without.vectors + 2 * encoder + rows
    assert found["representation"].vectors == without.vectors + rows
    # v.0 and z.0, the sum of ∂L/∂z and each task's, and z and v.0 again for the look-ahead, or what flows back.
    given, value = 8 * (4 * 300 + 2 * 8 * 50), 8 * 4000
    assert found["exact"].arrays == given + (2 + 1 + 2 + 2) * value
    assert found["encoder"].arrays == found["representation"].arrays == given + (2 + 1 + 2 + 1) * value


@pytest.mark.parametrize("method", ["exact", "encoder", "representation"])
def test_predict_an_encoder_that_is_frozen_whole_is_not_probed(method):
    assert predict(manifest_of(), plan(frozen=2), work(probe=method)) == predict(manifest_of(), plan(frozen=2), work())


def test_predict_peak_has_the_update_in_place_of_what_training_held():
    table = manifest_of().table
    for scheme in ("fp32", "fp16", "int8", "topk", "auto"):
        updates = Updates(scheme=scheme)
        found = predict(manifest_of(), plan(), work(update=updates))
        assert found.update == 4 * table.size + working_bytes(table, updates)
    training = predict(manifest_of(), plan(), work())
    assert found.peak == training.peak  # the arrays of a step are more than these 3,000 parameters
    larger = TensorTable.of(
        {"encoder.0.w": (9_000_000,), "encoder.1.w": (1,), "head.depth.w": (1,), "head.parts.w": (1,)}
    )
    large = manifest_of(tensors=larger.tensors)
    more = predict(large, plan(), work(update=Updates(scheme="int8")))
    assert more.vectors + more.arrays < more.update
    assert more.peak == predict(large, plan(), work()).peak + more.update - more.vectors - more.arrays


def test_predict_counts_the_next_batch_where_it_is_larger_than_the_values():
    manifest = manifest_of(input=Array(shape=(3, 100, 100), dtype="float32"))
    assert predict(manifest, plan(), WORK).arrays == 8 * 2 * (4 * 30_000 + 2 * 8 * 50)


def test_predict_counts_a_stem():
    """Its graphs, and the embedding as one more value that crosses; frozen, it has no backward pass."""
    before = manifest_of()
    files = {f"stem.{k}": File(digest=hashlib.sha256(k.encode()).hexdigest(), size_bytes=1) for k in STEM}
    footprints = {files[f"stem.{kind}"].digest: graph(per_sample) for kind, per_sample in STEM.items()}
    first, last = before.stages
    manifest = msgspec.structs.replace(
        before,
        embedding=Array(shape=(500,), dtype="float32"),
        graphs=before.graphs | files,
        stages=(msgspec.structs.replace(first, reads=("e",)), last),
        footprint=Footprint(graphs=before.footprint.graphs | footprints),
    )
    found, without = (predict(one, plan(), WORK) for one in (manifest, before))
    assert found.transient == 8 * STEM["backward"] > without.transient
    assert found.sessions == without.sessions + 3 * NODE_BYTES * 10
    assert found.arrays == without.arrays + 8 * 4 * 500  # e is there while the last stage goes back
    frozen = predict(manifest, plan(frozen=2), WORK)
    assert frozen.transient == 8 * STEM["forward"]
    assert frozen.sessions == predict(before, plan(frozen=2), WORK).sessions + 2 * NODE_BYTES * 10


def test_fixed_tensors_are_held_once_and_fixed_stages_have_no_backward_pass():
    """The first stage's parameters are fixed: no gradient, no velocity, no values that flow back to it."""
    before = manifest_of()
    first, last = before.stages
    names = set(graph_names(("depth", "parts"), 2, fixed_stages=1))
    table = TensorTable.of({"encoder.0.w": (1000,)})
    manifest = msgspec.structs.replace(
        before,
        stages=(msgspec.structs.replace(first, parameters=()), last),
        tensors=TensorTable.of({t.name: t.shape for t in before.tensors if t.name != "encoder.0.w"}).tensors,
        graphs={name: file for name, file in before.graphs.items() if name in names},
        fixed={"encoder": FixedTensors(tensors=table.tensors, file=File(digest="1" * 64, size_bytes=4000))},
    )
    assert decode(encode(manifest)) == manifest
    assert {one.frozen for one in plans(manifest, 2)} == {1, 2}
    assert {one.frozen for one in plans(manifest, 2, most_frozen=0)} == {1}
    found, trained = (predict(one, plan(frozen=1), work()) for one in (manifest, before))
    assert predict(manifest, plan(), work()) == found
    assert found.vectors == 4 * (3 * 2000 + 2 * 100 + 1000)
    assert trained.vectors - found.vectors == 4 * 2 * 1000
    assert trained.arrays - found.arrays == 0  # v.0 and z.0 and their gradients in the heads are the most of both
    kept = predict(manifest, plan(frozen=1), work(update=Updates()))
    assert kept.update == 4 * manifest.table.size + working_bytes(manifest.table, Updates()) + 4 * 1000


def test_predict_counts_no_backward_pass_of_a_fixed_stem():
    before = manifest_of()
    files = {f"stem.{k}": File(digest=hashlib.sha256(k.encode()).hexdigest(), size_bytes=1) for k in STEM}
    del files["stem.backward"]
    footprints = {files[f"stem.{kind}"].digest: graph(STEM[kind]) for kind in ("forward", "predict")}
    first, last = before.stages
    manifest = msgspec.structs.replace(
        before,
        embedding=Array(shape=(500,), dtype="float32"),
        graphs=before.graphs | files,
        stages=(msgspec.structs.replace(first, reads=("e",)), last),
        footprint=Footprint(graphs=before.footprint.graphs | footprints),
    )
    assert predict(manifest, plan(), WORK).sessions == predict(before, plan(), WORK).sessions + 2 * NODE_BYTES * 10


def test_predict_peak_is_the_sum_and_has_the_table_of_the_arena():
    found = predict(manifest_of(), plan(saved=(True, True)), WORK)
    parts = found.base + found.sessions + found.vectors + found.arrays + found.saved + found.transient
    assert found.arena_bytes >= found.saved + found.transient
    assert found.arena_bytes % 2**20 == 0
    assert found.peak == parts + found.arena_bytes // 32


def test_predict_without_footprint_says_what_to_do():
    with pytest.raises(BundleInvalid, match="compile it again"):
        predict(manifest_of(footprint=None), plan(), WORK)


def test_plans_prefer_less_frozen_then_less_recomputed_then_larger_micro_batches():
    found = list(plans(manifest_of(), 4))
    assert found[:3] == [plan(batch, saved=(True, True)) for batch in (4, 2, 1)]
    # The second stage is less work to do twice than the first.
    assert [found[i].saved for i in (3, 6, 9)] == [(True, False), (False, True), (False, False)]
    assert [one.frozen for one in found] == [0] * 12 + [1] * 6 + [2] * 3


def test_plans_of_a_loss_that_compares_samples_cut_no_batch():
    plain = manifest_of()
    whole = msgspec.structs.replace(plain, tasks=(msgspec.structs.replace(plain.tasks[0], whole_batch=True),))
    assert {plan.micro_batch for plan in plans(plain, 8)} == {8, 4, 2, 1}
    assert {plan.micro_batch for plan in plans(whole, 8)} == {8}


def test_plans_of_many_stages_keep_the_last_ones():
    stages = FREE_CHOICE + 2
    found = [one.saved for one in plans(manifest_of(stages=stages), 1, most_frozen=0)]
    assert found == [(False,) * (stages - kept) + (True,) * kept for kept in range(stages, -1, -1)]


def test_plans_freeze_no_more_than_allowed():
    assert {one.frozen for one in plans(manifest_of(), 2, most_frozen=1)} == {0, 1}
    assert {one.frozen for one in plans(manifest_of(), 2, most_frozen=9)} == {0, 1, 2}


@given(st.integers(60, 200))
def test_choose_takes_the_first_plan_that_fits(mib):
    manifest = manifest_of()
    try:
        chosen = choose(manifest, mib * 2**20, WORK)
    except BudgetTooSmall as exc:
        assert all(predict(manifest, one, WORK).peak > mib * 2**20 for one in plans(manifest, WORK.batch))
        assert exc.needed_bytes > mib * 2**20
    else:
        assert predict(manifest, chosen, WORK).peak <= mib * 2**20
        for one in plans(manifest, WORK.batch):
            if one == chosen:
                break
            assert predict(manifest, one, WORK).peak > mib * 2**20


def test_choose_refuses_and_says_what_would_fit():
    manifest = manifest_of()
    with pytest.raises(
        BudgetTooSmall, match=r"^1 MiB of memory .* MiB would do \(micro-batches of 1, 0 of 2"
    ) as caught:
        choose(manifest, 2**20, WORK)
    assert caught.value.budget_bytes == 2**20
    assert choose(manifest, caught.value.needed_bytes, WORK) == caught.value.plan


def test_footprint_is_in_the_manifest_and_in_those_of_groups():
    manifest = manifest_of()
    assert decode(encode(manifest)) == manifest
    depth = manifest.group(("depth",), manifest.weights)
    assert depth.footprint.graphs.keys() == {file.digest for file in depth.graphs.values()}
    assert predict(depth, plan(), WORK).peak < predict(manifest, plan(), WORK).peak


def test_footprint_that_misses_a_graph_is_refused():
    manifest = manifest_of()
    digest = manifest.graphs["head.depth.step"].digest
    less = {key: one for key, one in manifest.footprint.graphs.items() if key != digest}
    with pytest.raises(BundleInvalid, match=r"does not know graph 'head\.depth\.step'"):
        encode(msgspec.structs.replace(manifest, footprint=Footprint(graphs=less)))
