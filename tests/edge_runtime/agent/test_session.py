from collections import Counter

import msgspec
import pytest
import samples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_runtime.agent.actions import (
    CancelWork,
    CheckFiles,
    ClosePlan,
    DropResult,
    Exit,
    SaveResult,
    SendMarker,
    SendMessage,
    SendRuns,
    StartWork,
    StopFetching,
    StopWork,
)
from edge_runtime.agent.activity import TRANSITIONS, Activity
from edge_runtime.agent.missing import MissingBlob
from edge_runtime.agent.session import (
    FIRST_ANNOUNCE_AGAIN_S,
    HELLO_SPREAD_S,
    MAX_ANNOUNCE_AGAIN_S,
    MAX_CORRUPT,
    LocalProtocolError,
    Session,
)
from edge_runtime.agent.state import Pending
from edge_runtime.wire.blob import ChunkRun
from edge_runtime.wire.fetch import PROBE_S
from edge_runtime.wire.messages import (
    Ack,
    Evaluation,
    Finished,
    Hello,
    LossProbe,
    Need,
    Progress,
    Refusal,
    RollCall,
    Status,
    Stop,
    Update,
)

ALL = ChunkRun(0, 3)
"""All chunks of a sample's blob."""
LAST = ChunkRun(2, 1)
ONLINE = SendMessage(Status(state="online"))


def plan(number, *, seed=0, **changes):
    return samples.plan(number, training=samples.training(seed=seed), **changes)


def update(of):
    return samples.update(of.round, group=of.group)


def wants(*blobs):
    return tuple(MissingBlob(b, (ChunkRun(0, b.chunks),)) for b in blobs)


def online(**kwargs):
    session = Session(samples.hello(), **kwargs)
    session.on_connected(0.0)
    return session


def fetching(*, number=0):
    session = online()
    session.on_message(plan(number), 0.0)
    session.on_files_checked(wants(samples.blob("a")), 0.0)
    return session


def working(*, number=0):
    session = online()
    session.on_message(plan(number), 0.0)
    session.on_files_checked((), 0.0)
    return session


def announcing(*, number=0):
    session = working(number=number)
    session.on_work_done(update(plan(number)), 0.0)
    return session


def superseded():
    """Round 0 is still being worked on, round 1 is wanted."""
    session = working()
    session.on_message(plan(1), 0.0)
    return session


def says(actions, kind):
    return [
        action.message for action in actions if isinstance(action, SendMessage) and isinstance(action.message, kind)
    ]


def ack(number, *, accepted=True):
    return Ack(round=number, group="a", accepted=accepted)


# The way through


def test_session_sends_its_status_and_hello_when_connected():
    session = Session(samples.hello())
    assert session.on_connected(0.0) == [ONLINE, SendMessage(samples.hello())]
    assert session.online


def test_session_goes_through_a_round():
    session = online()
    assert session.on_message(plan(0), 0.0) == [CheckFiles(plan(0))]
    assert session.on_files_checked(wants(samples.blob("a")), 0.0) == [
        SendMessage(Need(digest="a" * 64, runs=(ALL,))),
    ]
    session.on_run_kept("a" * 64, ChunkRun(0, 2), 0.1)
    assert session.on_blob_complete("a" * 64, LAST, 0.1) == [CheckFiles(plan(0))]
    assert session.on_files_checked((), 0.2) == [StartWork(plan(0))]
    assert session.activity is Activity.WORKING
    assert session.busy
    assert session.on_progress("train", 1, 2, 2.0) == [SendMessage(Progress(round=0, stage="train", done=1, total=2))]
    result = update(plan(0))
    assert session.on_work_done(result, 2.0) == [SaveResult(Pending(plan=plan(0), result=result)), SendMessage(result)]
    need, probe = Need(digest="c" * 64, runs=(ChunkRun(0, 1), LAST)), LossProbe(digest="c" * 64, number=7)
    assert session.on_message(need, 2.1) == [SendRuns(samples.blob("c"), (ChunkRun(0, 1), LAST))]
    assert session.on_message(probe, 2.1) == [SendMarker("c" * 64, 7)]
    assert session.on_message(ack(0), 2.2) == [ClosePlan(ack(0)), DropResult()]
    assert session.activity is Activity.IDLE
    assert session.on_message(Finished(detail="bye"), 2.3) == [Exit("bye")]
    assert session.errors == Counter()


