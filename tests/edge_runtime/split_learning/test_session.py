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


def request(kind, step=0, part=0, round_number=ROUND, arrays=(), seed=0):
    header = SplitHeader(kind=kind, round=round_number, step=step, part=part, samples=len(arrays), seed=seed)
    return SplitMessage(header=header, arrays=tuple(arrays))


def embedding(step=0, part=0):
    return request("embedding", step, part, arrays=ONE)


def gradient(step=0, part=0):
    return request("gradient", step, part, arrays=ONE)


class Machine:
    """Runs the computations of a session at once, and records its actions."""

    def __init__(self, **options):
        self.session = EncoderSession(ROUND, 0.0, **options)
        self.done, self.replies = [], []

    def receive(self, message, now_s=0.0):
        self.replies = []
        self._do(self.session.on_message(message, now_s))
        return [(h.kind, h.step, h.part, h.reason) for h in self.replies]

    def _do(self, actions):
        for action in actions:
            if isinstance(action, Reply):
                self.replies.append(action.message.header)
            elif isinstance(action, Compute):
                self.done.append((action.kind, action.step, action.part))
                self._do(self.session.on_computed(ONE, 0.0))
            else:
                self.done.append(action)


def begun(**options):
    machine = Machine(**options)
    assert machine.receive(request("begin", seed=5)) == [("ready", 0, 0, None)]
    return machine


def stepped(machine, step, parts=1):
    for part in range(parts):
        assert machine.receive(embedding(step, part)) == [("representation", step, part, None)]
        assert machine.receive(gradient(step, part)) == [("return", step, part, None)]


def test_a_round_of_two_steps():
    machine = begun()
    stepped(machine, 0, parts=2)
    assert ApplyStep() not in machine.done  # the step may have more parts
    stepped(machine, 1)
    assert machine.receive(request("finish", 2)) == [("finished", 2, 0, None)]
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
    assert machine.session.ended == "finished"
    assert machine.receive(request("finish", 2)) == [("finished", 2, 0, None)]
    assert machine.receive(embedding(2)) == [("refused", 2, 0, "step")]
    assert machine.receive(request("finish", 3)) == [("refused", 3, 0, "step")]
    assert machine.done.count(ApplyStep()) == 2


def test_a_repeated_request_gets_its_reply_again_and_is_done_once():
    machine = begun()
    for _ in range(3):
        assert machine.receive(embedding()) == [("representation", 0, 0, None)]
    for _ in range(3):
        assert machine.receive(gradient()) == [("return", 0, 0, None)]
    assert machine.receive(embedding()) == []  # it has been returned: the device has no use for z
    assert machine.done == [("forward", 0, 0), ("backward", 0, 0)]
    stepped(machine, 1)
    assert machine.receive(gradient(0)) == [("refused", 0, 0, "unknown")]
    assert machine.receive(embedding(0)) == [("refused", 0, 0, "step")]
    assert machine.done.count(ApplyStep()) == 1


def test_backward_passes_run_in_the_order_of_the_parts():
    machine = begun()
    for part in (2, 0, 1):
        machine.receive(embedding(0, part))
    assert machine.receive(gradient(0, 1)) == []
    assert machine.receive(gradient(0, 1)) == []
    assert machine.receive(gradient(0, 2)) == []
    assert machine.receive(gradient(0, 0)) == [("return", 0, part, None) for part in range(3)]
    assert machine.done[3:] == [("backward", 0, part) for part in range(3)]


def test_one_thing_is_computed_at_a_time():
    session = EncoderSession(ROUND, 0.0)
    session.on_message(request("begin", seed=1), 0.0)
    (first,) = session.on_message(embedding(0, 0), 0.0)
    assert session.on_message(embedding(0, 1), 0.0) == []
    assert session.on_message(embedding(0, 0), 0.0) == []  # it is being computed
    assert session.on_message(gradient(0, 0), 0.0)[0].message.header.reason == "unknown"
    reply, second = session.on_computed(ONE, 0.0)
    assert (first.part, reply.message.header.part, second.part) == (0, 0, 1)
    assert session.on_tick(1e9) == []  # while we compute, the device waits for us
    assert len(session.on_computed(ONE, 1e9)) == 1
    assert session.on_tick(1e9 + 1) == []


