import msgspec
import pytest
import samples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker_server.rounds.actions import Abandon, Close, FetchUpdate, Learned, Note, Opened, Record, Send
from broker_server.rounds.coordinator import Coordinator
from broker_server.rounds.round_state import TRANSITIONS, UNANSWERED
from broker_server.rounds.rules import Rules
from broker_server.strategies.planner import Round
from edge_runtime.wire.blob import Blob
from edge_runtime.wire.compression import Updates
from edge_runtime.wire.messages import (
    Ack,
    Affinity,
    Finished,
    Plan,
    Progress,
    Refusal,
    Stop,
    Update,
)

BLOB = Blob(digest="0" * 64, size_bytes=5000)
HELLO = samples.hello(examples={"train": 1}, tasks=("a", "b"))


def planned(number=0, kind="train"):
    """A round and its plan."""
    about = Round(
        number=number,
        phase="merge",
        work=kind,
        group="a+b",
        tasks=("a", "b"),
        index=0,
        rounds=1,
        probe=False,
        data_split=None if kind == "train" else "test",
    )
    plan = Plan(
        work=kind,
        round=number,
        phase="merge",
        group="a+b",
        tasks=("a", "b"),
        bundle=BLOB,
        signature="0" * 128,
        weights=BLOB,
        training=samples.TRAINING if kind == "train" else None,
        updates=Updates(scheme="int8"),
        data_split=about.data_split,
        deadline_s=60.0,
    )
    return about, plan


def update(number=0, *, group="a+b", size=5000, scheme="fp32", base=None, examples=None, losses=None, affinity=None):
    return samples.update(
        number,
        group=group,
        weights=Blob(digest="1" * 64, size_bytes=size),
        scheme=scheme,
        base=base,
        examples={"a": 1, "b": 1} if examples is None else examples,
        train_loss=losses or {"a": 1.0},
        affinity=affinity,
    )


def evaluation(number=0, *, group="a+b", loss=None):
    return samples.evaluation(number, group=group, loss=loss or {"a": 1.0}, examples={"a": 1})


def refusal(number=0):
    return Refusal(round=number, group="a+b", reason="heat", detail="81 C")


def started(names="xyz", *, kind="train", seed=0, **rules):
    coordinator = Coordinator(Rules(**({"min_devices": len(names), "deadline_s": 60.0} | rules)), seed=seed)
    assert coordinator.offer(*planned(kind=kind), 0.0) == []
    actions = []
    for name in names:
        actions += coordinator.on_hello(name, HELLO, 0.0)
    return coordinator, actions


def plans(actions):
    return [a.device for a in actions if isinstance(a, Send) and isinstance(a.message, Plan)]


def acks(actions):
    return [(a.device, a.message.accepted) for a in actions if isinstance(a, Send) and isinstance(a.message, Ack)]


def closed(actions):
    """The number of the round that the last action closes, and the devices that count."""
    return actions[-1].closed.round.number, actions[-1].closed.counted


def kinds(actions):
    return [type(a) for a in actions]


def test_coordinator_begins_when_enough_are_online():
    coordinator = Coordinator(Rules(min_devices=2))
    coordinator.offer(*planned(), 0.0)
    assert coordinator.on_hello("x", HELLO, 0.0) == []
    assert coordinator.on_status("y", online=True, now_s=0.0) == []  # it may be about to say Hello
    actions = coordinator.on_hello("y", HELLO, 1.0)
    assert actions[0] == Opened(round=planned(0)[0], members=("x", "y"), quorum=1)
    assert plans(actions) == ["x", "y"]
    assert actions[1].message.deadline_s == 3600.0


def test_coordinator_begins_with_devices_that_said_hello_while_the_server_was_away():
    coordinator = Coordinator(Rules(min_devices=2), dict.fromkeys("xyz", HELLO))
    coordinator.offer(*planned(), 0.0)
    coordinator.on_status("x", online=True, now_s=0.0)
    coordinator.on_status("stranger", online=True, now_s=0.0)
    coordinator.on_status("y", online=True, now_s=1.0)
    assert coordinator.tick(2.9) == []
    assert coordinator.tick(3.0) == []
    assert plans(coordinator.tick(4.0)) == ["x", "y"]
    coordinator.finish("done")
    coordinator.on_status("z", online=True, now_s=5.0)
    assert coordinator.tick(8.0) == [Send(device="z", message=Finished(detail="done"))]
    assert coordinator.on_hello("stranger", HELLO, 9.0) == [Send(device="stranger", message=Finished(detail="done"))]