def test_session_checks_files_again_when_all_blobs_are_complete():
    session = online()
    session.on_message(plan(0), 0.0)
    session.on_files_checked(wants(samples.blob("a", 5), samples.blob("b", 20)), 0.0)
    assert session.on_blob_complete("a" * 64, ChunkRun(0, 5), 0.0) == []
    assert CheckFiles(plan(0)) in session.on_blob_complete("b" * 64, ChunkRun(0, 20), 0.0)


def test_session_reports_a_download_s_progress_once_in_a_while():
    session = fetching()
    assert says(session.on_run_kept("a" * 64, ChunkRun(0, 1), 0.0), Progress) == [
        Progress(round=0, stage="download", done=1024, total=3072)
    ]
    assert says(session.on_run_kept("a" * 64, ChunkRun(1, 1), 0.1), Progress) == []


# The same plan, a newer one, an older one


def test_session_ignores_the_same_plan_while_it_works():
    session = working()
    assert session.on_message(plan(0, deadline_s=5.0), 1.0) == []
    assert session.activity is Activity.WORKING


def test_session_announces_again_when_the_same_plan_comes():
    session = announcing()
    assert session.on_message(plan(0), 1.0) == [SendMessage(update(plan(0)))]
    session.on_message(ack(0), 1.0)
    assert session.on_message(plan(0), 2.0) == [SendMessage(update(plan(0)))]
    assert session.activity is Activity.ANNOUNCING
    assert session.on_message(ack(0), 3.0) == [ClosePlan(ack(0))]
    assert session.activity is Activity.IDLE


def test_session_works_again_when_its_result_was_not_accepted():
    session = announcing()
    assert session.on_message(ack(0, accepted=False), 1.0) == [ClosePlan(ack(0, accepted=False)), DropResult()]
    assert session.on_message(plan(0), 2.0) == [CheckFiles(plan(0))]


def test_session_repeats_a_refusal_when_the_same_plan_comes():
    session = working()
    refusal = Refusal(round=0, group="a", reason="heat", detail="hot")
    assert session.on_work_failed("heat", "hot") == [SendMessage(refusal)]
    assert session.on_message(plan(0), 1.0) == [SendMessage(refusal)]
    assert session.activity is Activity.IDLE


def test_session_lets_a_newer_plan_supersede_work():
    session = working()
    assert session.on_message(plan(1), 1.0) == [CancelWork(), CheckFiles(plan(1))]
    assert session.on_files_checked((), 1.0) == []
    assert session.activity is Activity.WAITING
    assert session.on_work_stopped() == [StartWork(plan(1))]
    assert session.busy


def test_session_cancels_work_once_only():
    session = superseded()
    assert session.on_message(plan(2), 1.0) == [CheckFiles(plan(2))]
    assert session.on_work_stopped() == []
    assert session.on_files_checked((), 1.0) == [StartWork(plan(2))]


@pytest.mark.parametrize(
    "end", [lambda s: s.on_work_done(update(plan(0)), 1.0), lambda s: s.on_work_failed("error", "x")]
)
def test_session_drops_the_result_of_superseded_work(end):
    session = superseded()
    assert end(session) == []
    assert not session.busy
    session = superseded()
    session.on_files_checked((), 1.0)
    assert end(session) == [StartWork(plan(1))]


def test_session_can_refuse_the_newer_plan_while_the_older_work_stops():
    session = superseded()
    assert says(session.on_files_refused("bundle", "odd"), Refusal)[0].round == 1
    assert session.busy
    assert session.on_work_stopped() == []


def test_session_lets_a_newer_plan_supersede_a_transfer():
    session = fetching()
    assert session.on_message(plan(1), 1.0) == [StopFetching("a" * 64), CheckFiles(plan(1))]


def test_session_drops_a_result_when_its_round_is_over():
    session = announcing()
    assert session.on_message(plan(1), 1.0) == [DropResult(), CheckFiles(plan(1))]


