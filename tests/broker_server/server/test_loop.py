import msgspec
import numpy as np
import pytest

from broker_server.aggregation.rules import RoundAggregation
from broker_server.aggregation.sums import LocalSums, SumsLost
from broker_server.report.build import models
from broker_server.rounds.federation import FederationChanged
from edge_runtime.wire.errors import WireError
from edge_runtime.wire.link import Disconnected
from edge_runtime.wire.messages import Evaluation, FinalEnergy, Update
from edge_runtime.wire.tensors import pack, unpack

pytestmark = pytest.mark.slow


def run(world, *devices):
    for device in devices:
        device.start()
    world.until_finished()


def test_server_loop_runs_mas_to_its_end(world):
    world = world()
    x, y = world.device("x", step=1.0), world.device("y", step=3.0)
    run(world, x, y)
    assert world.loop.finished == "all rounds are done"
    assert not world.loop.failed
    rows = [(row.round.phase, row.round.group, row.round.number) for row in world.journal.rounds()]
    assert rows == [
        ("before", "a+b+c", 0),
        ("merge", "a+b+c", 1),
        ("merge", "a+b+c", 2),
        ("merged", "a+b+c", 3),
        ("split", "a+b", 4),
        ("split", "a+b", 5),
        ("split", "c", 6),
        ("split", "c", 7),
        ("end", "a+b", 8),
        ("end", "c", 9),
    ]
    assert x.finished
    assert y.finished
    assert all(ack.accepted for ack in x.acks + y.acks)
    assert len(x.acks) == len(y.acks) == 10
    # Two rounds merged and two of each group, each of which adds the mean step of 2.
    for group, tasks in (("a+b", ("a", "b")), ("c", ("c",))):
        table = world.bundle.group(tasks, world.bundle.weights).table
        values = unpack(table, models(world.journal, world.blobs)[group])
        start = unpack(world.bundle.table, (world.root / "bundle" / "weights.safetensors").read_bytes())
        expected = np.concatenate([start[world.bundle.table.parts[part]] + 8 for part in table.parts])
        np.testing.assert_array_equal(values, expected)


def test_round_that_is_not_folded_elsewhere_is_folded_here(world):
    class Lost(LocalSums):
        def add(self, vector, weights):
            raise SumsLost("the node is gone")

    world = world(strategy="all_in_one", merged_rounds=1, split_rounds=1)
    world.federation._make_sums = Lost
    run(world, world.device("x", step=1.0), world.device("y", step=3.0))
    notes = [text for _, text in world.journal.notes()]
    assert sum("is folded here" in text and "the node is gone" in text for text in notes) == 2
    values = unpack(world.bundle.table, models(world.journal, world.blobs)["a+b+c"])
    start = unpack(world.bundle.table, (world.root / "bundle" / "weights.safetensors").read_bytes())
    np.testing.assert_array_equal(values, start + 4)


def test_server_loop_counts_what_is_exchanged_with_the_round_that_is_going_on(world):
    world = world()
    world.loop.coordinator.open.traffic.add(up_bytes=10**9)
    world.loop.coordinator.open.traffic.add(up_bytes=1, down_bytes=10**9)
    run(world, world.device("x"), world.device("y"))
    first, *others = world.journal.rounds()
    assert 10**9 < first.bytes_up < 10**9 + 10**6
    assert 10**9 <= first.bytes_down < 10**9 + 10**6
    assert all(max(row.bytes_up, row.bytes_down) < 10**6 for row in others)


def test_server_loop_keeps_the_affinities_and_the_split(world):
    world = world()
    run(world, world.device("x"), world.device("y"))
    affinities = world.federation.affinities
    assert (affinities.counts == 6).all()
    assert affinities.values[0, 2] == -1.0
    split = world.federation.phases[3].split
    assert split.groups == (("a", "b"), ("c",))


def test_server_loop_deletes_superseded_blobs(world):
    world = world()
    run(world, world.device("x"), world.device("y"))
    weights = {blob.digest for blob in world.journal.weights().values()}
    graphs = {blob.digest for blob in world.federation.manifests.graphs}
    rest = set(world.blobs.digests()) - weights - graphs
    assert len(rest) == 3  # the manifests of the three groups


