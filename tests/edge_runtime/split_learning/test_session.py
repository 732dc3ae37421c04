import random as randoms

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.split_learning.session import (
    ApplyStep,
    Compute,
    DropSession,
    EncoderSession,
    FinishSession,
    Reply,
    RestoreState,
    SaveState,
)
from edge_runtime.wire.split_learning import SplitHeader, SplitMessage

ONE = (np.ones((1, 2), np.float32),)
ROUND = 3


def say(kind, step=0, part=0, round_number=ROUND, arrays=(), seed=0):
    header = SplitHeader(kind=kind, round=round_number, step=step, part=part, samples=len(arrays), seed=seed)
    return SplitMessage(header=header, arrays=tuple(arrays))


def embedding(step=0, part=0):
    return say("embedding", step, part, arrays=ONE)


def gradient(step=0, part=0):
    return say("gradient", step, part, arrays=ONE)


class Machine:
    """Computes at once what a desk asks for, and notes what it did."""

    def __init__(self, **options):
        self.desk = EncoderSession(ROUND, 0.0, **options)
        self.done, self.answers = [], []

    def hear(self, message, now_s=0.0):
        self.answers = []
        self._do(self.desk.received(message, now_s))
        return [(a.kind, a.step, a.part, a.reason) for a in self.answers]

    def _do(self, actions):
        for action in actions:
            if isinstance(action, Reply):
                self.answers.append(action.message.header)
            elif isinstance(action, Compute):
                self.done.append((action.kind, action.step, action.part))
                self._do(self.desk.computed(ONE, 0.0))
            else:
                self.done.append(action)


def begun(**options):
    machine = Machine(**options)
    assert machine.hear(say("begin", seed=5)) == [("ready", 0, 0, None)]
    return machine


def stepped(machine, step, parts=1):
    for part in range(parts):
        assert machine.hear(embedding(step, part)) == [("representation", step, part, None)]
        assert machine.hear(gradient(step, part)) == [("return", step, part, None)]


def test_a_round_of_two_steps():
    machine = begun()
    stepped(machine, 0, parts=2)
    assert ApplyStep() not in machine.done  # the step may have more parts
    stepped(machine, 1)
    assert machine.hear(say("finish", 2)) == [("finished", 2, 0, None)]
    assert machine.done == [
        ("forward", 0, 0),
        ("backward", 0, 0),
        ("forward", 0, 1),
        ("backward", 0, 1),
        ApplyStep(),
        ("forward", 1, 0),
        ("backward", 1, 0),
        ApplyStep(),
        FinishSession(),
    ]
    assert machine.desk.ended == "finished"
    assert machine.hear(say("finish", 2)) == [("finished", 2, 0, None)]
    assert machine.hear(embedding(2)) == [("refused", 2, 0, "step")]
    assert machine.hear(say("finish", 3)) == [("refused", 3, 0, "step")]
    assert machine.done.count(ApplyStep()) == 2


def test_what_comes_again_is_answered_again_and_done_once():
    machine = begun()
    for _ in range(3):
        assert machine.hear(embedding()) == [("representation", 0, 0, None)]
    for _ in range(3):
        assert machine.hear(gradient()) == [("return", 0, 0, None)]
    assert machine.hear(embedding()) == []  # it has been returned: the device has no use for z
    assert machine.done == [("forward", 0, 0), ("backward", 0, 0)]
    stepped(machine, 1)
    assert machine.hear(gradient(0)) == [("refused", 0, 0, "unknown")]
    assert machine.hear(embedding(0)) == [("refused", 0, 0, "step")]
    assert machine.done.count(ApplyStep()) == 1


def test_backward_passes_run_in_the_order_of_the_parts():
    machine = begun()
    for part in (2, 0, 1):
        machine.hear(embedding(0, part))
    assert machine.hear(gradient(0, 1)) == []
    assert machine.hear(gradient(0, 1)) == []
    assert machine.hear(gradient(0, 2)) == []
    assert machine.hear(gradient(0, 0)) == [("return", 0, part, None) for part in range(3)]
    assert machine.done[3:] == [("backward", 0, part) for part in range(3)]