def test_session_lets_another_plan_of_the_same_round_supersede():
    session = working()
    other = plan(0, group="b")
    assert session.on_message(other, 1.0) == [CancelWork(), CheckFiles(other)]


def test_session_drops_a_stale_plan():
    session = online()
    session.on_message(plan(5), 0.0)
    session.on_files_checked((), 0.0)
    assert session.on_message(plan(4), 1.0) == []
    assert session.errors == {"stale_plan": 1}
    assert session.plan == plan(5)


def test_session_says_a_changed_hello_at_once_or_when_it_is_online_again():
    session = working()
    grown = msgspec.structs.replace(samples.hello(), examples={"train": 9})
    assert session.on_hello_changed(grown, 1.0) == [SendMessage(grown)]
    session.on_disconnected()
    more = msgspec.structs.replace(samples.hello(), examples={"train": 10})
    assert session.on_hello_changed(more, 2.0) == []
    assert says(session.on_connected(3.0), Hello) == [more]


def test_session_takes_an_earlier_round_after_reconnecting():
    session = working(number=5)
    session.on_disconnected()
    session.on_connected(1.0)
    assert session.on_message(plan(0), 1.0) == [CancelWork(), CheckFiles(plan(0))]
    assert session.on_message(plan(0), 1.0) == []


def test_session_takes_an_earlier_round_when_idle():
    session = announcing(number=5)
    session.on_message(ack(5), 1.0)
    assert session.on_message(plan(0), 1.0) == [CheckFiles(plan(0))]


# The link comes and goes


def test_session_goes_on_with_transfers_after_reconnecting():
    session = fetching()
    session.on_run_kept("a" * 64, ChunkRun(0, 1), 0.1)
    session.on_disconnected()
    assert session.tick(100.0) == []
    *hello, probe = session.on_connected(101.0)
    assert hello == [ONLINE, SendMessage(samples.hello())]
    (number,) = [message.number for message in says([probe], LossProbe)]
    assert session.on_marker(number + 1, 101.5) == []
    assert session.on_marker(number, 102.0) == [SendMessage(Need(digest="a" * 64, runs=(ChunkRun(1, 2),)))]


def test_session_that_is_called_introduces_itself_and_asks_what_became_of_its_requests():
    session = fetching()
    *hello, probe = session.on_message(RollCall(), 5.0)
    assert hello == [ONLINE, SendMessage(samples.hello())]
    assert len(says([probe], LossProbe)) == 1
    assert announcing().on_message(RollCall(), 5.0) == [
        ONLINE,
        SendMessage(samples.hello()),
        SendMessage(update(plan(0))),
    ]


def test_session_takes_the_plan_of_a_server_that_has_begun_anew_when_it_is_called():
    session = working(number=4)
    assert session.on_message(plan(1), 1.0) == []
    session.on_message(RollCall(), 2.0)
    assert CheckFiles(plan(1)) in session.on_message(plan(1), 2.1)


def test_session_says_every_few_minutes_that_it_is_there():
    session, said_s = online(first_probe=HELLO_SPREAD_S + 7), []
    for now_s in range(400):
        if says(session.tick(float(now_s)), Hello):
            said_s.append(now_s)
    assert said_s == [127, 254, 381]


def test_session_is_silent_while_offline():
    session = fetching()
    session.on_disconnected()
    assert session.on_run_kept("a" * 64, ChunkRun(0, 1), 5.0) == []
    assert session.on_blob_complete("a" * 64, ChunkRun(1, 2), 5.0) == [CheckFiles(plan(0))]
    assert session.on_files_checked(wants(samples.blob("b")), 5.0) == []
    session.on_blob_complete("b" * 64, ALL, 5.0)
    assert session.on_files_checked((), 5.0) == [StartWork(plan(0))]
    assert session.on_progress("train", 1, 2, 6.0) == []
    assert session.on_work_done(update(plan(0)), 7.0) == [SaveResult(Pending(plan=plan(0), result=update(plan(0))))]
    assert session.on_connected(8.0) == [ONLINE, SendMessage(samples.hello()), SendMessage(update(plan(0)))]