def labels_of(*tasks):
    return msgspec.structs.replace(HELLO, tasks=tasks)


def test_coordinator_asks_those_that_have_labels_of_a_task():
    coordinator = Coordinator(Rules(min_devices=4, quorum=3, deadline_s=60.0))
    coordinator.offer(*planned(), 0.0)
    for name, tasks in (("v", ("c",)), ("w", ("b",)), ("x", ("c", "d"))):
        assert coordinator.on_hello(name, labels_of(*tasks), 0.0) == []
    actions = coordinator.on_hello("y", labels_of("a", "c"), 0.0)
    assert actions[0] == Opened(round=planned(0)[0], members=("w", "y"), quorum=2)  # no more than can come
    assert plans(actions) == ["w", "y"]
    coordinator.on_refusal("w", refusal(), 1.0)
    assert plans(coordinator.tick(61.0)) == ["w", "y"]  # and not those without labels, when others are drawn
    assert plans(coordinator.on_hello("z", labels_of("c"), 62.0)) == []


def test_coordinator_waits_to_train_what_nobody_has_labels_of_and_does_not_wait_to_measure_it():
    for kind, asked in (("train", []), ("evaluate", ["x"])):
        coordinator = Coordinator(Rules(min_devices=1))
        coordinator.offer(*planned(kind=kind), 0.0)
        assert plans(coordinator.on_hello("x", labels_of("c"), 0.0)) == asked
    assert closed(coordinator.on_refusal("x", refusal(), 1.0)) == (0, ())
    coordinator = Coordinator(Rules(min_devices=1))
    coordinator.offer(*planned(), 0.0)
    coordinator.on_status("x", online=True, now_s=0.0)
    assert plans(coordinator.tick(10.0)) == []  # it has not said what it has
    assert plans(coordinator.on_hello("x", labels_of("a"), 11.0)) == ["x"]


def test_coordinator_draws_a_seeded_sample():
    drawn = {tuple(plans(started("uvwxyz", clients_per_round=3, seed=7)[1])) for _ in range(3)}
    assert len(drawn) == 1
    assert all(len(names) == 3 for names in drawn)
    others = {tuple(plans(started("uvwxyz", clients_per_round=3, seed=s)[1])) for s in range(20)}
    assert len(others) > 1


def test_coordinator_evaluates_on_all_devices():
    assert plans(started("uvwxyz", kind="evaluate", clients_per_round=3)[1]) == list("uvwxyz")


def test_coordinator_counts_an_update_once_it_is_whole():
    coordinator, _ = started("xy")
    assert kinds(coordinator.on_update("x", update(), 1.0)) == [FetchUpdate]
    actions = coordinator.on_update_received("x", 2.0)
    assert kinds(actions) == [Record, Send]
    assert acks(actions) == [("x", True)]
    coordinator.on_update("y", update(), 3.0)
    actions = coordinator.on_update_received("y", 4.0)
    assert closed(actions) == (0, ("x", "y"))
    assert coordinator.open is None


def test_coordinator_repeated_update_counts_once():
    coordinator, _ = started("xy")
    coordinator.on_update("x", update(), 1.0)
    coordinator.on_update_received("x", 1.0)
    again = coordinator.on_update("x", update(), 2.0)
    assert kinds(again) == [Send]
    assert acks(again) == [("x", True)]
    coordinator.on_refusal("y", refusal(), 3.0)
    assert acks(coordinator.on_update("x", update(), 4.0)) == [("x", True)]  # the round has closed with it
    assert acks(coordinator.on_update("y", update(), 4.0)) == [("y", False)]
    assert coordinator.counts["result late"] == 1
    assert coordinator.counts["result repeated"] == 2


def test_coordinator_update_announced_again_is_fetched_again():
    coordinator, _ = started("xy")
    coordinator.on_update("x", update(), 1.0)
    assert kinds(coordinator.on_update("x", update(), 2.0)) == [FetchUpdate]


def test_coordinator_evaluations():
    coordinator, _ = started("xy", kind="evaluate")
    assert acks(coordinator.on_update("x", update(), 1.0)) == [("x", False)]
    assert kinds(coordinator.on_evaluation("x", evaluation(), 1.0)) == [Record, Send]
    actions = coordinator.on_evaluation("y", evaluation(loss={"z": 1.0}), 1.0)
    assert acks(actions) == [("y", False)]
    assert closed(actions) == (0, ("x",))


