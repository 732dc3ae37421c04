"""Federated averaging (McMahan et al., AISTATS 2017), one update in memory at a time.

The encoder is weighted by the examples of a device's best-covered task, since every one of them passed through it;
each head by the examples of its own task. The state of a part (running statistics of batch normalisation) is averaged
as its parameters are, with the same weights. Sums are float64. The mean of one update is that update, bit for bit: with
x in float32 the double x·n / n is within far less than half a float32 step of x.
"""

# coverage: every branch

from collections.abc import Mapping

from broker_server.aggregation.sums import LocalSums, Sums
from edge_runtime.wire.tensors import STATE, TensorTable, Vector

HEAD = "head."


class FedAvg:
    """A running weighted mean of flat float32 vectors laid out by `table`, whose sum may be made elsewhere."""

    def __init__(self, table: TensorTable, sums: Sums | None = None) -> None:
        self._table = table
        self._sums = sums or LocalSums(table.size)
        self._weight = dict.fromkeys(table.parts, 0)

    def fold(self, vector: Vector, examples: Mapping[str, int]) -> None:
        """Add one device's weights; `examples` is what it trained on, by task.

        Raises TensorsInvalid for another length or dtype.
        """
        self._table.check(vector)
        weights = {part: weight for part in self._table.parts if (weight := part_weight(part, examples))}
        self._sums.add(vector, [(self._table.parts[part], weight) for part, weight in weights.items()])
        for part, weight in weights.items():
            self._weight[part] += weight

    def result(self, old: Vector) -> Vector:
        """Return the mean, as a new vector; a part that no device trained keeps its `old` weights."""
        self._table.check(old)
        new, total = old.copy(), self._sums.total()
        for part, where in self._table.parts.items():
            if self._weight[part]:
                new[where] = total[where] / self._weight[part]
        return new


def part_weight(part: str, examples: Mapping[str, int]) -> int:
    """Return a device's weight for a part: for a head the examples of its task, for the encoder the most of any task.

    The state of a part counts as the part does.
    """
    part = part.removeprefix(STATE)
    if part.startswith(HEAD):
        return examples.get(part.removeprefix(HEAD), 0)
    return max(examples.values(), default=0)
