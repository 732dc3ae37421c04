"""Updates of linear models that cannot count, before anything is fetched."""

import msgspec
import pytest

from broker_server.rounds.validation import update_fault
from edge_runtime.wire.blob import Blob
from edge_runtime.wire.linear import DualSteps, LinearFacts, MixedEffectPart
from edge_runtime.wire.messages import Plan, Training, Update

WEIGHTS = Blob(digest="1" * 64, size_bytes=4 * 6 + 100)
PLAN = Plan(
    work="train", round=0, phase="train", group="label", tasks=("label",), bundle=WEIGHTS, weights=WEIGHTS,
    signature="0" * 128, deadline_s=1.0, training=Training(epochs=1, first_epoch=0, seed=0, probe_every=0),
    linear=DualSteps(curvature=1.0, passes=1.0),
)  # fmt: skip
UPDATE = Update(
    round=0, group="label", weights=WEIGHTS, examples={"label": 5}, train_loss={"label": 0.5}, val_loss=None,
    affinity=None, wall_s=1.0, peak_rss_bytes=None, bytes_down=0, energy=None, linear=LinearFacts(steps=5, gap=0.1),
)  # fmt: skip
STATISTICS = msgspec.structs.replace(PLAN, linear=MixedEffectPart(shared=0.5, ridge=1.0, width=1.0))


def sized(size_bytes):
    return msgspec.structs.replace(WEIGHTS, size_bytes=size_bytes)


@pytest.mark.parametrize(
    ("plan", "changes", "fault"),
    [
        (PLAN, {}, None),
        (PLAN, {"weights": sized(50)}, "weights of 50 bytes"),
        (PLAN, {"linear": None}, "says nothing of its part"),
        (PLAN, {"scheme": "fp16", "base": WEIGHTS.digest}, "no vector in full"),
        (PLAN, {"examples": {"label": 5, "more": 1}}, "another task"),
        (PLAN, {"train_loss": {}}, "another task"),
        (STATISTICS, {"weights": sized(4 * 27 + 120)}, None),
        (STATISTICS, {"weights": sized(10_000)}, "statistics of 10000 bytes"),
    ],
)
def test_update_of_a_linear_model(plan, changes, fault):
    found = update_fault(plan, msgspec.structs.replace(UPDATE, **changes), None)
    assert found is None if fault is None else fault in found
