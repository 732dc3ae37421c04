import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.wire.names import DeviceId, Digest, GroupId, TaskName, TensorName, group_id, is_device_id

TASKS = st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True), min_size=1, max_size=32, unique=True)


@pytest.mark.parametrize("kind", [TaskName, DeviceId, GroupId, TensorName])
@pytest.mark.parametrize("name", ["", "a/b", "..\n", "a\n", "a b", "#", "+", "a\x00", "a" * 300, "ü"])
def test_names_that_could_reach_a_path_or_a_topic_are_refused(kind, name):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(name, kind)


@pytest.mark.parametrize("name", ["A" * 64, "a" * 63, "a" * 64 + "\n", "g" * 64])
def test_digest_that_is_not_64_lower_case_hexadecimal_digits_is_refused(name):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(name, Digest)


@pytest.mark.parametrize(("name", "good"), [("pi-4.lab_2", True), (".hidden", False), ("a\n", False), ("a/b", False)])
def test_is_device_id_agrees_with_the_schema(name, good):
    assert is_device_id(name) is good
    if good:
        assert msgspec.convert(name, DeviceId) == name
    else:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(name, DeviceId)


@given(TASKS)
def test_group_id_is_a_valid_name_and_independent_of_order(tasks):
    name = group_id(tasks)
    assert msgspec.convert(name, GroupId) == name
    assert group_id(reversed(tasks)) == name


def test_group_id_too_long_keeps_groups_apart():
    tasks = [f"a_task_with_a_rather_long_name_{i}" for i in range(10)]
    other = [*tasks[:-1], "z"]
    assert len("+".join(tasks)) > 200
    assert group_id(tasks) != group_id(other)
    assert len(group_id(tasks)) == 200
