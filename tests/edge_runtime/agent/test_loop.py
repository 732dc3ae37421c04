import contextlib
import dataclasses
import itertools
import shutil
import threading
import time

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_runtime.agent.carried_state import CarriedState
from edge_runtime.agent.limits import PlanLimits
from edge_runtime.agent.state import LinkSpeeds, State
from edge_runtime.agent.work import WorkCancelled, WorkRefused
from edge_runtime.energy.account import EnergyAccount
from edge_runtime.wire.blob import ChunkRun, describe
from edge_runtime.wire.compression import Updates, decode
from edge_runtime.wire.link import Connected, Disconnected
from edge_runtime.wire.messages import (
    Ack,
    Evaluation,
    FinalEnergy,
    Finished,
    Hello,
    Need,
    Progress,
    Refusal,
    Stop,
    Update,
)
from edge_runtime.wire.tensors import pack, unpack

OFFLINE = b'{"state":"offline"}'


def weights_held(world):
    return sorted(path.name for path in (world.state_folder / "weights").iterdir())


def test_agent_trains_evaluates_and_finishes(world):
    ending = world.run(plans=[world.bundle.plan(0), world.bundle.plan(1, value=7.0), world.bundle.evaluation(2)])
    assert ending.kind == "finished"
    first, second, evaluation = world.server.results
    assert isinstance(evaluation, Evaluation)
    assert evaluation.loss == {"a": 0.5, "b": 0.5}
    np.testing.assert_array_equal(world.server.weights(first), np.float32(1.0))
    np.testing.assert_array_equal(world.server.weights(second), np.float32(8.0))
    assert first.bytes_down > second.bytes_down > 2400  # the graphs are not fetched a second time
    graph = world.bundle.manifest.graphs["encoder.0.forward"]
    assert world.server.sent[graph.digest] == -(-graph.size_bytes // 1024)
    assert world.link.retained[world.server.topics.status("kitchen")] == OFFLINE
    assert world.link.closed
    assert not (world.state_folder / "pending.json").exists()
    assert not world.agent.session.errors


def test_agent_gives_signs_of_life_while_it_runs(world):
    beats = []
    world.beat = lambda: beats.append(len(world.server.results))
    assert world.run(plans=[world.bundle.plan(0), world.bundle.plan(1, value=7.0)]).kind == "finished"
    assert {0, 1} <= set(beats)


def test_agent_drops_weights_of_closed_rounds(world):
    world.run(plans=[world.bundle.plan(r) for r in range(4)])
    last = world.server.results[-1]
    assert set(weights_held(world)) == {last.weights.digest, world.bundle.weights(3.0).digest}


def test_agent_sends_graphs_of_a_split_group_only_once(world):
    groups = [world.make_bundle(tasks=("a",)), world.make_bundle(tasks=("b",))]
    world.server.bundles += groups
    world.run(plans=[world.bundle.plan(0), groups[0].plan(1), groups[1].plan(2)])
    assert len(world.server.results) == 3
    assert all(world.server.sent[f.digest] == -(-f.size_bytes // 1024) for f in world.bundle.manifest.graphs.values())


@pytest.mark.slow
def test_agent_asks_again_for_lost_chunks(world):
    lost = set()

    def mangle(digest, index, data):
        if index == 1 and digest not in lost:
            lost.add(digest)
            return None
        return data

    world.server.mangle = mangle
    assert world.run(plans=[world.bundle.plan(0)]).kind == "finished"
    assert len(world.server.results) == 1


def test_agent_throws_a_corrupt_blob_away_and_fetches_it_again(world):
    spoiled = set()

    def mangle(digest, index, data):
        if digest not in spoiled:
            spoiled.add(digest)
            return bytes(len(data))
        return data

    world.server.mangle = mangle
    world.run(plans=[world.bundle.plan(0)])
    assert len(world.server.results) == 1
    assert world.agent.session.errors["corrupt_blob"] == len(spoiled)


def test_agent_refuses_a_graph_that_never_matches_its_digest(world):
    graph = world.bundle.manifest.graphs["encoder.0.forward"].digest
    world.server.mangle = lambda digest, _index, data: bytes(len(data)) if digest == graph else data
    assert world.run(plans=[world.bundle.plan(0)]).kind == "finished"
    (refusal,) = world.server.said(Refusal)
    assert refusal.reason == "bundle"
    assert graph[:12] in refusal.detail
    assert world.worker.calls == []


def test_agent_refuses_a_foreign_signature_and_keeps_nothing_of_it(world):
    foreign = world.make_bundle(tasks=("a",), key=Ed25519PrivateKey.generate())
    world.server.bundles.append(foreign)
    world.run(plans=[foreign.plan(0), world.bundle.plan(1)])
    (refusal,) = world.server.said(Refusal)
    assert (refusal.round, refusal.reason) == (0, "bundle")
    assert "not signed" in refusal.detail
    assert not (world.state_folder / "blobs" / foreign.bundle.digest).exists()
    assert [result.round for result in world.server.results] == [1]


def test_agent_refuses_weights_with_nan(world):
    vector = np.zeros(world.bundle.table.size, np.float32)
    vector[3] = np.nan
    good = world.bundle.weights(0.0)
    data = pack(world.bundle.table, vector)
    plan = world.bundle.plan(0)
    blob = describe(data, chunk_bytes=good.chunk_bytes)
    world.bundle.blobs[blob.digest] = data
    world.run(plans=[msgspec.structs.replace(plan, weights=blob)])
    (refusal,) = world.server.said(Refusal)
    assert refusal.reason == "bundle"
    assert "not finite" in refusal.detail
    assert world.worker.calls == []


def test_agent_refuses_what_is_over_its_cap_before_fetching(world):
    world.max_bytes = 1000
    world.run(plans=[world.bundle.plan(0)])
    assert world.server.said(Refusal)[0].reason == "bundle"
    assert not world.server.said(Need)


@pytest.mark.parametrize("payload", [b"", b"{", b'{"type":"nonsense"}', b"[" * 10000, b"\xff" * 100, b"x" * 70000])
def test_agent_counts_and_drops_malformed_commands(world, payload):
    world.server.on_message = lambda message: isinstance(message, Hello) and world.server.raw(payload)
    assert world.run(plans=[world.bundle.plan(0)]).kind == "finished"
    assert world.agent.session.errors == {"message": 1}
    assert len(world.server.results) == 1


def test_agent_counts_and_drops_foreign_topics_and_chunks(world):
    plan = world.bundle.plan(0)

    def hello(message):
        if isinstance(message, Hello):
            world.link.filters |= {"mas/4/rooms/device/attic/command", "other/topic"}
            world.link.deliver("mas/4/rooms/device/attic/command", b"{}")
            world.link.deliver("other/topic", b"")
            world.link.deliver(world.server.topics.download("kitchen", "0" * 64, 0), b"unasked")
        return False

    def mangle(digest, index, data):
        world.link.deliver(world.server.topics.download("kitchen", digest, index), data[:-1])
        world.link.deliver(world.server.topics.download("kitchen", digest, 999), data)
        return data

    world.server.on_message = hello
    world.server.mangle = mangle
    world.run(plans=[plan])
    assert len(world.server.results) == 1
    assert world.agent.session.errors["topic"] == 2
    assert world.agent.session.errors["chunk"] > 2
    assert world.agent.session.errors["unrequested_run"] > 0


def test_agent_works_on_while_disconnected_and_announces_afterwards(world):
    def before(_plan, _report):
        world.server.reconnect()
        while len(world.server.said(Hello)) < 2:
            time.sleep(0.005)

    world.worker.before = before
    world.run(plans=[world.bundle.plan(0)])
    assert world.worker.calls == [("train", 0)]
    assert len(world.server.results) == 1


def test_agent_goes_on_with_a_transfer_after_reconnecting(world):
    needs = []

    def cut(message):
        if isinstance(message, Need):
            needs.append(message)
            if len(needs) == 3:
                world.server.reconnect()
                return True
        return False

    world.server.on_message = cut
    world.run(plans=[world.bundle.plan(0)])
    assert len(world.server.results) == 1
    assert world.worker.calls == [("train", 0)]


def test_agent_stops_superseded_work_and_never_announces_it(world):
    started = threading.Event()

    def before(plan, report):
        if plan.round == 0:
            world.server.plans.popleft()
            world.server.next()
            started.set()
            while True:
                report("train", 1, 10)
                time.sleep(0.005)

    world.worker.before = before
    world.run(plans=[world.bundle.plan(0), world.bundle.plan(1)])
    assert started.is_set()
    assert [update.round for update in world.server.said(Update)] == [1]
    assert world.worker.most_running == 1


def test_agent_drops_a_result_that_comes_after_its_plan_was_superseded(world):
    def before(plan, _report):
        if plan.round == 0:
            world.server.plans.popleft()
            world.server.next()
            while world.agent.session.plan.round == 0:
                time.sleep(0.005)

    world.worker.before = before
    world.run(plans=[world.bundle.plan(0), world.bundle.plan(1)])
    assert [update.round for update in world.server.said(Update)] == [1]
    assert world.worker.calls == [("train", 0), ("train", 1)]


def test_agent_announces_again_after_a_restart_instead_of_training_again(world):
    world.server.acks = False
    world.server.on_message = lambda message: isinstance(message, Update) and world.stop.set()
    assert world.run(plans=[world.bundle.plan(0)]).kind == "stopped"
    assert world.worker.calls == [("train", 0)]
    assert (world.state_folder / "pending.json").exists()

    world.server.acks, world.server.on_message = True, lambda _message: False
    world.stop.clear()
    assert world.run().kind == "finished"
    assert world.worker.calls == [("train", 0)]
    assert [result.round for result in world.server.results] == [0]
    np.testing.assert_array_equal(world.server.weights(world.server.results[0]), np.float32(1.0))
    assert not (world.state_folder / "pending.json").exists()


def test_agent_drops_an_old_result_when_asked_for_another_round(world):
    world.server.acks = False
    world.server.on_message = lambda message: isinstance(message, Update) and world.stop.set()
    world.run(plans=[world.bundle.plan(0)])
    old = world.server.said(Update)[0].weights.digest
    world.server.acks, world.server.on_message = True, lambda _message: False
    world.stop.clear()
    world.server.plans.clear()
    world.run(plans=[world.bundle.plan(5)])
    assert [result.round for result in world.server.results] == [5]
    assert old not in weights_held(world)


@pytest.mark.parametrize("reason", ["memory", "battery", "heat", "no_data"])
def test_agent_sends_a_worker_s_refusal(world, reason):
    def before(plan, _report):
        if plan.round == 0:
            raise WorkRefused(reason, "because " + "x" * 1000)

    world.worker.before = before
    world.run(plans=[world.bundle.plan(0), world.bundle.plan(1)])
    (refusal,) = world.server.said(Refusal)
    assert (refusal.round, refusal.group, refusal.reason) == (0, "a+b", reason)
    assert len(refusal.detail) == 500
    assert [result.round for result in world.server.results] == [1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"loss": float("nan")}, "diverged"), ({"loss": 1e19}, "diverged"), ({"step": float("inf")}, "diverged")],
)
def test_agent_refuses_to_send_a_diverged_result(world, change, reason):
    for name, value in change.items():
        setattr(world.worker, name, value)
    world.run(plans=[world.bundle.plan(0)])
    assert [refusal.reason for refusal in world.server.said(Refusal)] == [reason]
    assert not world.server.said(Update)


