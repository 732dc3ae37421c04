"""The progress of training in a round, as plain numbers that a checkpoint keeps exactly."""

import msgspec

from edge_runtime.training.weighting_state import WeightingState

Rows = tuple[tuple[float, ...], ...]


class ProbeProgress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The number of probed batches, mean and sum of squared differences of their affinities (T, T), and what is due."""

    count: int
    mean: Rows
    squares: Rows
    is_due: bool


class TrainingProgress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Steps done, the sums of their losses and the counts of labelled samples by task, and the state beside them."""

    steps: int
    loss_sums: dict[str, float]
    labelled: dict[str, int]
    probes: ProbeProgress
    weighting_state: WeightingState | None