def test_a_step_that_is_not_complete_is_not_left():
    machine = begun()
    machine.receive(embedding())
    for message in (embedding(1), embedding(2), request("mark", 1), request("finish", 1)):
        step = message.header.step
        assert machine.receive(message) == [("refused", step, 0, "step")]
    assert machine.receive(gradient(1)) == [("refused", 1, 0, "unknown")]
    assert machine.receive(gradient()) == [("return", 0, 0, None)]
    assert ApplyStep() not in machine.done


def test_refusals_name_what_was_refused():
    machine = begun()
    machine.receive(gradient(4))
    (header,) = machine.replies
    assert (header.about, header.step, header.round) == ("gradient", 4, ROUND)


def test_kinds_that_no_device_sends_and_other_rounds_are_refused():
    machine = begun()
    assert machine.receive(request("ready")) == [("refused", 0, 0, "invalid")]
    assert machine.receive(request("embedding", round_number=2, arrays=ONE)) == [("refused", 0, 0, "round")]
    assert machine.done == []


def test_no_more_parts_at_once_than_allowed():
    machine = begun(max_parts=2)
    for part in range(2):
        machine.receive(embedding(0, part))
    assert machine.receive(embedding(0, 2)) == [("refused", 0, 2, "full")]
    machine.receive(gradient(0, 0))
    assert machine.receive(embedding(0, 2)) == [("representation", 0, 2, None)]
    for part in range(1, 200):
        machine.receive(gradient(0, part))
        machine.receive(embedding(0, part + 2))
        assert machine.session.held_arrays <= 4
    assert machine.receive(gradient(0, 0)) == [("refused", 0, 0, "unknown")]  # its answer is gone


def test_probes_change_nothing_and_are_bounded():
    machine = begun()
    machine.receive(embedding())
    assert machine.receive(request("probe", 0, 9, arrays=ONE)) == [("representation", 0, 9, None)]
    assert machine.receive(request("probe", 1, 9, arrays=ONE)) == [("refused", 1, 9, "step")]
    assert machine.receive(gradient()) == [("return", 0, 0, None)]
    assert ApplyStep() not in machine.done
    assert machine.receive(request("probe", 1, 9, arrays=ONE)) == [("representation", 1, 9, None)]
    assert machine.done[-2:] == [ApplyStep(), ("predict", 1, 9)]
    session = EncoderSession(ROUND, 0.0, max_parts=2)
    session.on_message(request("begin", seed=1), 0.0)
    reasons = []
    for i in range(10):
        for action in session.on_message(request("probe", 0, i, arrays=ONE), 0.0):
            if isinstance(action, Reply):
                reasons.append(action.message.header.reason)
    assert reasons == ["full"] * 5
    assert session.held_arrays == 4


def test_only_finish_has_a_reply_after_the_end():
    machine = begun()
    stepped(machine, 0)
    for _ in range(2):
        assert machine.receive(request("finish", 1)) == [("finished", 1, 0, None)]
    assert machine.done.count(FinishSession()) == 1
    assert machine.receive(request("probe", 1, 3, arrays=ONE)) == [("refused", 1, 3, "step")]


def test_mark_and_begin_again():
    machine = begun()
    stepped(machine, 0)
    assert machine.receive(request("mark", 1)) == [("marked", 1, 0, None)]
    assert machine.done[-2:] == [ApplyStep(), SaveState(step=1)]
    assert machine.receive(request("mark", 1)) == [("marked", 1, 0, None)]
    assert machine.done.count(SaveState(step=1)) == 1
    stepped(machine, 1)
    stepped(machine, 2)
    machine.receive(embedding(3))
    assert machine.receive(request("begin", 2, seed=6)) == [("refused", 2, 0, "step")]
    assert "begin at 0 or 1, or at 3" in machine.replies[0].detail
    assert machine.receive(request("begin", 1, seed=7)) == [("ready", 1, 0, None)]
    assert machine.done[-1] == RestoreState(step=1)
    stepped(machine, 1)
    assert machine.receive(request("begin", 0, seed=8)) == [("ready", 0, 0, None)]
    assert machine.done[-1] == RestoreState(step=0)
    assert machine.session.step == 0


