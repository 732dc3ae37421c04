from pathlib import Path

import msgspec
import numpy as np
import pytest

from broker_server.aggregation.hca2 import HyperWeights, PushGate, attention, conflict_averse, gated, learned
from edge_runtime.wire.tensors import TensorTable

FAMILY = Path(__file__).parents[2] / "fixtures" / "family"
GOLDEN = msgspec.json.decode((FAMILY / "fedhca2.json").read_bytes())
CHANGES = np.array(GOLDEN["encoder_updates"])
LAST = np.array(GOLDEN["last_encoder"])
TABLE = TensorTable.of({"encoder.w": (6,), "head.a.w": (6,)})


def test_conflict_averse_change_is_the_golden_one():
    found = conflict_averse(CHANGES @ CHANGES.T, GOLDEN["c"]) @ CHANGES
    np.testing.assert_allclose(found, GOLDEN["conflict_averse_update"], atol=1e-4)


def test_attention_is_the_golden_one():
    np.testing.assert_allclose(attention(CHANGES), GOLDEN["cross_attention"]["output"], atol=1e-4)


def pushed(before=(None, None, None)):
    """Three devices, whose heads change as their encoders do."""
    sent = [np.concatenate([row, row]).astype(np.float32) for row in LAST]
    trained = [np.concatenate([row, row]).astype(np.float32) for row in LAST + CHANGES]
    return list(HyperWeights(c=GOLDEN["c"]).pushed(TABLE, trained, sent, before))


def test_devices_go_on_from_golden_encoders_and_layers():
    for number, found in enumerate(pushed()):
        np.testing.assert_allclose(found.weights[:6], GOLDEN["new_encoder"][number], atol=1e-4)
        layer = LAST[number] + np.array(GOLDEN["cross_attention"]["new_layer_update"][number])
        np.testing.assert_allclose(found.weights[6:], layer, atol=1e-4)
        assert found.gates == {"encoder": PushGate(), "head.a.w": PushGate()}


def test_gates_learn_from_what_training_does_after_a_push():
    golden = GOLDEN["hyperweight_step"]
    after = np.array(golden["encoder_after_next_local_training"])
    for number, found in enumerate(pushed()):
        change = np.zeros(12, np.float32)
        change[:6] = after[number] - found.weights[:6]
        gates = learned(TABLE, found.gates, change, found.push)
        gradient = golden["gradient_of_alpha"][number]
        assert gates["encoder"].speed == pytest.approx(gradient + 1e-4 * 0.1, abs=1e-4)
        assert gates["encoder"].value == pytest.approx(0.1 - 0.01 * gates["encoder"].speed)
        assert gates["head.a.w"].value == pytest.approx(0.1 - 0.01 * 1e-4 * 0.1)


def test_a_gate_lets_nothing_or_all_through_at_the_most():
    assert [PushGate(value=value).open for value in (-0.2, 0.3, 1.4)] == [0.0, 0.3, 1.0]
    shut = {name: PushGate(value=-1.0) for name in gated(TABLE)}
    nothing = np.zeros(12, np.float32)
    found = pushed([(nothing, shut)] * 3)
    for number, each in enumerate(found):
        np.testing.assert_allclose(each.weights[:6], LAST[number] + CHANGES[number], atol=1e-6)
        assert each.gates["encoder"].value < 0


def test_heads_of_other_forms_do_not_attend_to_each_other():
    table = TensorTable.of({"encoder.w": (1,), "head.a.w": (2,), "head.b.v": (2,), "head.c.w": (2,)})
    sent = [np.zeros(7, np.float32)]
    trained = [np.array([0, 1, 0, 0, 1, 1, 1], np.float32)]
    (found,) = HyperWeights(c=0.0).pushed(table, trained, sent, [None])
    views = table.views(found.push)
    np.testing.assert_array_equal(views["head.b.v"], [0, 1])  # itself alone
    assert views["head.a.w"][1] > 0  # c's share