def test_one_thing_is_computed_at_a_time():
    desk = EncoderSession(ROUND, 0.0)
    desk.received(say("begin", seed=1), 0.0)
    (first,) = desk.received(embedding(0, 0), 0.0)
    assert desk.received(embedding(0, 1), 0.0) == []
    assert desk.received(embedding(0, 0), 0.0) == []  # it is being computed
    assert desk.received(gradient(0, 0), 0.0)[0].message.header.reason == "unknown"
    answer, second = desk.computed(ONE, 0.0)
    assert (first.part, answer.message.header.part, second.part) == (0, 0, 1)
    assert desk.tick(1e9) == []  # while we compute, the device waits for us
    assert len(desk.computed(ONE, 1e9)) == 1
    assert desk.tick(1e9 + 1) == []


def test_a_step_that_is_not_complete_is_not_left():
    machine = begun()
    machine.hear(embedding())
    for message in (embedding(1), embedding(2), say("mark", 1), say("finish", 1)):
        step = message.header.step
        assert machine.hear(message) == [("refused", step, 0, "step")]
    assert machine.hear(gradient(1)) == [("refused", 1, 0, "unknown")]
    assert machine.hear(gradient()) == [("return", 0, 0, None)]
    assert ApplyStep() not in machine.done


def test_refusals_say_what_was_refused():
    machine = begun()
    machine.hear(gradient(4))
    (header,) = machine.answers
    assert (header.about, header.step, header.round) == ("gradient", 4, ROUND)


def test_what_a_device_does_not_say_and_other_rounds_are_refused():
    machine = begun()
    assert machine.hear(say("ready")) == [("refused", 0, 0, "invalid")]
    assert machine.hear(say("embedding", round_number=2, arrays=ONE)) == [("refused", 0, 0, "round")]
    assert machine.done == []


def test_no_more_parts_at_once_than_allowed():
    machine = begun(most_parts=2)
    for part in range(2):
        machine.hear(embedding(0, part))
    assert machine.hear(embedding(0, 2)) == [("refused", 0, 2, "full")]
    machine.hear(gradient(0, 0))
    assert machine.hear(embedding(0, 2)) == [("representation", 0, 2, None)]
    for part in range(1, 200):
        machine.hear(gradient(0, part))
        machine.hear(embedding(0, part + 2))
        assert machine.desk.held <= 4
    assert machine.hear(gradient(0, 0)) == [("refused", 0, 0, "unknown")]  # its answer is gone


def test_probes_change_nothing_and_are_bounded():
    machine = begun()
    machine.hear(embedding())
    assert machine.hear(say("probe", 0, 9, arrays=ONE)) == [("representation", 0, 9, None)]
    assert machine.hear(say("probe", 1, 9, arrays=ONE)) == [("refused", 1, 9, "step")]
    assert machine.hear(gradient()) == [("return", 0, 0, None)]
    assert ApplyStep() not in machine.done
    assert machine.hear(say("probe", 1, 9, arrays=ONE)) == [("representation", 1, 9, None)]
    assert machine.done[-2:] == [ApplyStep(), ("predict", 1, 9)]
    desk = EncoderSession(ROUND, 0.0, most_parts=2)
    desk.received(say("begin", seed=1), 0.0)
    reasons = []
    for i in range(10):
        for action in desk.received(say("probe", 0, i, arrays=ONE), 0.0):
            if isinstance(action, Reply):
                reasons.append(action.message.header.reason)
    assert reasons == ["full"] * 5
    assert desk.held == 4


def test_nothing_but_the_end_is_answered_after_the_end():
    machine = begun()
    stepped(machine, 0)
    for _ in range(2):
        assert machine.hear(say("finish", 1)) == [("finished", 1, 0, None)]
    assert machine.done.count(FinishSession()) == 1
    assert machine.hear(say("probe", 1, 3, arrays=ONE)) == [("refused", 1, 3, "step")]


def test_mark_and_begin_again():
    machine = begun()
    stepped(machine, 0)
    assert machine.hear(say("mark", 1)) == [("marked", 1, 0, None)]
    assert machine.done[-2:] == [ApplyStep(), SaveState(step=1)]
    assert machine.hear(say("mark", 1)) == [("marked", 1, 0, None)]
    assert machine.done.count(SaveState(step=1)) == 1
    stepped(machine, 1)
    stepped(machine, 2)
    machine.hear(embedding(3))
    assert machine.hear(say("begin", 2, seed=6)) == [("refused", 2, 0, "step")]
    assert "begin at 0 or 1, or at 3" in machine.answers[0].detail
    assert machine.hear(say("begin", 1, seed=7)) == [("ready", 1, 0, None)]
    assert machine.done[-1] == RestoreState(step=1)
    stepped(machine, 1)
    assert machine.hear(say("begin", 0, seed=8)) == [("ready", 0, 0, None)]
    assert machine.done[-1] == RestoreState(step=0)
    assert machine.desk.step == 0