def test_agent_refuses_when_memory_runs_out(world):
    def before(_plan, _report):
        raise MemoryError

    world.worker.before = before
    world.run(plans=[world.bundle.plan(0)])
    assert [refusal.reason for refusal in world.server.said(Refusal)] == ["memory"]


def test_agent_refuses_when_a_worker_stops_by_itself(world):
    def before(_plan, _report):
        raise WorkCancelled

    world.worker.before = before
    world.run(plans=[world.bundle.plan(0)])
    assert [refusal.reason for refusal in world.server.said(Refusal)] == ["error"]


def test_agent_refuses_a_result_that_no_message_can_carry(world):
    original = world.worker.evaluate

    def evaluate(*arguments):
        return dataclasses.replace(original(*arguments), examples={"a": -1})

    world.worker.evaluate = evaluate
    world.run(plans=[world.bundle.evaluation(0)])
    assert [refusal.reason for refusal in world.server.said(Refusal)] == ["error"]


def test_agent_reports_progress(world):
    def before(_plan, report):
        report("train", 3, 10)
        while not [p for p in world.server.said(Progress) if p.stage == "train"]:
            report("train", 3, 10)
            time.sleep(0.01)

    world.worker.before = before
    world.run(plans=[world.bundle.plan(0)])
    assert Progress(round=0, stage="train", done=3, total=10) in world.server.said(Progress)


