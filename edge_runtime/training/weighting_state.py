"""The state of a task weighting between rounds: kept on the device, never sent.

Unlike momentum it is used however long ago the device last trained the group: a task's difficulty and its first loss
do not age as a direction of descent does. The last two rounds are kept, so that a round that a power cut interrupts is
repeated from the same point.
"""

# coverage: every branch

from pathlib import Path

import msgspec

from edge_runtime.wire.files import write_atomic


class WeightingState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """GradNorm's weights and first losses, or uncertainty's log variances, by task."""

    method: str
    values: dict[str, float]
    first_losses: dict[str, float] = {}


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    bundle: str
    state: WeightingState = msgspec.field(name="learnt")  # the key of files in the field


class WeightingStateStore:
    """The states after each round, in a folder of the device's state."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, bundle: str, before_round: int) -> WeightingState | None:
        """Return the state after the latest earlier round of a bundle, by its digest; None if there is none."""
        for _, path in self._earlier(before_round):
            try:
                kept = msgspec.json.decode(path.read_bytes(), type=_File)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
            if kept.bundle == bundle:
                return kept.state
        return None

    def save(self, bundle: str, state: WeightingState, of_round: int) -> None:
        """Save the state after a round, and keep the one before it."""
        path = self._folder / f"{of_round}.json"
        write_atomic(path, msgspec.json.encode(_File(bundle=bundle, state=state)))
        kept = {path, *(before for _, before in self._earlier(of_round)[:1])}
        for other in self._folder.glob("*.json"):
            if other not in kept:
                other.unlink()

    def _earlier(self, before_round: int) -> list[tuple[int, Path]]:
        """Return the files of earlier rounds, the latest first."""
        found = [(int(path.stem), path) for path in self._folder.glob("*.json") if path.stem.isdecimal()]
        return sorted((pair for pair in found if pair[0] < before_round), reverse=True)
