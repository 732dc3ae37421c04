import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.memory.arena import UNIT, Arena

pytestmark = pytest.mark.workstation
SPARE = 4096


def test_arena_rounds_up_and_places_one_after_the_other():
    arena = Arena(SPARE)
    assert [arena.allocate(size) for size in (1, 300, 256)] == [0, 256, 768]
    assert arena.touched_bytes == 1024


def test_arena_takes_the_smallest_chunk_that_fits_at_the_lowest_address():
    arena = Arena(SPARE)
    places = [arena.allocate(size) for size in (4096, 256, 1024, 256, 1024, 256)]
    for place in (places[0], places[2], places[4]):
        arena.free(place)
    assert arena.allocate(1000) == places[2]
    assert arena.allocate(1000) == places[4]
    assert arena.allocate(1000) == places[0]


def test_arena_joins_free_neighbours():
    arena = Arena(SPARE)
    first, second, third, _ = (arena.allocate(1024) for _ in range(4))
    for place in (first, third, second):
        arena.free(place)
    assert arena.allocate(3072) == first
    assert arena.touched_bytes == 4096


def test_arena_splits_off_what_is_large_enough():
    for size, split in ((8192 - SPARE, True), (8192 - SPARE + UNIT, False)):
        arena = Arena(SPARE)
        hole, _ = arena.allocate(8192), arena.allocate(UNIT)
        arena.free(hole)
        assert arena.allocate(size) == hole
        assert (arena.allocate(UNIT) < 8192) == split


def test_arena_splits_off_half_a_chunk_however_small():
    arena = Arena(SPARE)
    hole, _ = arena.allocate(1024), arena.allocate(UNIT)
    arena.free(hole)
    assert [arena.allocate(512), arena.allocate(512)] == [hole, hole + 512]


@given(st.lists(st.tuples(st.integers(1, 20_000), st.booleans()), max_size=60))
def test_arena_never_gives_the_same_memory_twice(steps):
    arena = Arena(SPARE)
    used = {}
    for size, free in steps:
        if free and used:
            arena.free(place := min(used))
            del used[place]
        place = arena.allocate(size)
        assert all(place + size <= other or other + length <= place for other, length in used.items())
        used[place] = size
        assert arena.touched_bytes >= max(other + length for other, length in used.items())
    for place in used:
        arena.free(place)
    reached = arena.touched_bytes
    assert not reached or arena.allocate(reached) == 0
