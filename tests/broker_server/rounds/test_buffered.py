"""Buffered rounds: versions of the weights that nobody waits for. The rules are the coordinator's."""

import msgspec
import pytest
import samples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker_server.rounds.actions import Abandon, Close, FetchUpdate, Opened, Record, Send
from broker_server.rounds.coordinator import Coordinator
from broker_server.rounds.rules import Rules
from broker_server.strategies.planner import Round
from edge_runtime.wire.blob import Blob
from edge_runtime.wire.messages import Ack, Finished, Plan, Refusal, Stop

HELLO = samples.hello(examples={"train": 1}, tasks=("a",))


def planned(number, *, work="train", phase="merge"):
    """A round and its plan; the weights of each have a digest of their own."""
    about = Round(
        number=number,
        phase=phase,
        work=work,
        group="a",
        tasks=("a",),
        index=0,
        rounds=9,
        probe=False,
        data_split=None if work == "train" else "test",
    )
    weights = Blob(digest=f"{number:064x}", size_bytes=5000)
    return about, samples.plan(number, work=work, weights=weights, phase=phase)


def update(number, *, size=5000):
    return samples.update(number, weights=Blob(digest="1" * 64, size_bytes=size), examples={"a": 1})


class Course:
    """A coordinator whose rounds follow one another, and what it has wanted."""

    def __init__(self, names="xyz", *, ends=99, **rules):
        self.rules = Rules(**({"mode": "buffered", "min_devices": len(names), "deadline_s": 60.0} | rules))
        self.coordinator = Coordinator(self.rules)
        self.number, self.now_s, self.ends = 0, 0.0, ends
        self.log, self.folds, self.opened = [], [], []
        self.do(self.coordinator.offer(*self.planned(), 0.0))
        for name in names:
            self.do(self.coordinator.on_hello(name, HELLO, 0.0))

    def planned(self):
        return planned(self.number) if self.number < self.ends else planned(self.number, work="evaluate", phase="end")

    def do(self, actions):
        self.log += actions
        self.opened += [each for each in actions if isinstance(each, Opened)]
        if actions and isinstance(actions[-1], Close):
            closed = actions[-1].closed
            self.folds.append({name: closed.results[name].round for name in closed.counted})
            self.number += 1
            self.do(self.coordinator.offer(*self.planned(), self.now_s))

    def announce(self, name, number, **changes):
        self.do(self.coordinator.on_update(name, update(number, **changes), self.now_s))

    def answer(self, name, number):
        """A device's update of a version, announced and fetched."""
        self.announce(name, number)
        self.do(self.coordinator.on_update_received(name, self.now_s))

    def tick(self, seconds):
        self.now_s += seconds
        self.do(self.coordinator.tick(self.now_s))

    def plans(self):
        """The plans that were sent since the last call, as (device, version)."""
        sent = [(a.device, a.message.round) for a in self.log if isinstance(a, Send) and isinstance(a.message, Plan)]
        self.log.clear()
        return sent

    def stops(self):
        """Those that were told to stop, with the version that they have."""
        return [(a.device, a.message.round) for a in self.log if isinstance(a, Send) and isinstance(a.message, Stop)]

    def acks(self):
        return [(a.device, a.message.accepted) for a in self.log if isinstance(a, Send) and isinstance(a.message, Ack)]


def test_the_buffer_closes_the_round_and_nobody_waits():
    course = Course(buffer_size=2)
    assert course.plans() == [("x", 0), ("y", 0), ("z", 0)]
    course.answer("x", 0)
    assert course.plans() == []  # it has nothing to do before there are newer weights
    course.answer("y", 0)
    assert course.folds == [{"x": 0, "y": 0}]
    assert course.plans() == [("x", 1), ("y", 1)]
    course.answer("z", 0)  # counts in the next buffer, and goes on at once
    assert course.plans() == [("z", 1)]
    course.answer("y", 1)
    assert course.folds[1] == {"y": 1, "z": 0}
    records = [(each.round, each.device) for each in course.log if isinstance(each, Record)]
    assert records == [(1, "y")]


