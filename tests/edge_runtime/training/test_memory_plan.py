from math import prod

import msgspec
import pytest

from edge_runtime.training.memory_plan import plan_memory
from edge_runtime.wire.budget import MARGIN, MemoryPlan, Workload, plans, predict
from edge_runtime.wire.errors import BudgetTooSmall
from edge_runtime.wire.footprint import MICRO_BATCHES, Footprint, GraphFootprint
from edge_runtime.wire.manifest import Array
from edge_runtime.worker import LocalWorker

MIB = 2**20
BASE = 50 * MIB


@pytest.fixture
def manifest(tiny):
    """The tiny manifest with a footprint of megabytes, in which saving activations takes more than recomputing."""
    taken = {}
    for name, file in tiny.manifest.graphs.items():
        held = (0, 3 * MIB) if name.endswith(".keep") else (0, 0)
        transient = tuple(MIB * (1 + batch) for batch in MICRO_BATCHES)
        taken[file.digest] = GraphFootprint(nodes=10, transient_bytes=transient, held_bytes=held)
    return msgspec.structs.replace(tiny.manifest, footprint=Footprint(graphs=taken))


def plan(manifest, tiny, budget, base=BASE, **change):
    return plan_memory(manifest, tiny.change(batch=8, **change), budget_bytes=budget, base_bytes=base, evaluates=True)


def peaks(manifest):
    work = Workload(batch=8, base_bytes=BASE)
    return [predict(manifest, option, work).peak for option in plans(manifest, 8)]


def test_plan_without_a_budget_is_the_fastest(manifest, tiny):
    found = plan(manifest, tiny, None)
    assert (found.plan.micro_batch, all(found.plan.saved), found.plan.frozen) == (8, True, 0)
    assert found.use.kept == len(manifest.stages)
    assert (found.use.recomputed, found.use.budget_bytes) == (0, None)
    assert found.use.predicted_peak_bytes == found.predicted_bytes > BASE


def test_plan_of_every_budget_fits_it_or_says_what_would(manifest, tiny):
    lowest, highest = min(peaks(manifest)), max(peaks(manifest))
    seen = set()
    for fits in range(lowest, highest + MIB, MIB):
        budget = int(fits / MARGIN) + 1
        found = plan(manifest, tiny, budget)
        assert found.predicted_bytes <= fits + 1
        assert found.use.budget_bytes == budget
        assert found.use.kept + found.use.recomputed + found.use.frozen == len(manifest.stages)
        seen.add((found.plan.micro_batch, found.plan.saved))
    assert len(seen) > 2
    with pytest.raises(BudgetTooSmall, match="MiB would do") as caught:
        plan(manifest, tiny, lowest - 1)
    assert plan(manifest, tiny, caught.value.needed_bytes).predicted_bytes == lowest


def test_plan_counts_the_moments_of_adamw(manifest, tiny):
    one, two = (plan(manifest, tiny, None, optimizer=name).predicted_bytes for name in ("sgd", "adamw"))
    assert two - one >= 4 * manifest.table.parameters.size


def test_plan_counts_the_gradients_that_are_combined(manifest, tiny):
    """Three tasks: PCGrad holds three gradients of the representation where the sum needs two arrays."""
    small = Array(shape=(1,), dtype="float32")  # so that the batch does not decide
    narrow = tuple(msgspec.structs.replace(task, target=small, metric=None) for task in manifest.tasks)
    few = msgspec.structs.replace(manifest, tasks=narrow, input=small)
    stages = len(few.stages)
    option = MemoryPlan(micro_batch=8, saved=(False,) * stages, frozen=stages)  # nor the backward pass
    held = [predict(few, option, Workload(batch=8, base_bytes=BASE, merges=merges)).arrays for merges in (False, True)]
    size = 8 * sum(4 * prod(array.shape) for array in few.representation)
    assert held[1] - held[0] == size
    seen = [
        plan(manifest, tiny, None, gradient_combination=merging).predicted_bytes
        for merging in ("sum", "pcgrad", "cagrad")
    ]
    assert seen[0] <= seen[1] == seen[2]