def test_agent_waits_for_room_in_the_link(world):
    def fill(message):
        world.link.full = 2
        return False

    world.server.on_message = fill
    world.run(plans=[world.bundle.plan(0)])
    assert len(world.server.results) == 1
    assert world.link.retained[world.server.topics.status("kitchen")] == OFFLINE


def test_agent_ends_when_the_broker_refuses(world):
    world.server.connect = lambda: world.link.inbox.put(Disconnected("not authorised", refused=True))
    ending = world.run()
    assert (ending.kind, ending.detail) == ("refused", "not authorised")
    assert world.link.closed


def test_agent_takes_a_second_connect_as_a_reconnect(world):
    world.server.on_message = lambda message: (
        isinstance(message, Hello) and len(world.server.said(Hello)) == 1 and (world.server.connect() or True)
    )
    world.run(plans=[world.bundle.plan(0)])
    assert len(world.server.said(Hello)) == 2
    assert len(world.server.results) == 1


def test_agent_sends_less_in_a_message_to_a_broker_that_takes_less(world, caplog):
    world.server.connect = lambda: (
        world.link.inbox.put(Disconnected("cut", refused=False, too_large_bytes=140_000)),
        world.link.inbox.put(Connected()),
    )
    assert world.run(plans=[world.bundle.plan(0)]).kind == "finished"
    assert "the broker cuts the connection on a message of 140000 bytes: at most 69632 bytes of a file" in caplog.text