def test_begin_at_the_present_step_drops_its_parts():
    machine = begun()
    stepped(machine, 0)
    machine.hear(embedding(1))
    machine.hear(say("begin", 1, seed=9))
    assert machine.done[-1] == RestoreState(step=None)
    assert machine.hear(gradient(1)) == [("refused", 1, 0, "unknown")]
    stepped(machine, 1)
    machine.hear(say("begin", 2, seed=10))  # all of step 1 was returned: it counts
    assert machine.done[-1] == ApplyStep()
    assert machine.hear(say("begin", 5, seed=11)) == [("refused", 5, 0, "step")]
    assert "begin at 0, or at 2" in machine.answers[0].detail


def test_begin_that_comes_late_changes_nothing():
    machine = begun()
    stepped(machine, 0)
    machine.hear(embedding(1))
    assert machine.hear(say("begin", seed=5)) == [("ready", 0, 0, None)]
    assert machine.hear(gradient(1)) == [("return", 1, 0, None)]
    assert RestoreState(step=0) not in machine.done


def test_what_was_asked_for_before_a_beginning_has_no_use():
    desk = EncoderSession(ROUND, 0.0)
    desk.received(say("begin", seed=1), 0.0)
    desk.received(embedding(), 0.0)
    desk.received(say("begin", seed=2), 0.0)
    assert desk.computed(ONE, 0.0) == []
    (again,) = desk.received(embedding(), 0.0)
    assert isinstance(again, Compute)


def test_a_silent_device_leaves_and_is_told():
    machine = begun(idle_s=10.0)
    machine.hear(embedding(), now_s=5.0)
    assert machine.desk.tick(14.0) == []
    assert machine.desk.tick(15.0) == [DropSession(detail="the device was silent for 10 s")]
    assert machine.desk.tick(99.0) == []
    assert machine.desk.ended == "left"
    assert machine.hear(gradient(), now_s=20.0) == [("refused", 0, 0, "timeout")]
    assert machine.desk.held == 0


def test_a_device_that_has_finished_does_not_leave():
    machine = begun(idle_s=10.0)
    machine.hear(say("finish"))
    assert machine.desk.tick(1e6) == []


def test_a_computation_that_fails_ends_the_devices_round():
    desk = EncoderSession(ROUND, 0.0)
    desk.received(say("begin", seed=1), 0.0)
    desk.received(embedding(0, 0), 0.0)
    desk.received(embedding(0, 1), 0.0)
    assert desk.failed("no memory") == [DropSession(detail="no memory")]
    assert desk.held == 0


@given(st.integers(0, 10_000))
def test_steps_count_once_whatever_the_network_does(seed):
    """A device that asks until it is answered, over a network that loses, repeats and holds back messages."""
    random = randoms.Random(seed)
    machine = Machine(most_parts=3)
    late = []

    def ask(message, answer):
        for _ in range(200):
            sent = [message] if random.random() < 0.7 else []
            sent += [message] if random.random() < 0.3 else []
            if late and random.random() < 0.3:
                sent.append(late.pop(random.randrange(len(late))))
            late.append(message)
            random.shuffle(sent)
            for one in sent:
                for heard in machine.hear(one):
                    if heard[:3] == (answer, message.header.step, message.header.part) and random.random() < 0.7:
                        return
        raise AssertionError("no answer")

    steps = [random.randint(1, 3) for _ in range(random.randint(1, 4))]
    ask(say("begin", seed=1), "ready")
    for step, parts in enumerate(steps):
        order = random.sample(range(parts), parts)
        for part in order:
            ask(embedding(step, part), "representation")
        for part in range(parts):
            ask(gradient(step, part), "return")
        assert machine.desk.held <= 6
        if random.random() < 0.3:
            ask(say("mark", step + 1), "marked")
    ask(say("finish", len(steps)), "finished")
    back = [(step, part) for step, parts in enumerate(steps) for part in range(parts)]
    assert [done[1:] for done in machine.done if isinstance(done, tuple) and done[0] == "backward"] == back
    assert machine.done.count(ApplyStep()) == len(steps)
    assert machine.desk.ended == "finished"
    with pytest.raises(AssertionError):
        machine.desk.computed(ONE, 0.0)