def test_coordinator_evaluation_that_all_refuse_closes_with_nothing():
    coordinator, _ = started("xy", kind="evaluate")
    coordinator.on_refusal("x", refusal(), 1.0)
    assert closed(coordinator.on_refusal("y", refusal(), 1.0)) == (0, ())


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (update(size=4999), "4999 bytes"),
        (update(size=6025, scheme="int8", base="0" * 64), "at most 6024 are possible"),
        (update(size=1300, scheme="topk", base="1" * 64), "other weights"),
        (update(examples={"a": 0}), "no examples"),
        (update(examples={}), "no examples"),
        (update(examples={"z": 1}), "'z'"),
        (update(examples={"a": 1, "b": 2}), "2 examples, the device has announced 1"),
        (update(losses={"z": 1.0}), "'z'"),
        (update(affinity=Affinity(tasks=("z",), count=1, mean=((0.0,),), variance=None)), "'z'"),
        (update(affinity=Affinity(tasks=("a",), count=2, mean=((0.0,),), variance=((-1.0,),))), "negative"),
    ],
)
def test_coordinator_rejects_an_update_by_its_announcement(bad, why):
    coordinator, _ = started("xy")
    actions = coordinator.on_update("x", bad, 1.0)
    assert kinds(actions) == [Abandon, Send, Note]
    assert not actions[1].message.accepted
    assert why in actions[1].message.detail
    assert acks(coordinator.on_update("x", update(), 2.0)) == [("x", False)]


def test_coordinator_takes_a_small_update_of_the_round_s_weights():
    coordinator, actions = started("x", min_devices=1)
    assert [action.message.updates for action in actions if isinstance(action, Send)] == [Updates(scheme="int8")]
    for scheme in ("int8", "topk"):  # after a restart with other settings, what was trained before counts too
        small = update(size=1300, scheme=scheme, base=BLOB.digest)
        assert kinds(coordinator.on_update("x", small, 1.0)) == [FetchUpdate]


def test_coordinator_takes_any_number_of_examples_from_a_device_that_said_nothing():
    coordinator, _ = started("xy")
    coordinator.devices["x"].hello = None
    assert kinds(coordinator.on_update("x", update(examples={"a": 9}), 1.0)) == [FetchUpdate]
    coordinator, _ = started("xy")
    del coordinator.devices["x"]
    assert kinds(coordinator.on_update("x", update(examples={"a": 9}), 1.0)) == [FetchUpdate]


def test_coordinator_takes_affinities_of_the_group():
    coordinator, _ = started("xy")
    good = Affinity(tasks=("b", "a"), count=1, mean=((0.0, -1.0), (1.0, 0.0)), variance=None)
    assert kinds(coordinator.on_update("x", update(affinity=good), 1.0)) == [FetchUpdate]


def test_coordinator_rejects_weights_after_fetching():
    coordinator, _ = started("xy")
    coordinator.on_update("x", update(), 1.0)
    actions = coordinator.on_update_rejected("x", "not finite", 2.0)
    assert acks(actions) == [("x", False)]
    coordinator.on_update("y", update(), 3.0)
    assert closed(coordinator.on_update_received("y", 3.0)) == (0, ("y",))


def test_coordinator_nothing_was_fetched():
    coordinator, _ = started("xy")
    for name in "xq":
        with pytest.raises(ValueError, match="nothing was being fetched"):
            coordinator.on_update_received(name, 1.0)
        with pytest.raises(ValueError, match="nothing was being fetched"):
            coordinator.on_update_rejected(name, "", 1.0)
    with pytest.raises(ValueError, match="no round"):
        Coordinator(Rules()).on_update_received("x", 0.0)


@pytest.mark.parametrize("bad", [update(9), update(0, group="a"), evaluation(0)], ids=["round", "group", "work"])
def test_coordinator_declines_what_it_did_not_ask_for(bad):
    coordinator, _ = started("xy")
    say = coordinator.on_update if isinstance(bad, Update) else coordinator.on_evaluation
    assert acks(say("x", bad, 1.0)) == [("x", False)]
    assert coordinator.counts["result not asked for"] == 1
    assert acks(coordinator.on_update("stranger", update(), 1.0)) == [("stranger", False)]