def test_session_sends_a_refusal_when_it_is_online_again():
    session = working()
    session.on_disconnected()
    assert session.on_work_failed("heat", "hot") == []
    refusal = Refusal(round=0, group="a", reason="heat", detail="hot")
    assert session.on_connected(1.0) == [ONLINE, SendMessage(samples.hello()), SendMessage(refusal)]
    session.on_disconnected()
    assert session.on_connected(2.0) == [ONLINE, SendMessage(samples.hello())]


def test_session_works_on_while_the_link_is_down():
    session = working()
    session.on_disconnected()
    assert session.busy
    assert session.on_connected(1.0) == [ONLINE, SendMessage(samples.hello())]
    assert session.on_message(plan(0), 1.0) == []


# Time


def test_tick_announces_again_with_growing_pauses():
    session, now_s, pauses = announcing(), 0.0, []
    for _ in range(6):
        before = now_s
        while not says(session.tick(now_s), Update):
            now_s += 1.0
        pauses.append(now_s - before)
    assert pauses == [FIRST_ANNOUNCE_AGAIN_S, 30.0, 60.0, 120.0, MAX_ANNOUNCE_AGAIN_S, MAX_ANNOUNCE_AGAIN_S]


def test_tick_does_not_announce_while_the_server_fetches():
    session = announcing()
    session.on_message(Need(digest="c" * 64, runs=(ALL,)), 14.0)
    assert session.tick(20.0) == []


def test_tick_probes_after_a_silence_and_asks_for_nothing_twice():
    session = fetching()
    assert session.tick(0.9 * PROBE_S) == []
    (probe,) = says(session.tick(PROBE_S), LossProbe)
    assert session.tick(PROBE_S + 1.0) == []
    assert session.on_run_kept("a" * 64, ChunkRun(0, 2), PROBE_S + 2.0)[1:] == []  # it was slow
    assert session.on_marker(probe.number, PROBE_S + 3.0) == [SendMessage(Need(digest="a" * 64, runs=(LAST,)))]


def test_session_that_fetches_nothing_has_no_use_for_a_marker():
    assert online().on_marker(1, 0.0) == []


def test_tick_has_nothing_to_do_when_idle():
    assert online().tick(100.0) == []


# Blobs that are not what they should be


def test_session_downloads_a_corrupt_blob_again_and_then_gives_up():
    session = fetching()
    for _ in range(MAX_CORRUPT - 1):
        assert session.on_blob_corrupt("a" * 64, 1.0) == [SendMessage(Need(digest="a" * 64, runs=(ALL,)))]
    actions = session.on_blob_corrupt("a" * 64, 1.0)
    assert actions[0] == StopFetching("a" * 64)
    assert says(actions, Refusal)[0].reason == "bundle"
    assert session.errors == {"corrupt_blob": MAX_CORRUPT}


def test_session_requests_all_of_a_blob_again_whose_chunks_were_lost():
    session = online()
    session.on_message(plan(0), 0.0)
    session.on_files_checked((MissingBlob(samples.blob("a"), (LAST,)),), 0.0)
    assert session.on_run_kept("a" * 64, LAST, 0.1) == [SendMessage(Need(digest="a" * 64, runs=(ALL,)))]


def test_session_refuses_while_downloading_when_a_chunk_cannot_be_stored():
    session = fetching()
    actions = session.on_files_refused("error", "x" * 1000)
    assert actions[0] == StopFetching("a" * 64)
    assert len(says(actions, Refusal)[0].detail) == 500


# Restart


@pytest.mark.parametrize("result", [update(plan(3)), samples.evaluation(3)])
def test_session_announces_an_earlier_process_s_result(result):
    session = online(pending=Pending(plan=plan(3), result=result))
    assert session.on_message(plan(3, deadline_s=9.0), 0.0) == [SendMessage(result)]
    assert session.on_message(ack(3), 0.0) == [ClosePlan(ack(3)), DropResult()]


def test_session_takes_an_ack_before_the_plan_comes_again():
    session = online(pending=Pending(plan=plan(3), result=update(plan(3))))
    assert session.on_message(ack(3), 0.0) == [ClosePlan(ack(3)), DropResult()]


