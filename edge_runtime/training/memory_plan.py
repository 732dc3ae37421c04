"""How a round is trained in the memory that there is, decided before anything is allocated.

The bundle's footprint says what each plan takes (edge_runtime.wire.budget); this adds what the device knows: what its
process has already, what the plan's options take, and how much it may have. Where nobody sets a budget and the system
does not say what is free, the fastest plan is taken; a bundle without footprint is trained in one piece, recomputed.
"""

# coverage: every branch

from dataclasses import dataclass, replace

from edge_runtime.training.optimizer import optimizer
from edge_runtime.wire.budget import MemoryPlan, Workload, choose_within, predict
from edge_runtime.wire.compression import Updates
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import MemoryUse, Training

UNBOUNDED = 2**60
MAX_IN_FLIGHT = 4


@dataclass(frozen=True, kw_only=True)
class PlannedMemory:
    """A plan with what it was made of, None where nothing is known. `arena_bytes` is what the engine starts with."""

    plan: MemoryPlan
    in_parts: bool
    """Whether micro-batches are smaller than the batch: memory is short, and evaluation keeps to them too."""
    budget_bytes: int | None = None
    predicted_bytes: int | None = None
    arena_bytes: int | None = None
    in_flight: int = 1
    """How many micro-batches may be on their way to the encoder server at once."""

    @property
    def use(self) -> MemoryUse:
        """What an update says of it."""
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
) -> PlannedMemory:
    """Return the fastest plan that fits. `base_bytes` is resident before a graph is loaded, with the received weights.

    `predicts`: evaluation measures metrics besides losses. `update`: the encoding of the update, None without one.
    A step has at least `parts` micro-batches; as many as fit, and at most MAX_IN_FLIGHT, are on their way to the
    encoder server at once. Raises BudgetTooSmall, which states what would fit.
    """
    most = -(-settings.batch // parts)
    if manifest.footprint is None or base_bytes is None:
        whole = MemoryPlan(micro_batch=most, saved=(False,) * len(manifest.stages))
        return PlannedMemory(plan=whole, in_parts=False, in_flight=min(parts, MAX_IN_FLIGHT))
    parameters = manifest.table.parameters
    state = optimizer(settings).table(parameters).size
    work = Workload(
        batch=settings.batch,
        base_bytes=base_bytes,
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
