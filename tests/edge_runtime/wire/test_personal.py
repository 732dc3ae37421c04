import pytest
import samples

from edge_runtime.wire.errors import BundleInvalid, MessageInvalid
from edge_runtime.wire.messages import decode_server, encode
from edge_runtime.wire.personal import (
    Held,
    MoreauModel,
    OwnModel,
    OwnParts,
    held_table,
    kept_parts,
    passes,
    sent_table,
    unsent_parts,
)
from edge_runtime.wire.tensors import TensorTable

TABLE = TensorTable.of({"encoder.w": (3,), "head.a.w": (2,), "state.encoder.m": (1,), "state.head.a.m": (1,)})
HEADS = OwnParts(parts=("head.a",), start=samples.blob("d"), own_epochs=2)
MODEL, MOREAU = OwnModel(strength=1.0, epochs=3), MoreauModel(strength=15.0, steps=5, lr=0.1)


def test_own_parts_and_their_state_are_never_sent():
    assert unsent_parts(TABLE, HEADS) == kept_parts(TABLE, HEADS) == ("head.a", "state.head.a")
    assert tuple(sent_table(TABLE, HEADS).parts) == ("encoder", "state.encoder")
    whole = OwnParts(parts=("head.a", "encoder"), start=samples.blob())
    with pytest.raises(BundleInvalid, match="nothing to train together"):
        sent_table(TABLE, whole)


@pytest.mark.parametrize("personal", [MODEL, MOREAU, None])
def test_a_model_of_the_devices_own_takes_nothing_from_what_is_sent(personal):
    assert sent_table(TABLE, personal) is TABLE
    assert unsent_parts(TABLE, personal) == ()
    assert kept_parts(TABLE, personal) == (() if personal is None else tuple(TABLE.parts))


def test_passes_over_the_data():
    assert [passes(2, each) for each in (None, HEADS, MODEL, MOREAU)] == [2, 4, 5, 10]


@pytest.mark.parametrize("personal", [HEADS, MODEL, MOREAU, None])
def test_a_plan_says_what_is_the_devices_own(personal):
    plan = samples.plan(personal=personal)
    assert decode_server(encode(plan)) == plan
    assert plan.files == (plan.bundle, plan.weights, *((HEADS.start,) if personal is HEADS else ()))


def test_a_plan_with_a_part_that_no_model_has_is_refused():
    bad = OwnParts(parts=("../head",), start=samples.blob())
    with pytest.raises(MessageInvalid):
        encode(samples.plan(personal=bad))


def test_a_plan_has_a_file_for_the_centre_that_parts_are_held_to():
    held = Held(parts=("head.a",), centre=samples.blob("e"), strength=0.5)
    plan = samples.plan(held=held)
    assert decode_server(encode(plan)) == plan
    assert plan.files == (plan.bundle, plan.weights, held.centre)
    assert tuple(held_table(TABLE, held).parts) == ("head.a",)
    with pytest.raises(BundleInvalid, match=r"no part 'head\.b'"):
        held_table(TABLE, Held(parts=("head.b",), centre=samples.blob(), strength=1.0))