def test_session_drops_an_earlier_process_s_result_for_a_closed_round():
    session = online(pending=Pending(plan=plan(3), result=update(plan(3))))
    assert session.on_message(plan(4), 0.0) == [DropResult(), CheckFiles(plan(4))]


# What the server should not say


@pytest.mark.parametrize(
    "need",
    [
        Need(digest="d" * 64, runs=(ALL,)),
        Need(digest="c" * 64, runs=(ChunkRun(3, 1),)),
        Need(digest="c" * 64, runs=(ALL, ChunkRun(0, 4))),
    ],
)
def test_session_counts_an_unexpected_need(need):
    session = announcing()
    assert session.on_message(need, 0.0) == []
    assert session.errors == {"unexpected_need": 1}


def test_session_counts_a_need_when_there_is_no_update():
    for session in (online(), working(), online(pending=Pending(plan=plan(0), result=samples.evaluation(0)))):
        assert session.on_message(Need(digest="c" * 64, runs=(ALL,)), 0.0) == []
        assert session.errors == {"unexpected_need": 1}


def test_session_that_is_told_to_stop_ends_its_training():
    session = working()
    assert session.on_message(Stop(round=0, group="a"), 1.0) == [StopWork()]
    assert session.activity is Activity.WORKING
    assert says(session.on_work_done(update(plan(0)), 2.0), Update)


@pytest.mark.parametrize(
    ("make", "about"),
    [(working, (1, "a")), (working, (0, "b")), (fetching, (0, "a")), (announcing, (0, "a")), (online, (0, "a"))],
)
def test_session_counts_a_stop_of_what_it_does_not_train(make, about):
    session, stop = make(), Stop(round=about[0], group=about[1])
    assert session.on_message(stop, 1.0) == []
    assert session.errors == {"unexpected_stop": 1}


@pytest.mark.parametrize("message", [ack(1), Ack(round=0, group="b", accepted=True)])
def test_session_counts_a_stale_ack(message):
    session = announcing()
    assert session.on_message(message, 0.0) == []
    assert session.errors == {"stale_ack": 1}
    assert session.activity is Activity.ANNOUNCING


def test_session_counts_an_ack_of_nothing():
    session = online()
    session.on_message(ack(0), 0.0)
    assert session.errors == {"stale_ack": 1}


@pytest.mark.parametrize("accepted", [True, False])
def test_session_takes_the_ack_of_an_announcement_that_it_repeated_quietly(accepted):
    session = announcing()
    session.tick(FIRST_ANNOUNCE_AGAIN_S)
    session.on_message(ack(0, accepted=accepted), FIRST_ANNOUNCE_AGAIN_S)
    assert session.on_message(ack(0, accepted=accepted), FIRST_ANNOUNCE_AGAIN_S + 1.0) == []
    session.on_message(plan(1), FIRST_ANNOUNCE_AGAIN_S + 2.0)
    activity = session.activity
    assert session.on_message(ack(0, accepted=accepted), FIRST_ANNOUNCE_AGAIN_S + 3.0) == []
    assert session.activity is activity
    assert session.errors == Counter()


def test_session_cancels_everything_when_the_federation_ends():
    assert working().on_message(Finished(), 0.0) == [CancelWork(), Exit("")]
    assert fetching().on_message(Finished(), 0.0) == [StopFetching("a" * 64), Exit("")]


# What the caller should not do