def test_the_buffer_is_half_of_those_at_work_unless_something_is_said():
    course = Course("vwxyz")
    assert course.coordinator.open.quorum == 3
    assert Course("vwxyz", buffer_size=9).coordinator.open.quorum == 5
    assert Course("vwxyz", clients_per_round=2).coordinator.open.quorum == 1


def test_what_is_journalled_says_who_has_which_version():
    course = Course(buffer_size=1)
    course.answer("z", 0)
    course.answer("x", 0)
    first, second, *_ = course.opened
    assert (first.members, first.asked, first.quorum) == (("x", "y", "z"), dict.fromkeys("xyz", 1.0), 1)
    assert (second.round.number, second.members, second.asked) == (1, ("x", "y", "z"), {"z": 1.0})


def test_a_second_result_waits_for_the_next_buffer():
    course = Course(buffer_size=2)
    course.answer("x", 0)
    course.answer("y", 0)
    course.answer("z", 0)  # of version 0, in buffer 1
    course.log.clear()
    course.announce("z", 1)
    course.announce("z", 1)
    assert course.log == []  # no acknowledgement: the device announces it again
    assert course.coordinator.counts == {}
    course.answer("x", 1)
    assert course.folds[1] == {"x": 1, "z": 0}
    assert [a.device for a in course.log if isinstance(a, FetchUpdate)] == ["x", "z"]
    course.do(course.coordinator.on_update_received("z", 0.0))
    course.answer("y", 1)
    assert course.folds[2] == {"y": 1, "z": 1}


def test_an_upload_that_is_under_way_goes_over_into_the_next_round():
    course = Course(buffer_size=1)
    course.announce("z", 0)
    course.answer("x", 0)
    assert not [a for a in course.log if isinstance(a, Abandon)]
    course.do(course.coordinator.on_update_received("z", 0.0))
    assert course.folds == [{"x": 0}, {"z": 0}]


def test_beyond_the_bound_a_device_begins_again_with_the_newest_weights():
    course = Course(buffer_size=1, max_staleness=2)
    for number in (0, 1, 2):
        course.answer("x", number)
    assert ("z", 0) not in course.plans()[3:]
    assert course.coordinator.open.plan_of("z").round == 3
    course.announce("z", 0)
    assert course.acks() == [("z", False)]
    assert course.coordinator.counts == {"result late": 1}
    course.answer("z", 3)
    assert course.folds[3] == {"z": 3}


def test_a_bound_of_none_is_a_synchronous_round_that_ends_with_its_first_results():
    course = Course(buffer_size=2, max_staleness=0)
    course.announce("z", 0)
    course.answer("x", 0)
    course.answer("y", 0)
    assert course.folds == [{"x": 0, "y": 0}]
    assert [a.device for a in course.log if isinstance(a, Abandon)] == ["z"]
    assert course.plans()[-3:] == [("x", 1), ("y", 1), ("z", 1)]


def test_a_repeated_result_is_acknowledged_again_and_counts_once():
    course = Course(buffer_size=1)
    course.answer("x", 0)
    course.answer("z", 0)
    course.log.clear()
    course.announce("z", 0)
    assert course.acks() == [("z", True)]
    assert course.folds == [{"x": 0}, {"z": 0}]


def test_a_device_that_comes_in_mid_round_is_asked_at_once():
    course = Course("xy", buffer_size=2)
    course.answer("x", 0)
    course.log.clear()
    course.do(course.coordinator.on_hello("z", HELLO, 0.0))
    assert course.plans() == [("z", 0)]
    assert course.opened[-1].asked == {"z": 1.0}


def test_no_more_are_at_work_than_are_wanted():
    course = Course("vwxyz", clients_per_round=2, buffer_size=1)
    (one, _), (two, _) = course.plans()
    course.answer(one, 0)
    assert len(course.coordinator.open.unanswered) == 2
    assert two in course.coordinator.open.unanswered


def test_a_device_that_comes_back_is_sent_the_plan_that_it_has():
    course = Course(buffer_size=1)
    course.answer("x", 0)
    course.do(course.coordinator.on_status("z", online=False, now_s=0.0))
    course.log.clear()
    course.do(course.coordinator.on_hello("z", HELLO, 1.0))
    assert course.plans() == [("z", 0)]


