"""Buffered rounds with a journal: what counts, in which version, and what comes of it after crashes."""

import msgspec
import numpy as np
import pytest

from broker_server.aggregation.fedavg import FedAvg
from broker_server.aggregation.staleness import rebased, shares, variance
from broker_server.report.build import models
from broker_server.rounds.federation import StateDamaged
from edge_runtime.wire.tensors import pack, unpack

STEPS = {"x": 1.0, "y": np.arange(9.0), "z": -(np.arange(9.0) ** 2)}
"""What each device adds to the weights that it receives."""
SLOW = {"x": 1.0, "y": 1.5, "z": 7.0}
"""Seconds that each takes."""


def buffered(world, steps=STEPS, **settings):
    """A federation of three devices, one of which takes much longer than the others."""
    settings = {
        "strategy": "all_in_one",
        "merged_rounds": 6,
        "split_rounds": 2,
        "min_devices": 3,
        "round_mode": "buffered",
        "buffer_size": 2,
        "grace_s": 1000.0,
    } | settings
    made = world(**settings)
    for name, step in steps.items():
        slow_down(made, made.device(name, step=step), SLOW[name])
    return made


def slow_down(world, device, seconds):
    """Let a device tell its results so many seconds after it could; it finishes what it has begun after a crash."""
    tell, due = device.tell, []
    device.tells_at = due

    def later(message):
        if type(message).__name__ == "Update":
            due.append((world.clock.now_s + seconds, message))
        else:
            tell(message)

    def pass_on():
        while due and due[0][0] <= world.clock.now_s:
            tell(due.pop(0)[1])

    device.tell, device.pass_on = later, pass_on


def run(world, until=None, crashes=0.0):
    """Let the devices come, and time pass until round `until` is going on, or to the federation's end."""
    for device in world.link.devices.values():
        device.start()
    for _ in range(20_000):
        if world.loop.finished is not None and world.dispatcher.outgoing.is_empty:
            return
        if until is not None and world.loop.round.number == until:
            return
        for device in world.link.devices.values():
            device.pass_on()
        world.loop.step(0.25)
        if crashes and world.random.random() < crashes:
            world.crash()
    raise AssertionError(f"never finished; notes: {world.watcher.notes[-5:]}, counts: {world.dispatcher.counts}")


def folded_again(world, discount="sqrt"):
    """The weights that follow from the journal alone: which results each round counts, and what they began from."""
    table = world.bundle.table
    versions = [unpack(table, (world.root / "bundle" / "weights.safetensors").read_bytes())]
    for row in world.journal.rounds():
        if row.round.work != "train":
            continue
        results = world.journal.results(row.round.number)
        bases = {name: versions[result.round] for name, result in results.items()}
        trained = {name: base + np.float32(STEPS[name]) for name, base in bases.items()}
        found = shares(
            discount,
            [row.round.number - result.round for result in results.values()],
            [variance(table, bases[name], trained[name]) for name in results],
        )
        mean = FedAvg(table)
        for (name, result), share in zip(results.items(), found, strict=True):
            moved = rebased(table, trained[name], base=bases[name], newest=versions[-1], share=share)
            is_fresh = result.round == row.round.number and share == 1.0
            mean.fold(trained[name] if is_fresh else moved, result.examples)
        versions.append(mean.result(versions[-1]))
    return {"a+b+c": pack(table, versions[-1])}


def counted(world):
    """Each result that counts, as (round that counts it, device, version that it began from)."""
    rows = [row for row in world.journal.rounds() if row.round.work == "train"]
    return [
        (row.round.number, name, result.round)
        for row in rows
        for name, result in world.journal.results(row.round.number).items()
    ]


@pytest.mark.parametrize("discount", ["sqrt", "ftte"])
def test_a_slow_device_counts_by_its_age_and_holds_up_nobody(world, discount):
    fleet = buffered(world, staleness_discount=discount)
    run(fleet)
    assert fleet.loop.finished == "all rounds are done"
    assert models(fleet.journal, fleet.blobs) == folded_again(fleet, discount)
    ages = {number - version for number, name, version in counted(fleet) if name == "z"}
    assert max(ages) >= 3
    assert {number - version for number, name, version in counted(fleet) if name == "x"} <= {0, 1}
    assert len({(name, version) for _, name, version in counted(fleet)}) == len(counted(fleet))
    assert fleet.clock.now_s < 8 * SLOW["z"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["fp32", pytest.param("int8", marks=pytest.mark.long)])
