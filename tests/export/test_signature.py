"""The roles of a graph's tensors by their names."""

import pytest

from edge_runtime.wire.tensors import STATE
from export.signature import Role, Signature


@pytest.mark.parametrize(
    ("name", "role", "own"),
    [
        ("x", Role.VALUE, "x"),
        ("e", Role.VALUE, "e"),
        ("z.12", Role.VALUE, "z.12"),
        ("v.0", Role.VALUE, "v.0"),
        ("de", Role.VALUE_GRADIENT, "e"),
        ("dz.3", Role.VALUE_GRADIENT, "z.3"),
        ("param.conv.weight", Role.PARAMETER, "conv.weight"),
        ("param.x", Role.PARAMETER, "x"),
        ("grad.z.bias", Role.PARAMETER_GRADIENT, "z.bias"),
        ("state.norm.running_mean", Role.STATE, "norm.running_mean"),
        ("next.norm.running_mean", Role.NEXT_STATE, "norm.running_mean"),
        ("saved.0", Role.SAVED, "0"),
        ("target", Role.TARGET, ""),
        ("seed", Role.SEED, ""),
        ("loss", Role.LOSS, ""),
        ("prediction", Role.PREDICTION, ""),
        ("prediction.mean", Role.PREDICTION, ".mean"),
    ],
)
def test_role_and_own_name_follow_from_the_name_in_a_graph(name, role, own):
    assert Role.of(name) is role
    assert role.select({name: 1}) == {own: 1}
    assert all(other.select({name: 1}) == {} for other in Role if other is not role)
    assert role.tensor_name(own) == name


@pytest.mark.parametrize("name", ["y", "weight", "param", "0.saved.1"])
def test_name_that_no_graph_has_is_an_error(name):
    with pytest.raises(ValueError, match="is not a valid Role"):
        Role.of(name)


def test_signature_gives_names_by_role_in_order():
    signature = Signature(("z.1", "z.0", "param.b", "dz.0", "seed"), ("next.m", "dz.0", "grad.b", "loss"))
    assert signature.inputs_of(Role.VALUE) == ["z.1", "z.0"]
    assert signature.inputs_of(Role.SAVED) == []
    assert signature.outputs_of(Role.PARAMETER_GRADIENT, Role.NEXT_STATE) == ["next.m", "grad.b"]


def test_state_is_called_alike_in_graphs_and_in_the_tensor_table():
    assert Role.STATE.value == STATE