def test_plan_without_a_footprint_or_a_known_size_is_of_whole_batches(manifest, tiny):
    for found in (plan(tiny.manifest, tiny, MIB), plan(manifest, tiny, MIB, base=None)):
        assert (found.plan.micro_batch, any(found.plan.saved)) == (8, False)
        assert found.use.predicted_peak_bytes is None


def test_worker_trains_in_its_budget_or_declines(manifest, tiny, tmp_path):
    from edge_runtime.agent.work import WorkRefused

    store = tiny.store(tmp_path / "blobs")
    downloaded = tiny.downloaded(tiny.plan(training=tiny.change(batch=8, epochs=1)), manifest, store, tiny.weights)
    report = lambda *_: None  # noqa: E731
    plenty = LocalWorker(tiny.data, tmp_path / "plenty", 1, memory_budget_bytes=2**40)
    result = plenty.train(downloaded, report)
    assert (result.memory.micro_batch, result.memory.recomputed) == (8, 0)
    # What the process has already depends on the tests before: a budget under what all kept would take, by more than
    # resident memory varies by and less than recomputing saves.
    budget = int(result.memory.predicted_peak_bytes / MARGIN) - 12 * MIB
    tight = LocalWorker(tiny.data, tmp_path / "tight", 1, memory_budget_bytes=budget)
    smaller = tight.train(downloaded, report)
    assert smaller.memory.predicted_peak_bytes <= smaller.memory.budget_bytes
    assert (smaller.memory.micro_batch, smaller.memory.kept) < (8, len(manifest.stages))
    nothing = LocalWorker(tiny.data, tmp_path / "nothing", 1, memory_budget_bytes=MIB)
    with pytest.raises(
        WorkRefused, match=r"1 MiB of memory are too little for this bundle: \d+ MiB would do"
    ) as caught:
        nothing.train(downloaded, report)
    assert caught.value.reason == "memory"


def test_plan_cuts_a_step_into_parts_and_has_as_many_in_flight_as_fit(manifest, tiny):
    for base, in_flight in ((BASE, (1, 2, 2, 4)), (None, (1, 2, 3, 4))):
        found = [
            plan_memory(manifest, tiny.change(batch=8), budget_bytes=None, base_bytes=base, evaluates=True, parts=parts)
            for parts in (1, 2, 3, 100)
        ]
        assert [each.plan.micro_batch for each in found] == [8, 4, 3, 1]
        assert tuple(each.in_flight for each in found) == in_flight


def test_plan_of_a_device_without_the_encoder_counts_the_traffic(manifest, tiny):
    """Nothing of the encoder is in it: not even the smallest plan with one is as small."""
    stem = msgspec.structs.replace(manifest, embedding=Array(shape=(1000, 1000), dtype="float32"))
    graphs = {"stem.forward", "stem.backward", "stem.predict"}
    file = manifest.graphs["encoder.predict"]
    local = msgspec.structs.replace(stem, graphs=stem.graphs | dict.fromkeys(graphs, file)).local()
    found = [predict(local, MemoryPlan(micro_batch=n, saved=()), Workload(batch=8, base_bytes=BASE)) for n in (4, 8)]
    assert found[1].arrays - found[0].arrays >= 4 * 6 * 4_000_000


def test_loss_that_compares_samples_keeps_batches_whole(manifest, tiny):
    tasks = tuple(msgspec.structs.replace(task, whole_batch=task.name == "depth") for task in manifest.tasks)
    whole = msgspec.structs.replace(manifest, tasks=tasks)
    for base in (BASE, None):
        found = plan_memory(whole, tiny.change(batch=8), budget_bytes=None, base_bytes=base, evaluates=True, parts=4)
        assert (found.plan.micro_batch, found.in_flight) == (8, 1)
    with pytest.raises(BudgetTooSmall):
        plan(whole, tiny, min(peaks(manifest)))
