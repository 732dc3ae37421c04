import msgspec
import pytest
import samples

from edge_runtime.agent.limits import NO_LIMITS, PlanLimits
from edge_runtime.wire.blob import Blob
from edge_runtime.wire.messages import Plan, SplitLearning
from edge_runtime.wire.reconstruction import Reconstruction

BLOB = Blob(digest="0" * 64, size_bytes=5000)
PLAN = Plan(
    work="train",
    round=0,
    phase="merge",
    group="a+b",
    tasks=("a", "b"),
    bundle=BLOB,
    signature="0" * 128,
    weights=BLOB,
    training=msgspec.structs.replace(samples.TRAINING, epochs=5),
    deadline_s=60.0,
)
SPLIT = msgspec.structs.replace(PLAN, split_learning=SplitLearning())
MEASURE = msgspec.structs.replace(PLAN, work="evaluate", training=None, data_split="test")


@pytest.mark.parametrize(
    ("limits", "plan", "why"),
    [
        (PlanLimits(), PLAN, None),
        (PlanLimits(), SPLIT, "split learning would send"),
        (PlanLimits(split_learning=True), SPLIT, None),
        (PlanLimits(epochs=5), PLAN, None),
        (PlanLimits(epochs=4), PLAN, "5 epochs are asked for, this device trains 4"),
        (PlanLimits(epochs=4), MEASURE, None),
        (PlanLimits(tasks=("b", "a", "c")), PLAN, None),
        (PlanLimits(tasks=("a",)), PLAN, "this device works for a, not for b"),
        (NO_LIMITS, SPLIT, None),
    ],
)
def test_plan_beyond_the_device_s_limits_is_declined_with_a_reason(limits, plan, why):
    fault = limits.fault(plan)
    assert (fault is None) if why is None else fault.startswith(why)


INVERTIBLE, NARROW = (Reconstruction(fp32=psnr_db, fp16=psnr_db, int8=psnr_db) for psnr_db in (60.0, 17.0))


@pytest.mark.parametrize(
    ("limits", "plan", "measured", "why"),
    [
        (PlanLimits(split_learning=True), PLAN, INVERTIBLE, None),
        (PlanLimits(split_learning=True), SPLIT, NARROW, None),
        (PlanLimits(split_learning=True), SPLIT, INVERTIBLE, "inputs come back from their embeddings at 60 dB"),
        (PlanLimits(split_learning=True), SPLIT, None, "how much of an input comes back"),
        (PlanLimits(split_learning=True, reconstruction=True), SPLIT, INVERTIBLE, None),
    ],
)
def test_stem_from_which_inputs_come_back_is_declined_unless_it_is_allowed_by_name(
    make_bundle, limits, plan, measured, why
):
    manifest = msgspec.structs.replace(make_bundle().manifest, reconstruction=measured)
    found = limits.manifest_fault(plan, manifest)
    assert (found is None) if why is None else (found.startswith(why) and "allow_reconstruction" in found)