def test_where_nobody_is_left_half_of_a_buffer_closes():
    course = Course("vwxyz", buffer_size=4, grace_s=5.0)
    course.answer("v", 0)
    course.do(course.coordinator.on_refusal("w", Refusal(round=0, group="a", reason="heat", detail="hot"), 0.0))
    for name in "yz":
        course.do(course.coordinator.on_status(name, online=False, now_s=0.0))
    course.tick(6.0)
    assert course.folds == []
    course.answer("x", 0)
    assert course.folds == [{"v": 0, "x": 0}]
    assert ("w", 1) in course.plans()


def test_a_pause_asks_nobody_and_loses_nothing():
    course = Course(buffer_size=1)
    course.log.clear()
    course.coordinator.is_paused = True
    course.answer("x", 0)
    course.answer("y", 0)
    course.answer("z", 0)
    assert course.folds == [{"x": 0}, {"y": 0}, {"z": 0}]
    assert course.plans() == []
    assert not course.coordinator.open.has_begun
    course.do(course.coordinator.resume(0.0))
    assert course.plans() == [("x", 3), ("y", 3), ("z", 3)]


def test_a_deadline_without_a_buffer_replaces_those_that_are_away():
    course = Course("wxyz", buffer_size=3)
    course.answer("w", 0)
    course.answer("x", 0)
    course.answer("y", 0)
    course.answer("z", 0)  # of version 0 in buffer 1, and at work on version 1
    for name in "xyz":
        course.do(course.coordinator.on_status(name, online=False, now_s=0.0))
    course.tick(61.0)
    assert set(course.coordinator.open.members) == {"w", "z"}
    assert course.coordinator.open.counted == ("z",)
    course.do(course.coordinator.on_hello("z", HELLO, 61.0))
    assert course.plans()[-1] == ("z", 1)


def test_the_end_of_a_phase_takes_nobody_over():
    course = Course(buffer_size=1, ends=1)
    course.announce("z", 0)
    course.log.clear()
    course.answer("x", 0)
    assert [a.device for a in course.log if isinstance(a, Abandon)] == ["z"]
    assert course.plans() == [("x", 1), ("y", 1), ("z", 1)]
    course.announce("z", 0)
    assert course.acks() == [("z", False)]


def test_the_end_of_the_federation_fetches_nothing_more():
    course = Course(buffer_size=1)
    course.announce("z", 0)
    course.announce("x", 0)
    actions = course.coordinator.on_update_received("x", 0.0)
    assert isinstance(actions[-1], Close)
    ended = course.coordinator.finish("done")
    assert ended[0] == Abandon(device="z")
    assert [a.message for a in ended[1:]] == [Finished(detail="done")] * 3


def test_a_device_whose_result_would_be_too_old_next_sends_what_it_has_done():
    course = Course(buffer_size=1, max_staleness=2)
    course.answer("x", 0)
    course.tick(0.25)
    assert course.stops() == []
    course.answer("x", 1)
    course.do(course.coordinator.on_status("z", online=False, now_s=course.now_s))
    course.tick(0.25)
    course.tick(0.25)
    assert course.stops() == [("y", 0)]
    course.do(course.coordinator.on_hello("z", HELLO, course.now_s))
    assert course.stops() == [("y", 0), ("z", 0)]  # behind its plan
    course.answer("z", 0)
    assert course.folds[2] == {"z": 0}


def test_a_slow_device_is_asked_for_less():
    course = Course("xy", buffer_size=1, work_factor=2.0)
    course.now_s = 1.0
    course.answer("x", 0)
    course.now_s = 10.0
    course.log.clear()
    course.answer("y", 0)
    course.answer("x", 1)
    sent = {a.device: a.message for a in course.log if isinstance(a, Send) and isinstance(a.message, Plan)}
    assert sent["x"].training.share == 1.0
    assert sent["y"].training.share == course.opened[-2].asked["y"] < 0.5
    assert course.coordinator.open.plan_of("y") == msgspec.structs.replace(sent["y"], deadline_s=100.0)