def test_server_loop_sends_graphs_to_a_device_once(world):
    world = world()
    x = world.device("x")
    needs = []
    say = x.say
    x.say = lambda topic, payload, **more: (needs.append(payload), say(topic, payload, **more))
    run(world, x, world.device("y"))
    graph = world.federation.manifests.graphs[0].digest.encode()
    assert sum(graph in payload for payload in needs) == 1


def test_server_loop_drops_what_is_not_a_message(world):
    world = world()
    for topic, payload in [
        ("mas/4/home/device/x/event", b"{"),
        ("mas/4/home/device/x/event", b"\xff" * 100_000),
        ("mas/4/home/device/x/status", b""),
        ("mas/4/home/device/x/command", b"{}"),
        ("mas/4/home/blob/" + "0" * 64 + "/0", b""),
        ("mas/4/home/device/x/upload/" + "0" * 64 + "/0", b"never asked for"),
        ("mas/4/home/device/x/event", b"{}"),
        ("mas/4/home/device/x/event", b'{"type":"need","digest":"' + b"0" * 64 + b'","chunks":[0]}'),
        ("mas/4/home/device/x/event", b'{"type":"progress","round":7,"stage":"train","done":1,"total":2}'),
        ("mas/4/home/device/x/event", b'{"type":"refusal","round":7,"group":"a","reason":"heat","detail":""}'),
    ]:
        world.link.say(topic, payload)
    run(world, world.device("x"), world.device("y"))
    assert world.loop.finished == "all rounds are done"
    assert sum(world.dispatcher.counts.values()) >= 10


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_server_loop_rejects_weights_that_are_not_finite(world, poison):
    world = world(round_deadline_s=5.0, min_devices=3)
    x = world.device("x")
    train = x.train

    def poisoned(plan, bundle):
        update = train(plan, bundle)
        data = bytearray(x.blobs.read(update.weights.digest))
        data[-4:] = np.float32(poison).tobytes()
        return msgspec.structs.replace(update, weights=x.blobs.add(bytes(data), chunk_bytes=1024))

    x.train = poisoned
    run(world, x, world.device("y"), world.device("z"))
    declined = [ack for ack in x.acks if not ack.accepted]
    assert len(declined) == 6
    assert all("finite" in ack.detail for ack in declined)
    assert {row.round.work for row in world.journal.rounds() if "x" in world.journal.results(row.round.number)} == {
        "evaluate"
    }


@pytest.mark.parametrize("scheme", ["fp16", "int8", "topk"])
def test_server_loop_averages_small_updates(world, scheme):
    """Each of four rounds adds the mean step of 2, as nearly as the scheme says it."""
    world = world(update_scheme=scheme, topk_fraction=0.5)
    run(world, world.device("x", step=1.0), world.device("y", step=3.0))
    assert world.loop.finished == "all rounds are done"
    start = unpack(world.bundle.table, (world.root / "bundle" / "weights.safetensors").read_bytes())
    for group, tasks in (("a+b", ("a", "b")), ("c", ("c",))):
        table = world.bundle.group(tasks, world.bundle.weights).table
        values = unpack(table, models(world.journal, world.blobs)[group])
        moved = values - np.concatenate([start[world.bundle.table.parts[part]] for part in table.parts])
        if (
            scheme == "topk"
        ):  # fewer than half of the weights a round, those that have waited longest, with all they owe
            np.testing.assert_allclose(moved, 2 * np.rint(moved / 2), atol=1e-5)
            assert 3 < moved.mean() < 8
        else:
            np.testing.assert_allclose(moved, 8, rtol=1e-5)
    updates = [r for row in world.journal.rounds() for r in world.journal.results(row.round.number).values()]
    assert {update.scheme for update in updates if isinstance(update, Update)} == {scheme}


def test_server_loop_rejects_a_small_update_that_is_malformed(world):
    world = world(update_scheme="int8", round_deadline_s=5.0, min_devices=3)
    x = world.device("x")
    train = x.train

    def poisoned(plan, bundle):
        update = train(plan, bundle)
        data = x.blobs.read(update.weights.digest)
        return msgspec.structs.replace(update, weights=x.blobs.add(data[:-1], chunk_bytes=1024))

    x.train = poisoned
    run(world, x, world.device("y"), world.device("z"))
    declined = [ack for ack in x.acks if not ack.accepted]
    assert len(declined) == 6
    assert all("ends within array" in ack.detail for ack in declined)


