"""The memory plan of a round, made before anything is allocated.

The bundle's footprint has the memory of each plan (edge_runtime.wire.budget). The device adds that of its process and
of the round's settings, and its budget. Without a budget, and where the system does not report its free memory, the
fastest plan is taken. A bundle without a footprint trains whole batches with activation checkpointing.
"""

# coverage: every branch

from dataclasses import dataclass, replace

from edge_runtime.training.personal import optimizer_of
from edge_runtime.training.schedule import ORDER_BYTES
from edge_runtime.wire.budget import MemoryPlan, Workload, choose_within, predict
from edge_runtime.wire.compression import Updates
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import MemoryUse, Training
from edge_runtime.wire.personal import Personal

UNBOUNDED = 2**60
MAX_IN_FLIGHT = 4
EVALUATION_BATCH = 16
"""Samples at once in evaluation, where memory allows."""


@dataclass(frozen=True, kw_only=True)
class PlannedMemory:
    """A memory plan with its budget and prediction, None where not known. `arena_bytes` is the arena's first size."""

    plan: MemoryPlan
    in_parts: bool
    """True if micro-batches are smaller than the batch because memory is short; evaluation uses them too."""
    budget_bytes: int | None = None
    predicted_bytes: int | None = None
    arena_bytes: int | None = None
    in_flight: int = 1
    """The number of micro-batches that may be on their way to the encoder server at once."""

    @property
    def evaluation_batch(self) -> int:
        """The samples at once in evaluation."""
        return min(EVALUATION_BATCH, self.plan.micro_batch) if self.in_parts else EVALUATION_BATCH

    @property
    def use(self) -> MemoryUse:
        """The report of it in an update."""
        kept = sum(self.plan.saved)
        return MemoryUse(
            budget_bytes=self.budget_bytes,
            predicted_peak_bytes=self.predicted_bytes,
            micro_batch=self.plan.micro_batch,
            kept=kept,
            recomputed=len(self.plan.saved) - self.plan.frozen - kept,
            frozen=self.plan.frozen,
        )


def plan_memory(
    manifest: Manifest,
    settings: Training,
    *,
    budget_bytes: int | None,
    base_bytes: int | None,
    evaluates: bool,
    predicts: bool = False,
    update: Updates | None = None,
    parts: int = 1,
    samples: int = 0,
    personal: Personal | None = None,
) -> PlannedMemory:
    """Return the fastest plan that fits. `base_bytes` is resident before a graph is loaded, with the received weights.

    Where the device has something of its own (`personal`), a second vector of weights is held.

    `samples` are those of the training set, whose order is held for an epoch.

    `predicts`: evaluation measures metrics besides losses. `update`: the encoding of the update, None without one.
    A step has at least `parts` micro-batches, one where a loss wants whole batches; as many as fit, and at most
    MAX_IN_FLIGHT, are on their way to the encoder server at once. Raises BudgetTooSmall, which states what would fit.
    """
    parts = 1 if manifest.whole_batch else parts
    most = -(-settings.batch // parts)
    if manifest.footprint is None or base_bytes is None:
        whole = MemoryPlan(micro_batch=most, saved=(False,) * len(manifest.stages))
        return PlannedMemory(plan=whole, in_parts=False, in_flight=min(parts, MAX_IN_FLIGHT))
    parameters = manifest.table.parameters
    state = optimizer_of(settings, personal).table(parameters).size
    work = Workload(
        batch=settings.batch,
        base_bytes=base_bytes + ORDER_BYTES * samples + (0 if personal is None else 4 * manifest.table.size),
        state_vectors=-(-state // parameters.size),
        merges=settings.gradient_combination != "sum",
        evaluates=evaluates,
        predicts=predicts,
        probe=settings.probe if settings.probe_every else None,
        update=update,
    )
    plan = choose_within(manifest, UNBOUNDED if budget_bytes is None else budget_bytes, work)
    found = predict(manifest, plan, work)
    micro_batch = min(plan.micro_batch, most)
    return PlannedMemory(
        plan=replace(plan, micro_batch=micro_batch),
        in_flight=min(plan.micro_batch // micro_batch, MAX_IN_FLIGHT),
        in_parts=plan.micro_batch < settings.batch,
        budget_bytes=budget_bytes,
        predicted_bytes=found.peak,
        arena_bytes=found.arena_bytes,
    )