def test_coordinator_counts_refusals_of_another_round():
    coordinator, _ = started("xy")
    assert coordinator.on_refusal("x", refusal(5), 1.0) == []
    assert coordinator.on_refusal("stranger", refusal(), 1.0) == []
    coordinator.on_refusal("x", refusal(), 1.0)
    assert coordinator.on_refusal("x", refusal(), 1.0) == []
    assert coordinator.counts["refusal of another round"] == 3
    assert coordinator.counts["refused: heat"] == 1


def test_coordinator_late_result_of_an_earlier_round():
    coordinator, _ = started("xy")
    for name in "xy":
        coordinator.on_update(name, update(), 1.0)
        coordinator.on_update_received(name, 1.0)
    coordinator.offer(*planned(4), 2.0)
    assert acks(coordinator.on_update("x", update(2), 3.0)) == [("x", False)]
    assert coordinator.counts["result late"] == 1


def test_coordinator_closes_at_the_deadline_with_a_quorum():
    coordinator, _ = started("xyz", quorum=1)
    coordinator.on_update("x", update(), 1.0)
    coordinator.on_update_received("x", 1.0)
    coordinator.on_update("y", update(), 1.0)
    assert coordinator.tick(53.0) == []
    assert coordinator.tick(59.0) == [Send(device="z", message=Stop(round=0, group="a+b"))]
    assert coordinator.tick(59.5) == []
    actions = coordinator.tick(60.0)
    assert actions[0] == Abandon(device="y")
    assert "without 2" in actions[1].text
    assert closed(actions) == (0, ("x",))


def test_coordinator_stops_those_who_train_before_each_deadline_unless_it_is_never_to():
    coordinator, _ = started("xy", quorum=2, stop_at=0.5)
    stop = Stop(round=0, group="a+b")
    assert coordinator.tick(30.0) == [Send(device=name, message=stop) for name in "xy"]
    coordinator.tick(60.0)  # extended
    assert coordinator.tick(61.0) == []
    coordinator.on_status("y", online=False, now_s=62.0)
    assert [each for each in coordinator.tick(90.0) if isinstance(each, Send)] == [Send(device="x", message=stop)]
    assert coordinator.on_hello("y", HELLO, 91.0)[-1] == Send(device="y", message=stop)
    never, _ = started("xy", quorum=2, stop_at=1.0)
    assert never.tick(59.9) == []
    measuring, _ = started("xy", quorum=2, kind="evaluate")
    assert measuring.tick(59.9) == []


def test_coordinator_extends_the_deadline_without_a_quorum():
    coordinator, _ = started("xyz", quorum=2)
    coordinator.on_update("x", update(), 1.0)
    coordinator.on_update_received("x", 1.0)
    coordinator.on_status("y", online=False, now_s=2.0)
    assert coordinator.on_hello("n", HELLO, 3.0) == []
    coordinator.on_update("z", update(), 4.0)
    actions = coordinator.tick(60.0)
    assert Abandon(device="y") in actions
    assert any("1 of the 2 results" in a.text for a in actions if isinstance(a, Note))
    assert Opened(round=planned(0)[0], members=("n", "x", "z"), quorum=2) in actions
    assert plans(actions) == ["n"]  # z is being fetched
    assert coordinator.tick(61.0) == []
    coordinator.on_update_received("z", 62.0)
    coordinator.on_update("n", update(), 63.0)
    assert closed(coordinator.on_update_received("n", 64.0)) == (0, ("n", "x", "z"))


def test_coordinator_at_the_deadline_asks_refusers_again():
    coordinator, _ = started("xy", quorum=2)
    coordinator.on_update("x", update(), 1.0)
    coordinator.on_update_received("x", 1.0)
    assert plans(coordinator.on_refusal("y", refusal(), 2.0)) == []
    assert plans(coordinator.tick(60.0)) == ["y"]


def test_coordinator_replaces_refusers_at_once_if_it_can():
    coordinator, _ = started("xy", quorum=2)
    coordinator.on_hello("n", HELLO, 1.0)
    coordinator.on_update("x", update(), 1.0)
    coordinator.on_update_received("x", 1.0)
    assert plans(coordinator.on_refusal("y", refusal(), 2.0)) == ["n"]


def test_coordinator_waits_for_members_that_are_all_away():
    coordinator, _ = started("xy")
    for name in "xy":
        coordinator.on_status(name, online=False, now_s=1.0)
    actions = coordinator.tick(60.0)
    assert plans(actions) == []
    assert set(coordinator.open.members) == {"x", "y"}
    assert plans(coordinator.on_hello("x", HELLO, 70.0)) == ["x"]