def test_agent_counts_messages_that_do_not_fit(world):
    def odd(message):
        if isinstance(message, Update) and world.server.said(Update) == [message]:
            world.server.say(Ack(round=7, group="x", accepted=True))
            world.server.say(Need(digest="0" * 64, runs=(ChunkRun(0, 1),)))
            world.server.say(Need(digest=message.weights.digest, runs=(ChunkRun(99, 1),)))
        return False

    world.server.on_message = odd
    world.run(plans=[world.bundle.plan(0)])
    assert world.agent.session.errors == {"stale_ack": 1, "unexpected_need": 2}
    assert len(world.server.results) == 1


def test_agent_sends_a_refusal_after_reconnecting(world):
    gone = threading.Event()

    def before(_plan, _report):
        world.link.inbox.put(Disconnected("cut", refused=False))
        while world.agent.session.online:
            time.sleep(0.005)
        gone.set()
        threading.Timer(0.3, world.server.connect).start()
        raise WorkRefused("heat", "90 degrees")

    world.worker.before = before
    world.server.on_message = lambda message: isinstance(message, Hello) and gone.is_set()
    world.run(plans=[world.bundle.plan(0)])
    assert [refusal.reason for refusal in world.server.said(Refusal)] == ["heat"]


def test_agent_finishes_while_it_works(world):
    def before(_plan, report):
        world.server.say(Finished(detail="enough"))
        while True:
            report("train", 0, 1)
            time.sleep(0.005)

    world.worker.before = before
    ending = world.run(plans=[world.bundle.plan(0)])
    assert (ending.kind, ending.detail) == ("finished", "enough")