def test_after_crashes_at_any_event_the_weights_are_those_of_the_journal(world, scheme):
    fleet = buffered(world, update_scheme=scheme)
    run(fleet, crashes=0.05)
    found = counted(fleet)
    assert len({(name, version) for _, name, version in found}) == len(found)
    assert all(0 <= number - version <= 20 for number, _, version in found)
    assert any(name == "z" and number > version for number, name, version in found)
    if scheme == "fp32":
        assert models(fleet.journal, fleet.blobs) == folded_again(fleet)
    assert fleet.journal.versions() == fleet.journal.asked() == {}


@pytest.mark.parametrize("work_factor", [0.0, 2.0])
def test_a_process_that_goes_on_gives_a_device_the_very_plan_that_it_has(world, work_factor):
    fleet = buffered(world, work_factor=work_factor, merged_rounds=20)
    z, until = fleet.link.devices["z"], 3
    run(fleet, until=until)
    while work_factor and z.plans[-1].training.share == 1.0:
        until += 1
        run(fleet, until=until)
    before = z.plans[-1]
    assert (before.round == 0) == (not work_factor)
    fleet.crash()
    z.plans.clear()
    for _ in range(20):
        fleet.loop.step(0.25)
    again = z.plans[-1]
    assert again == msgspec.structs.replace(before, deadline_s=again.deadline_s)


def test_weights_of_versions_are_kept_as_long_as_results_of_them_may_come(world):
    fleet = buffered(world, max_staleness=2)
    seen = []

    def on_round_closed(row, results):
        versions = fleet.journal.versions()
        assert all(blob.digest in fleet.blobs for blob in versions.values())
        seen.append(sorted(versions))

    fleet.watcher.on_round_closed = on_round_closed
    run(fleet)
    assert [0] in seen
    assert all(len(versions) <= 2 for versions in seen)
    assert [5, 6] in seen


def test_a_version_that_is_gone_is_named(world):
    fleet = buffered(world)
    run(fleet, until=2)
    version = fleet.journal.versions()[1]
    fleet.journal.close()
    fleet.blobs.discard(version.digest)
    with pytest.raises(StateDamaged, match=r"weights of a\+b\+c"):
        fleet.boot()


def test_affinities_count_whoever_measured_them_and_the_split_follows(world):
    fleet = buffered(
        world,
        steps=dict.fromkeys(STEPS, 1.0),
        strategy="mas",
        groups=2,
        merged_rounds=5,
        split_rounds=1,
        probe_rounds=2,
    )
    run(fleet)
    late = [
        (number, name, version)
        for number, name, version in counted(fleet)
        if fleet.journal.results(number)[name].affinity is not None and number != version
    ]
    assert late, "the slow device has measured version 1, and was counted later"
    assert fleet.federation.affinities.counts[0, 1] == 3 * len(
        [1 for number, name, _ in counted(fleet) if fleet.journal.results(number)[name].affinity is not None]
    )
    assert [phase.name for phase in fleet.federation.phases] == ["before", "merge", "merged", "split", "end"]
    np.testing.assert_array_equal(fleet.federation.affinities.values, again(fleet).affinities.values)


def again(fleet):
    fleet.journal.close()
    fleet.boot()
    return fleet.federation


def test_energy_is_booked_where_the_result_counts(world, make_energy):
    fleet = buffered(world)
    for device in fleet.link.devices.values():
        device.spent = make_energy(joules=5.0)
    run(fleet)
    for number, name, _ in counted(fleet):
        assert fleet.journal.energy(number)[name].energy_j == 5.0
    booked = [name for row in fleet.journal.rounds() for name in fleet.journal.energy(row.round.number)]
    assert len(booked) == len(counted(fleet)), "what the test at the end takes was not measured"
