import pytest

from edge_runtime.training.weighting_state import WeightingState, WeightingStateStore


def state(value):
    return WeightingState(method="gradnorm", values={"a": value}, first_losses={"a": 2.0})


def test_state_is_absent_at_first(tmp_path):
    assert WeightingStateStore(tmp_path / "weighting").load("x", 5) is None


def test_state_of_the_latest_earlier_round_is_gone_on_with(tmp_path):
    WeightingStateStore(tmp_path).save("x", state(1.0), 3)
    WeightingStateStore(tmp_path).save("x", state(1.5), 7)
    store = WeightingStateStore(tmp_path)
    assert store.load("x", 20) == state(1.5)
    assert store.load("x", 7) == state(1.0)  # round 7 is done again
    assert store.load("x", 3) is None


def test_state_of_another_group_is_not_used(tmp_path):
    store = WeightingStateStore(tmp_path)
    store.save("x", state(1.0), 3)
    store.save("y", state(2.0), 4)
    assert store.load("y", 5) == state(2.0)
    assert store.load("x", 5) == state(1.0)
    assert store.load("z", 5) is None


def test_state_of_two_rounds_alone_is_kept(tmp_path):
    store = WeightingStateStore(tmp_path)
    for of_round in (9, 10, 11, 100):
        store.save("x", state(float(of_round)), of_round)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["100.json", "11.json"]
    store.save("x", state(1.0), 2)  # another federation has begun
    assert [path.name for path in tmp_path.iterdir()] == ["2.json"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"bundle":"x","learnt":{"method":"a","values":[]}}'])
def test_state_that_is_damaged_is_absent(tmp_path, content):
    store = WeightingStateStore(tmp_path)
    store.save("x", state(1.0), 1)
    (tmp_path / "2.json").write_bytes(content)
    (tmp_path / "notes.json").write_bytes(content)
    assert store.load("x", 5) == state(1.0)