@pytest.mark.parametrize(
    ("make", "act"),
    [
        (online, lambda s: s.on_connected(0.0)),
        (lambda: Session(samples.hello()), lambda s: s.on_disconnected()),
        (lambda: Session(samples.hello()), lambda s: s.on_message(plan(0), 0.0)),
        (online, lambda s: s.on_files_checked((), 0.0)),
        (working, lambda s: s.on_files_checked((), 0.0)),
        (online, lambda s: s.on_files_refused("error", "x")),
        (working, lambda s: s.on_files_refused("error", "x")),
        (online, lambda s: s.on_run_kept("a" * 64, ALL, 0.0)),
        (fetching, lambda s: s.on_run_kept("f" * 64, ALL, 0.0)),
        (fetching, lambda s: s.on_blob_complete("f" * 64, ALL, 0.0)),
        (online, lambda s: s.on_blob_complete("a" * 64, ALL, 0.0)),
        (fetching, lambda s: s.on_blob_corrupt("f" * 64, 0.0)),
        (online, lambda s: s.on_work_done(update(plan(0)), 0.0)),
        (working, lambda s: s.on_work_done(update(plan(1)), 0.0)),
        (online, lambda s: s.on_work_failed("error", "x")),
        (online, lambda s: s.on_work_stopped()),
        (working, lambda s: s.on_work_stopped()),
    ],
)
def test_session_refuses_an_input_that_is_not_possible_and_changes_nothing(make, act):
    session = make()
    before = {name: value for name, value in vars(session).items() if name != "_fetch"}
    with pytest.raises(LocalProtocolError):
        act(session)
    assert {name: value for name, value in vars(session).items() if name != "_fetch"} == before


def test_session_that_has_ended_takes_nothing_more():
    session = online()
    session.on_message(Finished(), 0.0)
    for act in (lambda: session.on_message(plan(0), 0.0), lambda: session.on_connected(0.0)):
        with pytest.raises(LocalProtocolError):
            act()


def test_session_names_the_transition_that_does_not_exist():
    session = Session(samples.hello())
    with pytest.raises(LocalProtocolError, match="'done' is not possible while IDLE"):
        session._move("done")


def test_transitions_name_every_activity_and_every_one_can_be_left():
    assert set(TRANSITIONS) == set(Activity)
    assert all("finished" in TRANSITIONS[activity] for activity in Activity if activity is not Activity.ENDED)


