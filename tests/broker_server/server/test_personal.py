"""Federations in which each device has something of its own: parts that are never sent, or weights made for it."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from broker_server.aggregation.personal import PersonalSettings, personal_terms
from broker_server.report.build import build, models
from edge_runtime.training.gradient import add_proximal
from edge_runtime.wire.compression import max_bytes
from edge_runtime.wire.tensors import unpack

pytestmark = pytest.mark.slow
FAMILY = Path(__file__).parents[2] / "fixtures" / "family"


def table_of(world):
    return world.bundle.group(("a", "b", "c"), world.bundle.weights).table


def start_of(world):
    return unpack(world.bundle.table, (world.root / "bundle" / "weights.safetensors").read_bytes())


def test_heads_that_are_devices_own_are_neither_sent_nor_changed_here(world):
    world = world(strategy="fedper", merged_rounds=1, split_rounds=1)
    x, y = world.device("x", step=1.0), world.device("y", step=3.0)
    for device in (x, y):
        device.start()
    world.until_finished()
    assert not world.loop.failed
    table, start = table_of(world), start_of(world)
    found = unpack(table, models(world.journal, world.blobs)["a+b+c"])
    heads = slice(table.where("encoder").stop, table.size)
    np.testing.assert_array_equal(found[table.where("encoder")], start[table.where("encoder")] + 4)
    np.testing.assert_array_equal(found[heads], start[heads])
    plan = x.plans[0]
    assert plan.personal.parts == ("head.a", "head.b", "head.c")
    assert plan.personal == x.plans[1].personal == x.plans[-1].personal  # its file is downloaded once
    own = table.select(plan.personal.parts)
    np.testing.assert_array_equal(unpack(own, x.blobs.read(plan.personal.start.digest)), start[heads])
    assert plan.weights.size_bytes < max_bytes(4 * table.size) // 2
    results = world.journal.results(0)
    assert {each.weights.size_bytes for each in results.values()} == {plan.weights.size_bytes}


def expected(rounds, step=0.25):
    """What devices that add 1 and 3 have after so many rounds, each moved to the other by a quarter of the way."""
    x = y = 0.0
    for _ in range(rounds):
        x, y = x + 1, y + 3
        x, y = x + step * (y - x), y + step * (x - y)
    return {"x": x, "y": y}


@pytest.mark.parametrize("crashes", [False, True])
def test_each_device_goes_on_from_weights_that_were_made_for_it(world, crashes):
    world = world(strategy="fedu", personal_strength=0.25, merged_rounds=2, split_rounds=1)
    devices = {"x": world.device("x", step=1.0), "y": world.device("y", step=3.0)}
    for device in devices.values():
        device.start()
    for number in range(1, 3 if crashes else 0):
        world.until(lambda number=number: world.loop.round.number == number)
        world.crash()
    world.until_finished()
    table, start = table_of(world), start_of(world)
    assert [row.round.phase for row in world.journal.rounds()] == ["train"] * 3 + ["end"]
    for name, device in devices.items():
        received = {plan.round: unpack(table, device.blobs.read(plan.weights.digest)) for plan in device.plans}
        for number in range(4):
            np.testing.assert_allclose(received[number] - start, expected(number)[name], rtol=1e-6)
    shared = unpack(table, models(world.journal, world.blobs)["a+b+c"])
    mean = np.mean([expected(2)[name] + step for name, step in (("x", 1), ("y", 3))])
    np.testing.assert_allclose(shared - start, mean, rtol=1e-6)
    assert set(build(world.journal).spread) == {"a", "b", "c"}


def test_a_compressed_update_is_a_change_to_the_devices_own_weights(world):
    world = world(strategy="fedu", personal_strength=0.25, merged_rounds=2, split_rounds=1, update_scheme="fp16")
    devices = {"x": world.device("x", step=1.0), "y": world.device("y", step=3.0)}
    for device in devices.values():
        device.start()
    world.until_finished()
    assert all(ack.accepted for device in devices.values() for ack in device.acks)
    for name, device in devices.items():
        last = unpack(table_of(world), device.blobs.read(device.plans[-1].weights.digest))
        np.testing.assert_allclose(last - start_of(world), expected(3)[name], rtol=1e-3)


def test_a_device_that_comes_late_begins_with_the_mean_of_all(world):
    world = world(strategy="fedu", personal_strength=0.25, merged_rounds=2, split_rounds=1, min_devices=2)
    for name, step in (("x", 1.0), ("y", 3.0)):
        world.device(name, step=step).start()
    world.until(lambda: world.loop.round.number == 1)
    late = world.device("z", step=2.0)
    late.start()
    world.until_finished()
    table, start = table_of(world), start_of(world)
    plan = next(plan for plan in late.plans if plan.work == "train")
    received = unpack(table, late.blobs.read(plan.weights.digest)) - start
    assert plan.round == 2
    np.testing.assert_allclose(received, (expected(1)["x"] + 1 + expected(1)["y"] + 3) / 2, rtol=1e-6)


@pytest.mark.parametrize("strategy", ["deep_mocha", "multilinear"])
def test_heads_are_held_by_those_of_all_others_from_the_second_round_on(world, strategy):
    world = world(strategy=strategy, merged_rounds=2, split_rounds=1)
    devices = {"x": world.device("x", step=1.0), "y": world.device("y", step=3.0)}
    for device in devices.values():
        device.start()
    world.until(lambda: world.loop.round.number == 2)
    world.crash()
    world.until_finished()
    table, start = table_of(world), start_of(world)
    heads = table.select(["head.a", "head.b", "head.c"])
    where, encoder = slice(table.where("encoder").stop, table.size), table.where("encoder")
    found = {}
    for name, step in (("x", 1), ("y", 3)):
        plans = {plan.round: plan for plan in devices[name].plans}
        assert (plans[0].held, plans[3].held) == (None, None)
        received = unpack(table, devices[name].blobs.read(plans[2].weights.digest))
        np.testing.assert_allclose(received[where] - start[where], 2 * step, rtol=1e-6)  # heads of its own
        np.testing.assert_allclose(received[encoder] - start[encoder], 4, rtol=1e-6)  # an encoder for all
        centre = unpack(heads, devices[name].blobs.read(plans[2].held.centre.digest))
        found[name] = (received[where], centre, plans[2].held.strength)
    rows = np.array([found[name][0] for name in ("x", "y")], np.float64)
    prior = personal_terms(strategy, PersonalSettings(), stem=False).prior
    centres, strengths = prior.pulls(rows, heads)
    for number, name in enumerate(("x", "y")):
        np.testing.assert_allclose(found[name][1], centres[number], rtol=1e-5)
        assert found[name][2] == pytest.approx(strengths[number])


def test_what_is_remembered_of_pushes_goes_on_after_crashes(world, tmp_path):
    found = []
    for crashes in (False, True):
        here = world(strategy="fedhca2", merged_rounds=2, split_rounds=1, state=tmp_path / f"state-{crashes}")
        devices = [here.device(name, step=step) for name, step in (("x", 1.0), ("y", 3.0))]
        for device in devices:
            device.start()
        for number in range(1, 3 if crashes else 0):
            here.until(lambda number=number, here=here: here.loop.round.number == number)
            here.crash()
        here.until_finished()
        assert not here.loop.failed
        found.append([here.journal.device_weights(), here.journal.fact("relation/train/a+b+c")])
        gates = msgspec.json.decode(found[-1][1])["x"]["gates"]
        assert gates["encoder"]["value"] > 0.1  # all go the same way, so each push was welcome
        here.journal.close()
    assert found[0] == found[1]


def test_a_task_that_joins_begins_with_its_own_head_and_an_encoder_that_is_held(world):
    world = world(strategy="successive", order=("c", "a", "b"), hold=0.1, merged_rounds=1, split_rounds=1)
    x, y = world.device("x", step=1.0), world.device("y", step=3.0)
    for device in (x, y):
        device.start()
    world.until(lambda: world.loop.round.number == 3)
    world.crash()
    world.until_finished()
    assert not world.loop.failed
    start, whole = start_of(world), world.bundle.table
    encoder = whole.select(["encoder"])
    plans = {plan.round: plan for plan in x.plans}
    assert [plans[number].tasks for number in (0, 2, 4)] == [("c",), ("a", "c"), ("a", "b", "c")]
    assert plans[0].held is None
    for number in (2, 3):  # both rounds of a phase are held to where the one before it ended
        held = plans[number].held
        assert (held.parts, held.strength) == (("encoder",), 0.2)
        centre = unpack(encoder, x.blobs.read(held.centre.digest))
        np.testing.assert_array_equal(centre, start[whole.where("encoder")] + 4)
    final = unpack(table_of(world), models(world.journal, world.blobs)["a+b+c"])
    for part, rounds in (("encoder", 6), ("head.c", 6), ("head.a", 4), ("head.b", 2)):
        np.testing.assert_array_equal(final[whole.where(part)], start[whole.where(part)] + 2 * rounds)


def test_the_pull_of_successive_regularisation_is_the_golden_one():
    golden = msgspec.json.decode((FAMILY / "architectures.json").read_bytes())["successive_regularisation"]
    weights, centre = np.array(golden["parameters"]), np.array(golden["parameters_after_previous_task"])
    gradient = np.zeros(4, np.float32)
    add_proximal(gradient, weights.astype(np.float32), centre.astype(np.float32), 2 * golden["delta"])
    np.testing.assert_allclose(gradient, golden["gradient"], rtol=1e-6)