def test_server_loop_one_client_s_small_updates_come_again_after_a_crash(world):
    world = world(update_scheme="int8", min_devices=1)
    x = world.device("x", step=0.1)
    x.start()
    world.until(lambda: x.answer is not None and isinstance(x.answer, Update))
    world.crash()
    world.until_finished()
    assert world.loop.finished == "all rounds are done"


def test_server_loop_goes_on_over_a_full_link(world):
    world = world()
    world.link.full = lambda: world.random.random() < 0.5
    run(world, world.device("x"), world.device("y"))
    assert world.loop.finished == "all rounds are done"


def test_server_loop_says_that_the_connection_is_lost(world):
    world = world()
    world.link.events.append(Disconnected("gone", refused=False))
    run(world, world.device("x"), world.device("y"))
    assert any("gone" in note for note in world.watcher.notes)


def test_server_loop_without_affinities_ends_and_says_why(world):
    world = world()
    x, y = world.device("x"), world.device("y")
    for device in (x, y):
        device.train = lambda plan, bundle, train=device.train: _without_affinity(train(plan, bundle))
    run(world, x, y)
    assert world.loop.failed
    assert "no device measured" in world.loop.finished
    assert "no device measured" in x.finished.detail


def _without_affinity(update):
    return msgspec.structs.replace(update, affinity=None)


def test_server_loop_one_client_gets_its_own_weights_bit_for_bit(world):
    world = world(min_devices=1)
    x = world.device("x", step=0.1)
    sent = []
    train = x.train
    x.train = lambda plan, bundle: sent.append(train(plan, bundle)) or sent[-1]
    run(world, x)
    last = {update.group: update.weights.digest for update in sent}
    assert {group: blob.digest for (phase, group), blob in world.journal.weights().items() if phase == "split"} == {
        group: last[group] for group in ("a+b", "c")
    }


@pytest.mark.slow
def test_server_loop_after_a_crash_at_any_event_ends_the_same(world, tmp_path):
    reference = world()
    run(reference, reference.device("x", step=1.0), reference.device("y", step=3.0))
    expected = models(reference.journal, reference.blobs)
    crashed = type(reference)(tmp_path / "crashed")
    crashed.device("x", step=1.0).start()
    crashed.device("y", step=3.0).start()
    for _ in range(5000):
        if crashed.loop.finished:
            break
        crashed.loop.step(0.25)
        if crashed.random.random() < 0.05:
            crashed.crash()
    assert crashed.loop.finished == "all rounds are done"
    assert models(crashed.journal, crashed.blobs) == expected
    for row in crashed.journal.rounds():
        assert set(crashed.journal.results(row.round.number)) == {"x", "y"}
    np.testing.assert_array_equal(crashed.federation.affinities.values, reference.federation.affinities.values)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"aggregation": "gpaggregation", "server_momentum": 0.5, "server_lr": 0.7},
        {"aggregation": "pcgrad", "server_optimizer": "adam", "server_lr": 0.1},
        {"aggregation": "cagrad"},
        {"server_momentum": 0.5},
    ],
)
def test_server_loop_after_a_crash_goes_on_with_what_aggregation_remembers(world, tmp_path, settings):
    shared = {"strategy": "all_in_one", "merged_rounds": 5, "split_rounds": 1, "min_devices": 3}
    settings = shared | settings
    random = np.random.default_rng(0)
    steps = {name: random.standard_normal(9) for name in ("x", "y", "z")}
    reference = world(**settings)
    run(reference, *(reference.device(name, step=step) for name, step in steps.items()))
    expected = models(reference.journal, reference.blobs)
    crashed = type(reference)(tmp_path / "crashed", **settings)
    for name, step in steps.items():
        crashed.device(name, step=step).start()
    for _ in range(5000):
        if crashed.loop.finished:
            break
        crashed.loop.step(0.25)
        if crashed.random.random() < 0.05:
            crashed.crash()
    assert crashed.loop.finished == "all rounds are done"
    assert models(crashed.journal, crashed.blobs) == expected
    plain = type(reference)(tmp_path / "plain", **shared)
    run(plain, *(plain.device(name, step=step) for name, step in steps.items()))
    assert models(plain.journal, plain.blobs) != expected

    table, rule, state = reference.bundle.table, reference.config.encoder_aggregation, None
    weights = unpack(table, (reference.root / "bundle" / "weights.safetensors").read_bytes())
    for number in range(6):
        aggregation = RoundAggregation(table, weights, rule, state=state, seed=(0, number), folder=tmp_path)
        for name in sorted(steps):
            aggregation.fold(weights + np.float32(steps[name]), dict.fromkeys(reference.bundle.task_names, 10))
        weights, state = aggregation.result()
    assert expected == {"a+b+c": pack(table, weights)}


