import msgspec
from view_samples import BARE, DEVICE, ROUND, STATUS

from broker_server.operator import messages as shown
from broker_server.operator.page.snapshot import KEPT_EVENTS, Change, Snapshot

NONE = shown.AffinityView(tasks=(), values=(), errors=(), counts=())
EVENT = shown.Event(number=1, at_s=0.0, text="x")


def test_snapshot_tells_what_has_changed():
    snapshot = Snapshot()
    assert snapshot.all is None
    assert (snapshot.last_round, snapshot.last_event) == (-1, 0)
    first = snapshot.update(STATUS, [DEVICE, BARE], [ROUND], [EVENT], NONE)
    assert first == Change(status=STATUS, devices=(DEVICE, BARE), rounds=(ROUND,), events=(EVENT,), affinity=NONE)
    assert snapshot.update(STATUS, [DEVICE, BARE], [], [], NONE) == Change(status=STATUS)
    other = msgspec.structs.replace(DEVICE, done=4)
    assert snapshot.update(STATUS, [other], [], [], NONE) == Change(status=STATUS, devices=(other,), gone=("new-one",))
    assert (snapshot.last_round, snapshot.last_event) == (3, 1)
    assert snapshot.all == msgspec.structs.replace(first, is_all=True, devices=(other,))


def test_change_names_nothing_that_is_as_it_was():
    assert set(msgspec.to_builtins(Change(status=STATUS))) == {"status"}


def test_snapshot_is_bounded():
    snapshot = Snapshot()
    events = [msgspec.structs.replace(EVENT, number=number) for number in range(1, KEPT_EVENTS + 10)]
    snapshot.update(STATUS, [], [], events, NONE)
    assert len(snapshot.all.events) == KEPT_EVENTS
    assert snapshot.last_event == KEPT_EVENTS + 9