@pytest.mark.parametrize("counted", [(), ("x",), ("x", "z")])
def test_a_process_that_goes_on_knows_who_has_which_version(counted):
    coordinator = Coordinator(Rules(mode="buffered", buffer_size=9), dict.fromkeys("xyz", HELLO))
    about, plan = planned(5)
    actions = coordinator.offer(
        about,
        plan,
        0.0,
        members=("x", "y", "z"),
        quorum=3,
        results={name: update(3) for name in counted},
        plans={"x": planned(3)[1], "y": planned(4)[1]},
    )
    for name in "xyz":
        actions += coordinator.on_hello(name, HELLO, 0.0)
    sent = {a.device: a.message.round for a in actions if isinstance(a, Send) and isinstance(a.message, Plan)}
    # x had 3, which counts or is awaited; y has 4; z has 5, which is awaited though its 3 may count.
    assert sent == {"x": 5 if "x" in counted else 3, "y": 4, "z": 5}
    coordinator.on_update("y", update(4), 0.0)
    record, *_ = coordinator.on_update_received("y", 0.0)
    assert record == Record(round=5, device="y", result=update(4))


NAMES = st.sampled_from("abcd")


class Buffers(RuleBasedStateMachine):
    """Devices come, go, answer, repeat themselves and lie: each version of each counts once, and never too late."""

    def __init__(self):
        super().__init__()
        self.course = Course("", min_devices=2, buffer_size=2, max_staleness=2, grace_s=10.0)
        self.counted = {}
        self.fetching = set()
        self.sent = {}
        self.seen = 0

    def take(self):
        for action in self.course.log[self.seen :]:
            match action:
                case Send(device=device, message=Plan() as plan):
                    assert plan.round <= self.course.number
                    assert self.sent.get(device, 0) <= plan.round
                    self.sent[device] = plan.round
                case FetchUpdate(device=device):
                    self.fetching.add(device)
                case Abandon(device=device):
                    self.fetching.discard(device)
                case Record(round=number, device=device, result=result):
                    assert (device, result.round) not in self.counted
                    assert 0 <= number - result.round <= 2
                    self.counted[device, result.round] = number
                    self.fetching.discard(device)
                case Send(device=device, message=Ack(accepted=True) as ack):
                    assert (device, ack.round) in self.counted
        self.seen = len(self.course.log)

    @rule(device=NAMES)
    def hello(self, device):
        self.course.do(self.course.coordinator.on_hello(device, HELLO, self.course.now_s))

    @rule(device=NAMES)
    def away(self, device):
        self.course.do(self.course.coordinator.on_status(device, online=False, now_s=self.course.now_s))

    @rule(device=NAMES, back=st.integers(-1, 3))
    def announce(self, device, back):
        self.course.announce(device, max(0, self.course.number - back))

    @precondition(lambda self: self.fetching)
    @rule(data=st.data(), good=st.booleans())
    def fetched(self, data, good):
        device, coordinator = data.draw(st.sampled_from(sorted(self.fetching))), self.course.coordinator
        if good:
            self.course.do(coordinator.on_update_received(device, self.course.now_s))
        else:
            self.fetching.discard(device)
            self.course.do(coordinator.on_update_rejected(device, "bad", self.course.now_s))

    @rule(device=NAMES, back=st.integers(0, 2))
    def refuse(self, device, back):
        refusal = Refusal(round=max(0, self.course.number - back), group="a", reason="heat", detail="hot")
        self.course.do(self.course.coordinator.on_refusal(device, refusal, self.course.now_s))

    @rule(passed_s=st.sampled_from([0.1, 4.0, 12.0, 61.0]))
    def tick(self, passed_s):
        self.course.tick(passed_s)

    @invariant()
    def buffers_are_what_was_counted(self):
        self.take()
        for number, fold in enumerate(self.course.folds):
            assert {(d, n) for (d, n), into in self.counted.items() if into == number} == set(fold.items())
        current = self.course.coordinator.open
        assert set(current.fetching) == self.fetching
        assert {d for (d, _), into in self.counted.items() if into == current.round.number} == set(current.results)


TestBuffers = pytest.mark.slow(Buffers.TestCase)
TestBuffers.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