def test_federation_keeps_what_aggregation_remembers_for_the_phase_that_goes_on(world):
    world = world(aggregation="gpaggregation", merged_rounds=2, split_rounds=2)
    seen = []

    class Watching(type(world.watcher)):
        def on_round_closed(self, row, results):
            states = world.journal.aggregation_states()
            assert all(blob.digest in world.blobs for blob in states.values())
            seen.append((row.round.phase, row.round.index, sorted(states)))

    world.loop._watcher = Watching()
    run(world, world.device("x"), world.device("y", step=3.0))
    assert world.loop.finished == "all rounds are done"
    assert [each for each in seen if each[0] in {"merge", "split"}] == [
        ("merge", 0, [("merge", "a+b+c")]),
        ("merge", 1, [("merge", "a+b+c")]),
        ("split", 0, [("split", "a+b")]),
        ("split", 1, [("split", "a+b")]),
        ("split", 0, [("split", "a+b"), ("split", "c")]),
        ("split", 1, [("split", "a+b"), ("split", "c")]),
    ]
    assert world.journal.aggregation_states() == {}  # the last phase measures


def test_federation_notes_a_step_that_was_not_taken(world):
    world = world(strategy="all_in_one", merged_rounds=1, split_rounds=1, server_lr=1000.0, server_momentum=0.5)
    run(world, world.device("x", step=1e38), world.device("y", step=1e38))
    assert world.loop.finished == "all rounds are done"
    assert any("step of the encoder was not finite" in text for _, text in world.journal.notes())


def test_server_loop_after_a_crash_asks_only_those_that_have_not_delivered(world):
    world = world()
    x, y = world.device("x"), world.device("y")
    x.start()
    y.start()
    world.until(lambda: world.loop.round and world.loop.round.number == 1)
    y.silent = True
    world.until(lambda: 1 in {ack.round for ack in x.acks})
    world.crash()
    plans = len(x.plans)
    y.silent = False
    y.start()
    world.until(lambda: world.loop.round.number == 2)
    assert [plan.round for plan in x.plans[plans:]] in ([], [2])
    assert [type(r) for r in world.journal.results(1).values()] == [Update, Update]
    assert [type(r) for r in world.journal.results(0).values()] == [Evaluation, Evaluation]


def test_federation_refuses_a_state_folder_of_another_one(world):
    import msgspec

    world = world()
    world.config = msgspec.structs.replace(world.config, seed=9)
    with pytest.raises(FederationChanged, match="--new"):
        world.boot()
    assert not issubclass(FederationChanged, WireError)


def test_server_loop_journals_what_a_plan_has_cost_the_last_one_counting(world, make_energy):
    world = world()
    x, y = world.device("x"), world.device("y")
    x.start()
    y.start()
    world.until(lambda: world.journal.results(1))
    for joules in (3.0, 4.0):
        x.tell(FinalEnergy(round=0, group="a+b+c", energy=make_energy(joules=joules)))
    strange = world.device("strange")
    for device, round_number, group in ((x, 0, "a"), (x, 77, "a+b+c"), (strange, 0, "a+b+c")):
        device.tell(FinalEnergy(round=round_number, group=group, energy=make_energy()))
    world.until_finished()
    assert world.journal.energy(0) == {"x": make_energy(joules=4.0)}
    assert world.dispatcher.energy_reports == 2
    assert world.dispatcher.counts["energy of a round that the device was not in"] == 3
    world.crash()
    assert world.journal.energy(0) == {"x": make_energy(joules=4.0)}