class Device(RuleBasedStateMachine):
    """A session between a hostile link and a server that says anything, with the caller's duties done here."""

    def __init__(self):
        super().__init__()
        self.session = Session(samples.hello())
        self.now_s = 0.0
        self.needs = []
        self.todo = None
        self.wanted_stage = 0
        self.open = {}
        self.work = None
        self.journal = None

    def do(self, actions):
        for action in actions:
            match action:
                case StopFetching(digest):
                    del self.open[digest]
                case CheckFiles(p):
                    assert p == self.session.plan
                    self.todo = p
                    self.open.clear()
                case StartWork(p):
                    assert self.work is None
                    self.work = p
                case CancelWork():
                    assert self.work is not None
                case SaveResult(pending):
                    self.journal = pending
                case DropResult():
                    assert self.journal is not None
                    self.journal = None
                case SendMessage(Update() | Evaluation() as result):
                    assert self.session.online
                    assert self.session.plan is not None
                    assert (result.round, result.group) == (self.session.plan.round, self.session.plan.group)
                    assert self.session.activity is Activity.ANNOUNCING
                case SendMessage():
                    assert self.session.online
        if self.todo is not None:
            self.answer_fetch()

    def answer_fetch(self):
        self.todo = None
        stages = {0: ("a",), 1: ("b", "d"), 2: ()}
        stage = stages[self.wanted_stage % 3]
        self.wanted_stage += 1
        self.open = {letter * 64: set(range(3)) for letter in stage}
        self.do(self.session.on_files_checked(wants(*(samples.blob(letter) for letter in stage)), self.now_s))

    @precondition(lambda self: not self.session.online)
    @rule()
    def connect(self):
        self.do(self.session.on_connected(self.now_s))

    @precondition(lambda self: self.session.online)
    @rule()
    def disconnect(self):
        self.session.on_disconnected()

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 100.0]))
    def time(self, seconds):
        self.now_s += seconds
        self.do(self.session.tick(self.now_s))

    @precondition(lambda self: self.session.online)
    @rule(number=st.integers(0, 3), seed=st.integers(0, 1), deadline_s=st.sampled_from([1.0, 2.0]))
    def plan(self, number, seed, deadline_s):
        self.do(self.session.on_message(plan(number, seed=seed, deadline_s=deadline_s), self.now_s))

    @precondition(lambda self: self.session.online)
    @rule(
        message=st.one_of(
            st.builds(Ack, round=st.integers(0, 3), group=st.sampled_from("ab"), accepted=st.booleans()),
            st.builds(
                Need,
                digest=st.sampled_from(["c" * 64, "a" * 64]),
                runs=st.sampled_from([(ALL,), (LAST,), (ChunkRun(9, 1),)]),
            ),
        )
    )
    def say(self, message):
        self.do(self.session.on_message(message, self.now_s))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), corrupt=st.booleans())
    def chunk(self, data, corrupt):
        digest = data.draw(st.sampled_from(sorted(self.open)))
        index = data.draw(st.integers(0, 2))
        missing = self.open[digest]
        if missing == {index} and corrupt:
            self.open[digest] = set(range(3))
            self.do(self.session.on_blob_corrupt(digest, self.now_s))
        elif missing == {index}:
            del self.open[digest]
            self.do(self.session.on_blob_complete(digest, ChunkRun(index, 1), self.now_s))
        else:
            missing.discard(index)
            self.do(self.session.on_run_kept(digest, ChunkRun(index, 1), self.now_s))

    @precondition(lambda self: self.work is not None)
    @rule(kind=st.sampled_from(["done", "failed", "stopped", "progress"]))
    def end_work(self, kind):
        of, wanted = self.work, self.session.activity is Activity.WORKING
        if kind == "progress":
            self.do(self.session.on_progress("train", 1, 2, self.now_s))
            return
        if kind == "stopped" and wanted:
            with pytest.raises(LocalProtocolError):
                self.session.on_work_stopped()
            return
        self.work = None
        if kind == "done":
            self.do(self.session.on_work_done(update(of), self.now_s))
        elif kind == "failed":
            self.do(self.session.on_work_failed("error", "x"))
        else:
            self.do(self.session.on_work_stopped())

    @rule(mistake=st.sampled_from(["connected", "disconnected", "wanted", "done"]))
    def mistake(self, mistake):
        session = self.session
        before = dict(vars(session))
        if mistake == "connected" and session.online:
            act = lambda: session.on_connected(self.now_s)  # noqa: E731
        elif mistake == "disconnected" and not session.online:
            act = session.on_disconnected
        elif mistake == "wanted":
            act = lambda: session.on_files_checked((), self.now_s)  # noqa: E731
        elif mistake == "done" and self.work is None:
            act = lambda: session.on_work_done(update(plan(0)), self.now_s)  # noqa: E731
        else:
            return
        with pytest.raises(LocalProtocolError):
            act()
        assert vars(session) == before

    @rule()
    def a_good_link_always_leads_to_an_answer(self):
        """From wherever it is: with a link and a server that behave, a new plan ends in an accepted update."""
        if not self.session.online:
            self.connect()
        newest = plan(9, seed=int(self.now_s * 10))
        self.do(self.session.on_message(newest, self.now_s))
        for _ in range(50):
            if self.work is not None:
                self.end_work("done" if self.session.activity is Activity.WORKING else "stopped")
            elif self.open:
                digest, missing = next(iter(self.open.items()))
                if len(missing) == 1:
                    del self.open[digest]
                    self.do(self.session.on_blob_complete(digest, ChunkRun(missing.pop(), 1), self.now_s))
                else:
                    self.do(self.session.on_run_kept(digest, ChunkRun(missing.pop(), 1), self.now_s))
            elif self.session.activity is Activity.ANNOUNCING:
                break
        assert self.session.activity is Activity.ANNOUNCING
        self.do(self.session.on_message(Ack(round=9, group="a", accepted=True), self.now_s))
        assert self.session.activity is Activity.IDLE
        # Later plans of these tests have lower rounds again: the server has begun anew.

    @invariant()
    def one_work_at_a_time(self):
        assert self.session.busy == (self.work is not None)

    @invariant()
    def the_journal_holds_what_is_announced(self):
        if self.session.activity is Activity.ANNOUNCING and self.journal is not None:
            assert self.journal.plan == msgspec.structs.replace(
                self.session.plan, deadline_s=self.journal.plan.deadline_s
            )


TestDevice = Device.TestCase
TestDevice.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
