"""The traffic between a device and the encoder server for one plan, by the form of their messages.

The rule, one message after another: begin, ready; for each validation or test batch a probe and its representation; for
each part of a step of training e, z, ∂L/∂z and ∂L/∂e; finish, finished. Nothing is lost, and nothing said twice.
"""

# coverage: every branch

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from broker_server.simulation.network import LinkSpeed
from edge_runtime.wire.fragments import fragmented_bytes
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import DataSplit, Plan
from edge_runtime.wire.split_learning import EVALUATION_SAMPLES, MAX_PARTS, MessageKind, MessageLayout, SplitHeader

SEED, BEGINNING = 2**31, 2**61
"""Seeds as long as those that are drawn, most of them to a digit."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes of pieces, and how many messages are waited for, one way and the other."""

    up_bytes: int = 0
    down_bytes: int = 0
    messages: int = 0

    def seconds(self, link: LinkSpeed) -> float:
        """How long it takes on a device's link."""
        return (
            self.up_bytes / link.up_bytes_per_s
            + self.down_bytes / link.down_bytes_per_s
            + self.messages * link.latency_s
        )


def traffic_of(plan: Plan, examples: Mapping[DataSplit, int], manifest: Manifest) -> Traffic | None:
    """Return the traffic of a plan over these examples; None if the device computes the encoder."""
    if plan.split_learning is None:
        return None
    training = plan.training
    layout = MessageLayout.of(manifest, EVALUATION_SAMPLES if training is None else training.batch)
    steps = [] if training is None else training.epochs * _parts(examples.get("train", 0), training.batch)
    trained = [size for step in steps for size in _parts(step, -(-layout.max_samples // plan.split_learning.parts))]
    judged = examples.get(plan.data_split or "val", 0)
    probes = [size for whole in _parts(judged, EVALUATION_SAMPLES) for size in _parts(whole, layout.max_samples)]
    asked: list[tuple[MessageKind, MessageKind, int, int]] = [("begin", "ready", 0, 1), ("finish", "finished", 0, 1)]
    asked += [("probe", "representation", size, count) for size, count in Counter(probes).items()]
    for size, count in Counter(trained).items():
        asked += [("embedding", "representation", size, count), ("gradient", "return", size, count)]

    def size_bytes(kind: MessageKind, samples: int, seed: int = 0) -> int:
        header = SplitHeader(
            kind=kind,
            round=plan.round,
            step=0 if kind in {"begin", "ready"} else len(steps),
            part=MAX_PARTS // 2 if kind == "probe" else 0,
            samples=samples,
            precision=plan.split_learning.precision if plan.split_learning is not None and samples else "fp32",
            seed=seed,
        )
        return fragmented_bytes(layout.message_bytes(header))

    seeds = {"begin": BEGINNING, "embedding": SEED}
    return Traffic(
        up_bytes=sum(count * size_bytes(kind, size, seeds.get(kind, 0)) for kind, _, size, count in asked),
        down_bytes=sum(count * size_bytes(kind, size) for _, kind, size, count in asked),
        messages=2 * sum(count for *_, count in asked),
    )


def _parts(count: int, most: int) -> list[int]:
    """Return the sizes of parts of `count` samples, `most` at a time."""
    return [min(most, count - start) for start in range(0, count, most)]
