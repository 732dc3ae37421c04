import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.wire.errors import MessageInvalid
from edge_runtime.wire.fragments import (
    FRAGMENT_BYTES,
    FRAGMENT_HEADER_BYTES,
    MAX_FRAGMENTS,
    Assembler,
    fragmented_bytes,
    to_fragments,
)


@given(st.binary(max_size=100), st.integers(0, 2**33), st.integers(1, 40), st.randoms(use_true_random=False))
def test_a_message_comes_as_it_went_in_any_order_and_with_repeats(data, number, fragment_bytes, random):
    fragments = to_fragments(number, data, fragment_bytes)
    assert all(len(fragment) <= FRAGMENT_HEADER_BYTES + fragment_bytes for fragment in fragments)
    assert sum(map(len, fragments)) == fragmented_bytes(len(data), fragment_bytes)
    assembler = Assembler(100)
    order = [*fragments, *fragments[:-1]]
    random.shuffle(order)
    found = [message for fragment in order if (message := assembler.accept(fragment)) is not None]
    assert found[0] == data


def test_a_fragment_that_comes_again_counts_once():
    assembler = Assembler(6)
    first, second = to_fragments(1, b"abcdef", 3)
    assert assembler.accept(first) is None
    assert assembler.accept(first) is None
    assert assembler.accept(second) == b"abcdef"


def test_an_empty_message_is_one_fragment():
    (fragment,) = to_fragments(1, b"")
    assert Assembler(0).accept(fragment) == b""


def test_a_message_with_a_fragment_lost_is_dropped_when_the_next_begins():
    assembler = Assembler(10)
    first, second = to_fragments(1, b"abcdef", 3), to_fragments(2, b"ghijkl", 3)
    assert assembler.accept(first[0]) is None
    assert assembler.accept(second[0]) is None
    assert assembler.accept(second[1]) == b"ghijkl"
    assert assembler.accept(first[1]) is None


def test_a_message_that_is_longer_than_any_may_be_is_dropped_before_it_is_whole():
    assembler = Assembler(5)
    fragments = to_fragments(1, b"abcdef", 3)
    assert assembler.accept(fragments[0]) is None
    with pytest.raises(MessageInvalid, match="more than 5 bytes"):
        assembler.accept(fragments[1])
    assert assembler.accept(to_fragments(2, b"abc")[0]) == b"abc"


@pytest.mark.parametrize(
    "fragment", [b"", b"1234567", bytes(8), b"\1\0\0\0\2\0\2\0data"], ids=["none", "short", "zero", "place"]
)
def test_what_is_no_fragment_is_refused(fragment):
    with pytest.raises(MessageInvalid, match="no fragment"):
        Assembler(100).accept(fragment)


def test_a_message_of_too_many_fragments_is_not_sent():
    with pytest.raises(MessageInvalid, match="too long"):
        to_fragments(1, bytes(MAX_FRAGMENTS + 1), 1)
    assert len(to_fragments(1, bytes(FRAGMENT_BYTES + 1))) == 2
