from hypothesis import given
from hypothesis import strategies as st

from broker_server.mqtt.admission import Admission


def test_admission_closes_the_oldest_that_is_silent_of_too_many_from_one_address():
    admission = Admission(sockets=10, pending=10, pending_of_address=2)
    assert admission.open("a1", "a") == admission.open("b1", "b") == admission.open("a2", "a") == []
    assert admission.open("a3", "a") == ["a1"]
    assert len(admission) == 3


def test_admission_closes_the_oldest_that_is_silent_of_too_many_in_all():
    admission = Admission(sockets=10, pending=2, pending_of_address=2)
    admission.open("a", "a")
    admission.open("b", "b")
    admission.authenticated("a")
    assert admission.open("c", "c") == []
    assert admission.open("d", "d") == ["b"]


def test_admission_closes_the_new_one_where_all_others_are_authenticated():
    admission = Admission(sockets=2, pending=2, pending_of_address=2)
    for name in "ab":
        admission.open(name, name)
        admission.authenticated(name)
    assert admission.open("c", "c") == ["c"]
    admission.closed("a")
    assert admission.open("d", "d") == []
    assert admission.open("e", "e") == ["d"]  # silent ones make room
    admission.closed("never seen")


ACTS = st.lists(st.tuples(st.sampled_from(["open", "authenticated", "closed"]), st.integers(0, 12)), max_size=60)


@given(ACTS, st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_admission_is_never_over_a_cap(acts, sockets, pending, of_address):
    admission, opened = Admission(sockets=sockets, pending=pending, pending_of_address=of_address), set()
    for number, (act, which) in enumerate(acts):
        if act == "open":
            opened.add(number)
            opened -= set(admission.open(number, str(which % 3)))
        elif opened:
            socket = sorted(opened)[which % len(opened)]
            getattr(admission, act)(socket)
            if act == "closed":
                opened.remove(socket)
        assert len(admission) == len(opened) <= sockets
        assert len(admission._pending) <= pending
        assert max((list(admission._pending.values()).count(str(a)) for a in range(3)), default=0) <= of_address
