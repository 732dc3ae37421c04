"""What a weighting of tasks has learnt, between rounds: kept on the device, never sent.

Unlike momentum it is gone on with however long ago the device last trained the group: how hard a task is and where
its loss began do not grow old as a direction in the space of weights does. The last two rounds are kept, so that a
round whose end was lost in a power cut can be done again from the same point.
"""

# coverage: every branch

from pathlib import Path

import msgspec

from edge_runtime.wire.files import write_atomic


class WeightingState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a weighting has learnt, by task: GradNorm's weights and first losses, or uncertainty's log variances."""

    method: str
    values: dict[str, float]
    first_losses: dict[str, float] = {}


class _Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    bundle: str
    learnt: WeightingState


class WeightingStateStore:
    """What was learnt, by round, in a folder of the device's state."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, bundle: str, before_round: int) -> WeightingState | None:
        """What the latest earlier round of a group ended with; None if there is none. `bundle` is its digest."""
        for _, path in self._earlier(before_round):
            try:
                kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
            if kept.bundle == bundle:
                return kept.learnt
        return None

    def save(self, bundle: str, learnt: WeightingState, of_round: int) -> None:
        """Keep what a round ended with, and what it began with."""
        path = self._folder / f"{of_round}.json"
        write_atomic(path, msgspec.json.encode(_Kept(bundle=bundle, learnt=learnt)))
        kept = {path, *(before for _, before in self._earlier(of_round)[:1])}
        for other in self._folder.glob("*.json"):
            if other not in kept:
                other.unlink()

    def _earlier(self, before_round: int) -> list[tuple[int, Path]]:
        """The files of earlier rounds, the latest first."""
        found = [(int(path.stem), path) for path in self._folder.glob("*.json") if path.stem.isdecimal()]
        return sorted((pair for pair in found if pair[0] < before_round), reverse=True)