def test_agent_counts_a_stale_plan(world):
    def before(plan, _report):
        if plan.round == 5:
            world.server.say(world.bundle.plan(4))
            while not world.agent.session.errors:
                time.sleep(0.005)

    world.worker.before = before
    world.run(plans=[world.bundle.plan(5)])
    assert world.agent.session.errors == {"stale_plan": 1}
    assert world.worker.calls == [("train", 5)]


def test_agent_refuses_when_a_chunk_cannot_be_written(world):
    def vanish(message):
        if isinstance(message, Need):
            shutil.rmtree(world.state_folder / "blobs")
        elif isinstance(message, Refusal):
            (world.state_folder / "blobs").mkdir()
        return False

    world.server.on_message = vanish
    assert world.run(plans=[world.bundle.plan(0)]).kind == "finished"
    (refusal,) = world.server.said(Refusal)
    assert refusal.reason == "error"
    assert "cannot be written" in refusal.detail


def test_agent_counts_a_need_for_an_update_that_has_vanished(world):
    def vanish(message):
        if isinstance(message, Update):
            shutil.rmtree(world.state_folder / "weights")
            world.server.say(Need(digest=message.weights.digest, runs=(ChunkRun(0, 2),)))
            world.server.say(Finished())
            return True
        return False

    world.server.on_message = vanish
    assert world.run(plans=[world.bundle.plan(0)]).kind == "finished"
    assert world.agent.session.errors == {"unexpected_need": 1}


def test_agent_ends_although_the_link_has_no_room_for_its_goodbye(world):
    def fill(message):
        if isinstance(message, Hello):
            world.link.full = 10**9
            world.stop.set()
        return True

    world.server.on_message = fill
    assert world.run().kind == "stopped"
    assert world.link.closed


def test_agent_reports_offline_when_a_worker_has_a_fault(world):
    def before(_plan, _report):
        raise ZeroDivisionError

    world.worker.before = before
    with pytest.raises(ZeroDivisionError):
        world.run(plans=[world.bundle.plan(0)])
    assert world.link.retained[world.server.topics.status("kitchen")] == OFFLINE
    assert world.link.closed


@pytest.mark.parametrize("moment", [*range(1, 20), 25, 30, 35, 40])
def test_agent_goes_on_where_it_was_when_it_was_cut_off_at_any_moment(world, moment):
    """The process ends at its n-th publish, whatever that is; the next one finishes the job."""
    serve, published = world.link.on_publish, []

    def cut(topic, payload):
        published.append(topic)
        if len(published) == moment:
            raise PowerCut
        if len(published) < moment:
            serve(topic, payload)

    world.link.on_publish = cut
    plans = [world.bundle.plan(0), world.bundle.plan(1, value=9.0)]
    with contextlib.suppress(PowerCut):
        world.run(plans=plans)
    kept = (world.state_folder / "pending.json").exists()
    before = list(world.worker.calls)
    world.link.on_publish = serve
    assert world.run().kind == "finished"
    assert [result.round for result in world.server.results] == [0, 1]
    if kept and before:
        assert world.worker.calls.count(before[-1]) == 1
    assert [*map(float, {w for u in world.server.results for w in world.server.weights(u)})] in (
        [1.0, 10.0],
        [10.0, 1.0],
    )


class PowerCut(Exception):
    pass


def uneven(world):
    """A worker whose steps are no multiples of one another, so that int8 and topk leave something out."""
    size = world.bundle.table.size
    train = world.worker.train

    def stepped(downloaded, report, channel=None):
        result = train(downloaded, report)
        steps = np.random.default_rng(downloaded.plan.round).normal(size=size).astype(np.float32)
        return dataclasses.replace(result, weights=downloaded.weights + steps)

    world.worker.train = stepped


def changes(world, plans):
    """What each round's update says was changed."""
    given = {plan.round: plan for plan in plans}
    return [
        decode(
            world.bundle.table,
            world.server.store.read(update.weights.digest),
            update.scheme,
            unpack(world.bundle.table, world.server.blobs[given[update.round].weights.digest]),
        )
        - given[update.round].round
        for update in world.server.results
    ]