def test_begin_at_the_current_step_drops_its_parts():
    machine = begun()
    stepped(machine, 0)
    machine.receive(embedding(1))
    machine.receive(request("begin", 1, seed=9))
    assert machine.done[-1] == RestoreState(step=None)
    assert machine.receive(gradient(1)) == [("refused", 1, 0, "unknown")]
    stepped(machine, 1)
    machine.receive(request("begin", 2, seed=10))  # all of step 1 was returned: it counts
    assert machine.done[-1] == ApplyStep()
    assert machine.receive(request("begin", 5, seed=11)) == [("refused", 5, 0, "step")]
    assert "begin at 0, or at 2" in machine.replies[0].detail


def test_begin_that_comes_late_changes_nothing():
    machine = begun()
    stepped(machine, 0)
    machine.receive(embedding(1))
    assert machine.receive(request("begin", seed=5)) == [("ready", 0, 0, None)]
    assert machine.receive(gradient(1)) == [("return", 1, 0, None)]
    assert RestoreState(step=0) not in machine.done


def test_a_result_from_before_a_begin_is_dropped():
    session = EncoderSession(ROUND, 0.0)
    session.on_message(request("begin", seed=1), 0.0)
    session.on_message(embedding(), 0.0)
    session.on_message(request("begin", seed=2), 0.0)
    assert session.on_computed(ONE, 0.0) == []
    (again,) = session.on_message(embedding(), 0.0)
    assert isinstance(again, Compute)


def test_a_silent_device_leaves_and_is_refused():
    machine = begun(idle_s=10.0)
    machine.receive(embedding(), now_s=5.0)
    assert machine.session.on_tick(14.0) == []
    assert machine.session.on_tick(15.0) == [DropSession(detail="the device was silent for 10 s")]
    assert machine.session.on_tick(99.0) == []
    assert machine.session.ended == "left"
    assert machine.receive(gradient(), now_s=20.0) == [("refused", 0, 0, "timeout")]
    assert machine.session.held_arrays == 0


def test_a_device_that_has_finished_does_not_leave():
    machine = begun(idle_s=10.0)
    machine.receive(request("finish"))
    assert machine.session.on_tick(1e6) == []


def test_a_computation_that_fails_ends_the_devices_round():
    session = EncoderSession(ROUND, 0.0)
    session.on_message(request("begin", seed=1), 0.0)
    session.on_message(embedding(0, 0), 0.0)
    session.on_message(embedding(0, 1), 0.0)
    assert session.on_failed("no memory") == [DropSession(detail="no memory")]
    assert session.held_arrays == 0


@given(st.integers(0, 10_000))
def test_steps_count_once_whatever_the_network_does(seed):
    """A device that sends until it has its reply, over a network that loses, repeats and holds back messages."""
    random = randoms.Random(seed)
    machine = Machine(max_parts=3)
    late = []

    def ask(message, reply):
        for _ in range(200):
            sent = [message] if random.random() < 0.7 else []
            sent += [message] if random.random() < 0.3 else []
            if late and random.random() < 0.3:
                sent.append(late.pop(random.randrange(len(late))))
            late.append(message)
            random.shuffle(sent)
            for one in sent:
                for heard in machine.receive(one):
                    if heard[:3] == (reply, message.header.step, message.header.part) and random.random() < 0.7:
                        return
        raise AssertionError("no reply")

    steps = [random.randint(1, 3) for _ in range(random.randint(1, 4))]
    ask(request("begin", seed=1), "ready")
    for step, parts in enumerate(steps):
        order = random.sample(range(parts), parts)
        for part in order:
            ask(embedding(step, part), "representation")
        for part in range(parts):
            ask(gradient(step, part), "return")
        assert machine.session.held_arrays <= 6
        if random.random() < 0.3:
            ask(request("mark", step + 1), "marked")
    ask(request("finish", len(steps)), "finished")
    back = [(step, part) for step, parts in enumerate(steps) for part in range(parts)]
    assert [done[1:] for done in machine.done if isinstance(done, tuple) and done[0] == "backward"] == back
    assert machine.done.count(ApplyStep()) == len(steps)
    assert machine.session.ended == "finished"
    with pytest.raises(AssertionError):
        machine.session.on_computed(ONE, 0.0)
