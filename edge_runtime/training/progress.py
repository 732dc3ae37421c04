"""How far training has come: what has been summed up, as plain numbers that a checkpoint keeps exactly."""

import msgspec

from edge_runtime.training.weighting_state import WeightingState

Rows = tuple[tuple[float, ...], ...]


class ProbeProgress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Batches probed, the mean of their affinities and the sum of squared differences (T, T); whether one is due."""

    count: int
    mean: Rows
    squares: Rows
    is_due: bool


class TrainingProgress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Steps done, the losses of their samples summed by task, how many samples had a label, and what goes with them."""

    steps: int
    loss_sums: dict[str, float]
    labelled: dict[str, int]
    probes: ProbeProgress
    learnt: WeightingState | None
