import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.wire.footprint import MICRO_BATCHES, Footprint, GraphFootprint

GROWING = GraphFootprint(nodes=3, transient_bytes=(100, 200, 400, 800, 1600, 3200), held_bytes=(5, 7))


def test_transient_is_what_was_worked_out_at_those_micro_batches():
    for batch, size in zip(MICRO_BATCHES, GROWING.transient_bytes, strict=True):
        assert GROWING.transient(batch) == size


def test_transient_between_and_beyond_is_on_straight_lines():
    assert GROWING.transient(3) == 300
    assert GROWING.transient(24) == 2400
    assert GROWING.transient(64) == 6400


def test_transient_does_not_fall_beyond_what_was_worked_out():
    flat = GraphFootprint(nodes=1, transient_bytes=(9, 9, 9, 9, 9, 8))
    assert flat.transient(1000) == 9


@given(st.lists(st.integers(0, 2**40), min_size=6, max_size=6), st.integers(1, 65536))
def test_transient_is_never_negative(sizes, batch):
    assert GraphFootprint(nodes=1, transient_bytes=tuple(sorted(sizes))).transient(batch) >= 0


def test_held_is_fixed_and_for_each_sample():
    assert GROWING.held(3) == 26
    assert GraphFootprint(nodes=1, transient_bytes=(0,) * 6).held(9) == 0


def test_footprint_of_some_files_has_no_others():
    found = Footprint(graphs={"a" * 64: GROWING, "b" * 64: GROWING})
    assert list(found.of({"b" * 64}).graphs) == ["b" * 64]


@pytest.mark.parametrize(
    "change",
    [
        {"nodes": -1},
        {"nodes": 2**40},
        {"transient_bytes": [1, 2]},
        {"transient_bytes": [1, 2, 3, 4, 5, -6]},
        {"transient_bytes": [1, 2, 3, 4, 5, 2**60]},
        {"held_bytes": [1]},
        {"held_bytes": [-1, 1]},
        {"held_bytes": [1, 1, 1]},
        {"more": 1},
    ],
)
def test_footprint_of_another_form_is_refused(change):
    whole = msgspec.to_builtins(GROWING) | change
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"graphs": {"a" * 64: whole}}, Footprint)


def test_footprint_by_what_is_no_digest_is_refused():
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"graphs": {"../x": msgspec.to_builtins(GROWING)}}, Footprint)