def test_coordinator_returning_member_gets_its_plan_again():
    coordinator, _ = started("xy")
    coordinator.on_status("x", online=False, now_s=1.0)
    assert coordinator.on_status("x", online=True, now_s=2.0) == []
    assert coordinator.tick(3.0) == []
    again = coordinator.tick(5.0)  # it did not say Hello: perhaps the server was away, not the device
    assert plans(again) == ["x"]
    assert again[0].message.deadline_s == 55.0
    assert coordinator.tick(9.0) == []
    assert plans(coordinator.on_hello("x", HELLO, 10.0)) == ["x"]
    coordinator.on_update("x", update(), 11.0)
    coordinator.on_update_received("x", 11.0)
    assert plans(coordinator.on_hello("x", HELLO, 12.0)) == []


def test_coordinator_member_that_leaves_again_is_not_sent_its_plan():
    coordinator, _ = started("xy")
    coordinator.on_status("x", online=False, now_s=1.0)
    coordinator.on_status("x", online=True, now_s=2.0)
    coordinator.on_status("x", online=False, now_s=2.5)
    assert coordinator.tick(9.0) == []


def test_coordinator_resumes_a_round():
    coordinator = Coordinator(Rules(deadline_s=60.0), {"x": HELLO, "y": HELLO})
    actions = coordinator.offer(*planned(3), 0.0, members=("x", "y", "z"), quorum=2, results={"x": update(3)})
    assert actions == []
    coordinator.on_status("y", online=True, now_s=1.0)
    assert plans(coordinator.tick(5.0)) == ["y"]
    assert plans(coordinator.on_hello("x", HELLO, 6.0)) == []
    coordinator.tick(61.0)
    assert set(coordinator.open.members) == {"x", "y"}  # z was never seen
    coordinator.on_update("y", update(3), 62.0)
    assert closed(coordinator.on_update_received("y", 63.0)) == (3, ("x", "y"))


def test_coordinator_resumes_a_round_that_has_all_it_needs():
    coordinator = Coordinator(Rules())
    actions = coordinator.offer(*planned(3), 0.0, members=("x",), quorum=1, results={"x": update(3)})
    assert kinds(actions) == [Close]
    assert closed(actions) == (3, ("x",))


def test_coordinator_progress():
    coordinator, _ = started("xy")
    progress = Progress(round=0, stage="train", done=1, total=2)
    coordinator.on_progress("x", progress)
    assert coordinator.devices["x"].progress == progress
    coordinator.on_progress("x", Progress(round=1, stage="train", done=1, total=2))
    coordinator.on_progress("stranger", progress)
    assert coordinator.counts["progress of another round"] == 2


def test_coordinator_tells_everybody_when_it_is_finished():
    coordinator, _ = started("xy")
    assert coordinator.finish("done") == [Send(device=d, message=Finished(detail="done")) for d in "xy"]
    assert coordinator.on_hello("z", HELLO, 1.0) == [Send(device="z", message=Finished(detail="done"))]
    assert acks(coordinator.on_update("x", update(), 1.0)) == [("x", False)]
    assert coordinator.tick(9.0) == []


NAMES = st.sampled_from("abcdef")


