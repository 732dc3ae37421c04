import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_server.mqtt.admission import Admission


def admission_of(**limits):
    return Admission(**({"sockets": 10, "pending": 4, "pending_of_address": 2, "patience_s": 5.0} | limits))


def begun(admission, now_s=0.0):
    """All that may begin now."""
    found = []
    while (socket := admission.next(now_s)) is not None:
        found.append(socket)
    return found


def test_sockets_begin_in_turn_and_addresses_have_theirs():
    admission = admission_of()
    for name in ("a1", "a2", "a3", "b1", "c1", "a4"):
        assert admission.open(name, name[0]) == []
    assert begun(admission) == ["a1", "b1", "c1", "a2"]
    assert admission.authenticated("a1")
    assert not admission.authenticated("a1")
    assert begun(admission) == ["a3"]
    admission.closed("a2")
    assert begun(admission) == ["a4"]
    assert len(admission) == 5


def test_whoever_waits_for_an_address_that_is_full_does_not_hold_up_others():
    admission = admission_of()
    for name in ("a1", "a2", "a3", "b1"):
        admission.open(name, name[0])
    assert begun(admission) == ["a1", "b1", "a2"]


def test_the_silent_are_closed_for_those_that_wait_and_not_before():
    admission = admission_of()
    for name in ("a1", "a2", "b1"):
        admission.open(name, name[0])
    begun(admission, 1.0)
    assert admission.overdue(100.0) == []  # nobody waits
    admission.open("a3", "a")
    assert admission.overdue(5.9) == []
    assert admission.overdue(6.0) == ["a1", "a2"]  # b's has nothing to do with it
    assert begun(admission, 6.0) == ["a3"]


def test_patience_is_shorter_where_many_wait():
    admission = admission_of(sockets=100)
    for number in range(12):
        admission.open(number, "a")
    begun(admission, 0.0)
    assert admission.overdue(0.9) == []
    assert admission.overdue(1.0) == [0, 1]  # ten wait for two places: a fifth of five seconds


def test_the_silent_of_any_address_are_closed_where_all_are_full():
    admission = admission_of(pending=2)
    for name in ("a1", "b1", "c1"):
        admission.open(name, name[0])
    begun(admission, 0.0)
    assert admission.overdue(5.0) == ["a1", "b1"]


@pytest.mark.parametrize(
    ("first", "last", "closed"),
    [
        (("a1", "a2", "a3"), "b1", "a3"),  # the newest of the address with the most that wait
        (("b1", "a2", "a3"), "a4", "a4"),  # it may be the new one
    ],
)
def test_one_too_many_costs_the_address_with_the_most(first, last, closed):
    admission = admission_of(sockets=3)
    for name in first:
        admission.open(name, name[0])
    assert admission.open(last, last[0]) == [closed]
    assert len(admission) == 3


def test_one_too_many_costs_the_oldest_that_has_begun_or_itself():
    admission = admission_of(sockets=2)
    admission.open("a1", "a")
    admission.open("b1", "b")
    begun(admission)
    admission.authenticated("a1")
    assert admission.open("c1", "c") == ["b1"]
    begun(admission)
    admission.authenticated("c1")
    assert admission.open("d1", "d") == ["d1"]
    admission.closed("never seen")


ACTS = st.lists(
    st.tuples(st.sampled_from(["open", "next", "authenticated", "closed"]), st.integers(0, 12)), max_size=60
)


@given(ACTS, st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_admission_is_never_over_a_cap(acts, sockets, pending, of_address):
    admission = admission_of(sockets=sockets, pending=pending, pending_of_address=of_address)
    opened, has_begun = set(), set()
    for number, (act, which) in enumerate(acts):
        if act == "open":
            opened.add(number)
            closed = set(admission.open(number, str(which % 3)))
            opened -= closed
            has_begun -= closed
        elif act == "next":
            has_begun |= {admission.next(float(number))} - {None}
        elif act == "closed" and opened:
            socket = sorted(opened)[which % len(opened)]
            admission.closed(socket)
            opened.discard(socket)
            has_begun.discard(socket)
        elif act == "authenticated" and has_begun:
            admission.authenticated(sorted(has_begun)[which % len(has_begun)])
        assert len(admission) == len(opened) <= sockets
        assert len(admission._pending) <= pending
        addresses = [address for address, _ in admission._pending.values()]
        assert max((addresses.count(each) for each in addresses), default=0) <= of_address
        assert opened == has_begun & opened | {each for queue in admission._waiting.values() for each in queue}