@pytest.mark.parametrize("scheme", ["fp16", "int8", "topk"])
def test_agent_sends_small_updates_and_makes_up_for_what_they_leave_out(world, scheme):
    uneven(world)
    plans = [world.bundle.plan(r, updates=Updates(scheme=scheme, topk_fraction=0.2)) for r in range(6)]
    world.run(plans=plans)
    assert [update.scheme for update in world.server.results] == [scheme] * 6
    assert [update.base for update in world.server.results] == [plan.weights.digest for plan in plans]
    assert all(update.weights.size_bytes < 0.6 * plans[0].weights.size_bytes for update in world.server.results)
    sent = changes(world, plans)
    made = [np.random.default_rng(r).normal(size=world.bundle.table.size) for r in range(6)]
    left = CarriedState(world.state_folder / "residual").load(world.bundle.table, 5)
    if scheme == "fp16":
        assert left is None
        np.testing.assert_allclose(sent, made, rtol=2**-11, atol=1e-5)
    else:
        np.testing.assert_allclose(np.sum(sent, axis=0) + left, np.sum(made, axis=0), atol=1e-4)
        assert np.abs(sent[0] - made[0]).max() > 0.005


@pytest.mark.parametrize("scheme", ["int8", "topk"])
def test_agent_makes_the_same_update_again_when_its_end_was_lost(world, scheme):
    """Cut off between the residual of round 2 and its journal: what comes of it again has the same bytes."""
    uneven(world)
    plans = [world.bundle.plan(r, updates=Updates(scheme=scheme)) for r in range(4)]
    world.run(plans=plans)
    expected = {update.round: update.weights.digest for update in world.server.results}
    shutil.rmtree(world.state_folder)
    world.server.results.clear()
    world.run(plans=plans[:3])
    (world.state_folder / "pending.json").unlink(missing_ok=True)
    world.run(plans=plans[2:])
    assert [update.round for update in world.server.results] == [0, 1, 2, 2, 3]
    assert all(update.weights.digest == expected[update.round] for update in world.server.results)


def test_agent_drops_the_residual_when_it_has_missed_a_round(world):
    uneven(world)
    alone = world.bundle.plan(7, updates=Updates(scheme="int8"))
    world.run(plans=[alone])
    expected = world.server.results.pop().weights.digest
    shutil.rmtree(world.state_folder)
    world.run(plans=[world.bundle.plan(5, updates=Updates(scheme="int8")), alone])
    assert world.server.results[-1].weights.digest == expected


def test_agent_begins_a_phase_without_the_residual_of_another(world):
    uneven(world)
    training = msgspec.structs.replace(world.bundle.plan(0).training, first_epoch=0)
    first = world.bundle.plan(8, training=training, updates=Updates(scheme="int8"))
    world.run(plans=[first])
    expected = world.server.results.pop().weights.digest
    shutil.rmtree(world.state_folder)
    world.run(plans=[world.bundle.plan(7, updates=Updates(scheme="int8")), first])
    assert world.server.results[-1].weights.digest == expected


def test_agent_sends_weights_in_full_with_what_was_left_out_before(world):
    uneven(world)
    plans = [world.bundle.plan(0, updates=Updates(scheme="topk")), world.bundle.plan(1), world.bundle.plan(2)]
    world.run(plans=plans)
    sent = changes(world, plans)
    made = [np.random.default_rng(r).normal(size=world.bundle.table.size) for r in range(3)]
    np.testing.assert_allclose(sent[0] + sent[1], made[0] + made[1], atol=1e-5)
    np.testing.assert_allclose(sent[2], made[2], atol=1e-5)


@pytest.mark.parametrize(
    ("bytes_per_s", "scheme"), [(None, "fp32"), (2e6, "fp32"), (200_000.0, "int8"), (20_000.0, "topk")]
)
def test_agent_chooses_by_the_link_where_it_may(world, bytes_per_s, scheme):
    if bytes_per_s is not None:
        state = State(world.state_folder)
        state.save_speeds(LinkSpeeds(bytes_per_s=bytes_per_s))
        state.close()
    world.run(plans=[world.bundle.plan(0, updates=Updates(scheme="auto"))])
    assert [update.scheme for update in world.server.results] == [scheme]