class Rounds(RuleBasedStateMachine):
    """Devices come, go, answer, repeat themselves and lie; rounds must stay what they are."""

    def __init__(self):
        super().__init__()
        self.now_s = 0.0
        self.rules = Rules(min_devices=2, clients_per_round=3, quorum=2, deadline_s=50.0)
        self.coordinator = Coordinator(self.rules, seed=1)
        self.number = 0
        self.recorded = {}
        self.closed = set()
        self.fetching = set()
        self.seen = set()
        self.do(self.coordinator.offer(*self.planned(), 0.0))

    def planned(self):
        return planned(self.number, "evaluate" if self.number % 4 == 3 else "train")

    def do(self, actions):
        for index, action in enumerate(actions):
            match action:
                case Opened(round=opened, members=members):
                    assert opened.number == self.number
                    assert set(members) <= self.seen
                case Send(device=device, message=Plan() as plan):
                    assert device in self.seen
                    assert plan.round == self.number
                    assert (self.number, device) not in self.recorded
                case Send(device=device, message=Ack(accepted=True) as ack):
                    assert (ack.round, device) in self.recorded
                case FetchUpdate(device=device):
                    assert (self.number, device) not in self.recorded
                    self.fetching.add(device)
                case Abandon(device=device):
                    self.fetching.discard(device)
                case Record(device=device, result=result):
                    assert (result.round, device) not in self.recorded, "an update counts once"
                    assert result.round == self.number
                    assert result.round not in self.closed
                    self.recorded[result.round, device] = result
                    self.fetching.discard(device)
                case Close(closed=closed):
                    number, devices = closed.round.number, closed.counted
                    assert number not in self.closed
                    assert not self.fetching, "nothing is fetched for a round that is closed"
                    assert set(devices) == {d for (n, d) in self.recorded if n == number}
                    evaluates = number % 4 == 3
                    assert len(devices) >= self.rules.quorum or evaluates
                    assert index == len(actions) - 1
                    self.closed.add(number)
                    self.number += 1
                    self.do(self.coordinator.offer(*self.planned(), self.now_s))

    @rule(device=NAMES)
    def hello(self, device):
        self.seen.add(device)
        self.do(self.coordinator.on_hello(device, HELLO, self.now_s))

    @rule(device=NAMES, online=st.booleans())
    def status(self, device, online):
        self.seen.add(device)
        self.do(self.coordinator.on_status(device, online=online, now_s=self.now_s))

    @rule(device=NAMES, back=st.integers(-1, 2), size=st.sampled_from([5000, 5000, 5000, 1]))
    def announce(self, device, back, size):
        number = max(0, self.number - back)
        if size != 5000:
            self.fetching.discard(device) if number == self.number else None
        self.do(self.coordinator.on_update(device, update(number, size=size), self.now_s))

    @rule(device=NAMES, back=st.integers(-1, 2))
    def evaluate(self, device, back):
        number = max(0, self.number - back)
        self.do(self.coordinator.on_evaluation(device, evaluation(number), self.now_s))

    @precondition(lambda self: self.fetching)
    @rule(data=st.data(), good=st.booleans())
    def fetched(self, data, good):
        device = data.draw(st.sampled_from(sorted(self.fetching)))
        if good:
            self.do(self.coordinator.on_update_received(device, self.now_s))
        else:
            self.fetching.discard(device)
            self.do(self.coordinator.on_update_rejected(device, "bad", self.now_s))

    @rule(device=NAMES, back=st.integers(-1, 1))
    def refuse(self, device, back):
        self.do(self.coordinator.on_refusal(device, refusal(max(0, self.number - back)), self.now_s))

    @rule(device=NAMES)
    def drop(self, device):
        if self.coordinator.is_asked(device):
            self.do(self.coordinator.drop(device, self.now_s))
            assert self.coordinator.open.round.number == self.number
        else:
            with pytest.raises(ValueError, match="no round waits"):
                self.coordinator.drop(device, self.now_s)

    @rule(pauses=st.booleans())
    def pause_or_resume(self, pauses):
        if pauses:
            self.coordinator.is_paused = True
        else:
            self.do(self.coordinator.resume(self.now_s))

    @rule(passed_s=st.sampled_from([0.1, 4.0, 60.0]))
    def tick(self, passed_s):
        self.now_s += passed_s
        self.do(self.coordinator.tick(self.now_s))

    @invariant()
    def round_is_open_and_its_members_are_known(self):
        current = self.coordinator.open
        assert current is not None
        assert current.round.number == self.number
        assert set(current.members) <= self.seen
        states = {d for d, state in current.members.items() if state == "counted"}
        assert states == {d for (n, d) in self.recorded if n == self.number}
        assert {d for d, state in current.members.items() if state == "fetching"} == self.fetching


TestRounds = pytest.mark.slow(Rounds.TestCase)
TestRounds.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_transitions_lead_out_of_unanswered_states_alone_unless_a_member_is_asked_again():
    assert {state for state, step in TRANSITIONS if step != "ask"} == set(UNANSWERED)
    assert {state for state, step in TRANSITIONS if step == "ask"} == {"counted"}


def test_coordinator_leaves_a_device_out_whose_message_could_not_be_handled():
    coordinator, _ = started()
    abandon, note, *_ = coordinator.on_fault("x", "a fault", 1.0)
    assert abandon == Abandon(device="x")
    assert note.text == "x is left out of this round: a fault"
    assert coordinator.open.members == {"x": "rejected", "y": "asked", "z": "asked"}
    assert coordinator.on_fault("x", "again", 1.0) == [Note(text="x is left out of this round: again")]