def test_agent_measures_its_uploads_and_chooses_by_them(world):
    """Every look at the clock is a second later: 2,400 bytes take long enough to be called slow."""
    world.clock = itertools.count(0.0, 1.0).__next__
    plans = [world.bundle.plan(r, updates=Updates(scheme="auto")) for r in range(2)]
    world.run(plans=plans)
    assert {update.round: update.scheme for update in world.server.results} == {0: "fp32", 1: "topk"}
    state = State(world.state_folder)
    assert 0 < state.speeds().bytes_per_s < 50_000
    state.close()


def test_agent_does_not_measure_an_upload_that_was_dropped(world):
    world.clock = itertools.count(0.0, 1.0).__next__
    accepted = world.server.say
    world.server.say = lambda message: accepted(
        msgspec.structs.replace(message, accepted=False) if isinstance(message, Ack) else message
    )
    world.run(plans=[world.bundle.plan(0)])
    state = State(world.state_folder)
    assert state.speeds().bytes_per_s is None
    state.close()


def test_agent_refuses_a_change_that_a_scheme_cannot_hold(world):
    world.worker.step = 70_000.0
    world.run(plans=[world.bundle.plan(0, updates=Updates(scheme="fp16")), world.bundle.plan(1)])
    (refusal,) = world.server.said(Refusal)
    assert refusal.reason == "diverged"
    assert "65,504" in refusal.detail
    assert [update.round for update in world.server.results] == [1]


def test_agent_refuses_where_the_residual_cannot_be_kept(world):
    world.state_folder.mkdir()
    (world.state_folder / "residual").write_bytes(b"in the way")
    world.run(plans=[world.bundle.plan(0, updates=Updates(scheme="int8"))])
    (refusal,) = world.server.said(Refusal)
    assert refusal.reason == "error"
    assert "state folder" in refusal.detail


def test_agent_sends_the_final_energy_of_each_plan(world, make_meter):
    def before(plan, report):
        time.sleep(0.2)
        if plan.work == "train":
            report("probe", 0, 1)
            time.sleep(0.2)

    world.worker.before = before
    with EnergyAccount(make_meter(), path=world.state_folder / "energy.journal") as account:
        world.account = account
        world.run(plans=[world.bundle.plan(0), world.bundle.evaluation(1)])
        assert account.rounds() == set()
    update, evaluation = world.server.results
    first, second = world.server.said(FinalEnergy)
    assert [(spent.round, spent.group) for spent in (first, second)] == [(0, "a+b"), (1, "a+b")]
    for energy in (update.energy, evaluation.energy, first.energy, second.energy):
        assert (energy.source, energy.estimated) == ("fake", False)
        assert energy.energy_j == pytest.approx(5.0 * energy.seconds, rel=1e-3)
        joules = sum(phase.energy_j for phase in energy.phases.values())
        assert joules == pytest.approx(energy.energy_j, rel=1e-3)
    assert update.energy.phases["train"].seconds >= 0.2
    assert update.energy.phases["probe"].seconds >= 0.2
    assert first.energy.phases["train"] == update.energy.phases["train"]
    assert first.energy.energy_j > update.energy.energy_j
    assert {"download", "upload"} <= set(first.energy.phases)
    assert second.energy.phases["evaluate"].seconds >= 0.2
    assert "train" not in second.energy.phases


def test_agent_without_a_meter_reports_times_and_no_joules(world):
    world.run(plans=[world.bundle.plan(0)])
    (update,) = world.server.results
    assert (update.energy.source, update.energy.energy_j, update.energy.temperature_max_c) == (None, None, None)
    assert update.energy.phases["train"].seconds > 0
    assert update.energy.phases["train"].energy_j is None


def test_agent_sends_the_final_energy_of_a_refused_plan(world, make_meter):
    def before(plan, _report):
        time.sleep(0.1)
        raise WorkRefused("memory", "no")

    world.worker.before = before
    with EnergyAccount(make_meter()) as account:
        world.account = account
        world.run(plans=[world.bundle.plan(0)])
    (spent,) = world.server.said(FinalEnergy)
    assert spent.energy.energy_j == pytest.approx(5.0 * spent.energy.seconds, rel=1e-2)
    assert spent.energy.phases["train"].seconds >= 0.1


def test_agent_that_was_cut_off_before_the_ack_knows_what_it_has_spent(world, make_meter):
    world.worker.before = lambda _plan, _report: time.sleep(0.2)
    world.server.acks = False
    world.server.on_message = lambda message: isinstance(message, Update) and world.stop.set()
    path = world.state_folder / "energy.journal"
    with EnergyAccount(make_meter(), path=path) as world.account:
        world.run(plans=[world.bundle.plan(0)])
    world.server.acks, world.server.on_message = True, lambda _message: False
    world.stop.clear()
    with EnergyAccount(make_meter(), path=path) as world.account:
        world.run()
    (spent,) = world.server.said(FinalEnergy)
    assert spent.energy.phases["train"].energy_j == pytest.approx(
        world.server.results[0].energy.phases["train"].energy_j
    )
    assert spent.energy.energy_j > 1.0


def test_agent_sends_the_final_energy_of_superseded_work(world):
    def before(plan, report):
        if plan.round == 0:
            world.server.say(world.bundle.plan(1))
            world.server.plans.popleft()
            while True:
                report("train", 0, 1)
                time.sleep(0.01)

    world.worker.before = before
    world.run(plans=[world.bundle.plan(0), world.bundle.plan(1)])
    assert [spent.round for spent in world.server.said(FinalEnergy)] == [0, 1]


def test_agent_says_what_its_data_set_has_become_before_it_works_with_it(world):
    first, grown = world.worker.hello(), msgspec.structs.replace(world.worker.hello(), examples={"train": 9})
    world.worker.before = lambda plan, _report: setattr(world.worker, "hello", lambda: grown)
    world.run(plans=[world.bundle.plan(0), world.bundle.plan(1)])
    assert [each for each in world.server.said(Hello) if each != first] == [grown]


@pytest.mark.parametrize("limits", [PlanLimits(), PlanLimits(work_s=1e-9)])
def test_agent_that_is_to_stop_sends_what_it_has_done(world, limits):
    """Told so by the server, or by its own limit."""
    world.limits, train = limits, world.worker.train

    def slowly(downloaded, report, channel=None):
        if limits.work_s is None:
            world.server.say(Stop(round=0, group=downloaded.plan.group))
        time.sleep(0.01)
        for done in range(1, 100_000):
            report("train", done, 100_000)
            if downloaded.is_stopped():
                trained = train(downloaded, report, channel)
                return dataclasses.replace(trained, examples=dict.fromkeys(downloaded.plan.tasks, done))
            time.sleep(0.001)
        raise AssertionError("nobody has stopped it")

    world.worker.train = slowly
    world.run(plans=[world.bundle.plan(0)])
    assert world.server.said(Refusal) == []
    (result,) = world.server.results
    assert 1 <= result.examples["a"] < 100_000


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (PlanLimits(tasks=("other",)), "this device works for other, not for "),
        (PlanLimits(work_s=1e-9), "the work took longer than this device's 1e-09 s (max_work_s)"),
    ],
)
def test_agent_declines_a_plan_beyond_its_own_limits_with_the_reason(world, limits, why):
    world.limits, train = limits, world.worker.train

    def slowly(downloaded, report, channel=None):
        time.sleep(0.01)
        report("train", 0, 1)
        return train(downloaded, report, channel)

    world.worker.train = slowly
    world.run(plans=[world.bundle.plan(0)])
    (refusal,) = world.server.said(Refusal)
    assert refusal.reason == "limits"
    assert refusal.detail.startswith(why)
    assert world.server.results == []