def test_coordinator_begins_no_round_while_it_is_paused():
    coordinator, _ = started("xy")
    coordinator.is_paused = True
    coordinator.on_update("x", update(), 1.0)
    coordinator.on_update("y", update(), 1.0)
    coordinator.on_update_received("x", 1.0)
    assert closed(coordinator.on_update_received("y", 1.0)) == (0, ("x", "y")), "the open round goes on to its end"
    assert coordinator.offer(*planned(1), 2.0) == []
    assert coordinator.tick(100.0) == []
    assert plans(coordinator.resume(101.0)) == ["x", "y"]


def test_coordinator_drops_a_device_for_the_rest_of_the_round():
    coordinator, _ = started()
    abandon, note, opened, *rest = coordinator.drop("x", 1.0)
    assert abandon == Abandon(device="x")
    assert "the operator has dropped it" in note.text
    assert opened.members == ("y", "z"), "a process that goes on with the round does not ask it again"
    assert rest == []
    assert coordinator.devices["x"].fault.startswith("the operator has dropped it")
    assert acks(coordinator.on_update("x", update(), 2.0)) == [("x", False)]
    with pytest.raises(ValueError, match="no round waits for x"):
        coordinator.drop("x", 2.0)


def test_coordinator_drops_the_only_device_and_keeps_the_round():
    coordinator, _ = started("x")
    assert kinds(coordinator.drop("x", 1.0)) == [Abandon, Note]
    assert coordinator.tick(61.0) != [], "at the deadline it is asked again: nobody else can do the work"


def test_coordinator_keeps_why_a_device_has_no_part_until_it_is_asked_again():
    coordinator, _ = started("xyz", quorum=3)
    coordinator.on_refusal("x", refusal(), 1.0)
    coordinator.on_update("y", update(size=1), 1.0)
    coordinator.on_update("z", update(), 1.0)
    coordinator.on_update_rejected("z", "not finite", 1.0)
    faults = {name: device.fault for name, device in coordinator.devices.items()}
    assert faults["x"] == "heat, 81 C"
    assert "bytes" in faults["y"]
    assert faults["z"] == "not finite"
    coordinator.tick(61.0)
    assert {device.fault for device in coordinator.devices.values()} == {""}


def test_coordinator_asks_again_for_what_a_round_that_cannot_be_closed_has_lost():
    coordinator, _ = started("xy")
    for name in "xy":
        coordinator.on_update(name, update(), 1.0)
        actions = coordinator.on_update_received(name, 1.0)
    assert isinstance(actions[-1], Close)
    about, plan = planned()
    again = coordinator.offer(about, plan, 2.0, members=("x", "y"), quorum=1, results={"y": update()})
    assert [(each.device, each.message.round) for each in again if isinstance(each, Send)] == [("x", 0)]
    assert coordinator.on_update("x", update(), 3.0) == [FetchUpdate(device="x", update=update())]


def test_coordinator_asks_nobody_who_trains_with_artifacts_alone_where_there_are_none():
    coordinator = Coordinator(Rules(min_devices=2), {})
    coordinator.on_hello("x", msgspec.structs.replace(HELLO, ort_training="require"), 0.0)
    coordinator.on_hello("y", HELLO, 0.0)
    coordinator.offer(*planned(), 0.0, is_portable=True)
    assert list(coordinator.open.members) == ["y"]


# Rounds that do not wait for the dead


def counted(coordinator, name, now_s):
    coordinator.on_update(name, update(coordinator.open.round.number), now_s)
    return coordinator.on_update_received(name, now_s)


def test_coordinator_goes_on_without_a_member_that_is_away_when_its_grace_is_over():
    coordinator, _ = started(grace_s=30.0, deadline_s=3600.0)
    coordinator.on_status("z", online=False, now_s=5.0)
    counted(coordinator, "x", 10.0)
    counted(coordinator, "y", 12.0)
    assert coordinator.tick(12.0) == []
    assert [type(action) for action in coordinator.tick(17.5)] == [Note]
    coordinator.tick(34.9)
    assert coordinator.open is not None
    actions = coordinator.tick(35.0)
    assert actions[0] == Note(text="round 0 closes without z: away for too long")
    assert closed(actions) == (0, ("x", "y"))


def test_coordinator_waits_on_for_a_member_that_is_away_without_a_quorum():
    coordinator, _ = started(grace_s=30.0, deadline_s=3600.0, quorum=3)
    coordinator.on_status("z", online=False, now_s=5.0)
    counted(coordinator, "x", 10.0)
    counted(coordinator, "y", 12.0)
    assert coordinator.open is not None
    coordinator.tick(100.0)
    assert coordinator.open.unanswered == ("z",)
    assert plans(coordinator.on_hello("z", HELLO, 200.0)) == ["z"]
    assert closed(counted(coordinator, "z", 210.0)) == (0, ("x", "y", "z"))


def test_coordinator_replaces_a_member_that_is_away_for_too_long_where_it_can():
    coordinator, _ = started("wxyz", clients_per_round=2, quorum=2, grace_s=30.0, deadline_s=3600.0)
    first, second = sorted(coordinator.open.members)
    coordinator.on_status(first, online=False, now_s=5.0)
    counted(coordinator, second, 10.0)
    assert len(plans(coordinator.tick(35.0))) == 1
    assert len(coordinator.open.members) == 3


def test_coordinator_that_has_begun_anew_gives_members_their_grace_again():
    coordinator = Coordinator(Rules(deadline_s=3600.0, grace_s=30.0), {"x": HELLO, "y": HELLO})
    coordinator.offer(*planned(3), 1000.0, members=("x", "y"), quorum=1, results={"x": update(3)})
    assert coordinator.tick(1000.0) == []
    assert [type(action) for action in coordinator.tick(1029.0)] == [Note]
    assert closed(coordinator.tick(1030.0)) == (3, ("x",))


def test_coordinator_does_not_measure_with_nobody_because_all_are_away():
    coordinator, _ = started("xy", kind="evaluate", grace_s=10.0)
    for name in "xy":
        coordinator.on_status(name, online=False, now_s=1.0)
    coordinator.tick(50.0)
    assert coordinator.open is not None


def test_coordinator_closes_with_the_first_results_that_are_enough():
    rules = {"clients_per_round": 2, "over_selection": 0.5, "min_devices": 3}
    coordinator, actions = started("wxyz", **rules)
    names = plans(actions)
    assert len(names) == 3
    assert coordinator.open.quorum == 1
    counted(coordinator, names[0], 5.0)
    coordinator.on_update(names[1], update(), 6.0)
    actions = counted(coordinator, names[2], 7.0)
    assert Abandon(device=names[1]) in actions
    assert Note(text="round 0 closes with the 2 results that are enough") in actions
    assert closed(actions) == (0, tuple(sorted((names[0], names[2]))))
    assert acks(coordinator.on_update(names[1], update(), 8.0)) == [(names[1], False)]


def test_coordinator_goes_on_with_as_many_results_as_are_enough_after_a_restart():
    rules = Rules(clients_per_round=1, over_selection=1.0)
    coordinator = Coordinator(rules, {"x": HELLO, "y": HELLO})
    actions = coordinator.offer(*planned(3), 0.0, members=("x", "y"), quorum=1, results={"x": update(3)})
    assert closed(actions) == (3, ("x",))


def test_coordinator_learns_a_deadline_and_hands_it_on():
    coordinator, _ = started(deadline_factor=2.0, deadline_s=3600.0)
    for number in range(2):
        for seconds, name in enumerate("xyz"):
            actions = counted(coordinator, name, 100.0 * number + 20.0 + seconds)
        assert isinstance(actions[-2], Learned)
        coordinator.offer(*planned(number + 1), 100.0 * (number + 1))
    learnt = actions[-2].learnt
    assert learnt.times == {"train": (20.0, 21.0, 22.0) * 2}
    assert learnt.paces == {"x": 20.0, "y": 21.0, "z": 22.0}
    assert coordinator.open.deadline_s == 200.0 + 44.0
    again = Coordinator(coordinator.rules, learnt=learnt)
    again.offer(*planned(5), 0.0, members=("x",), quorum=1)
    assert again.open.deadline_s == 44.0
    assert plans(again.on_hello("x", HELLO, 1.0)) == ["x"]
    actions = counted(again, "x", 3.0)  # an earlier process had asked it, so nobody knows how long it took
    assert actions[-2].learnt == learnt


def test_coordinator_that_is_paused_says_nothing_of_its_wait():
    coordinator = Coordinator(Rules(min_devices=2))
    coordinator.offer(*planned(), 0.0)
    coordinator.is_paused = True
    assert coordinator.tick(0.0) == coordinator.tick(60.0) == []
    coordinator.resume(60.0)
    coordinator.tick(60.0)
    (note,) = coordinator.tick(65.0)
    assert note.text == "round 0 has waited 5 s for devices that can take part: 0 online, it needs 2"
