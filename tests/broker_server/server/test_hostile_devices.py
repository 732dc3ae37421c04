"""What an enrolled device may do to the server, by messages alone: it costs the device its part, and nobody else."""

import hashlib
import shutil

import msgspec
import numpy as np
import pytest
import samples

from broker_server.report.build import models
from broker_server.rounds.federation import StateDamaged
from edge_runtime.wire.blob import Blob
from edge_runtime.wire.messages import FinalEnergy, Update
from edge_runtime.wire.tensors import pack, transfer, unpack


def run(world, *devices):
    for device in devices:
        device.start()
    world.until_finished()


def naming(device, digest_of):
    """Let a device announce, for each plan, a digest that is not its own."""
    train, named = device.train, []

    def announce(plan, bundle):
        update = train(plan, bundle)
        digest = digest_of(plan, bundle)
        if digest is None:
            return update
        named.append(digest)
        return msgspec.structs.replace(update, weights=Blob(digest=digest, size_bytes=update.weights.size_bytes))

    read = device.blobs.run
    device.train = announce
    device.blobs.run = lambda blob, run: b"?" * blob.run_bytes(run) if blob.digest in named else read(blob, run)
    return named


@pytest.mark.parametrize("what", ["graph", "manifest", "weights"])
def test_device_that_announces_what_the_server_serves_reaches_nothing_of_the_server_s(world, what):
    world = world(min_devices=3, quorum=2, round_deadline_s=5.0)
    digests = {
        "graph": lambda plan, bundle: bundle.graphs["encoder.0.forward"].digest,
        "manifest": lambda plan, bundle: plan.bundle.digest,
        "weights": lambda plan, bundle: plan.weights.digest,
    }
    x, y, mallory = (world.device(name) for name in ("x", "y", "mallory"))
    named = naming(mallory, digests[what])
    run(world, x, y, mallory)
    assert world.loop.finished == "all rounds are done"
    assert len(named) == 6
    if what == "graph":
        assert set(named) <= set(world.blobs.digests())
    counted = [set(world.journal.results(row.round.number)) for row in world.journal.rounds()]
    assert all({"x", "y"} <= devices for devices in counted)


def test_device_that_names_the_start_weights_of_another_group_does_not_keep_it_from_beginning(world):
    """They follow from the merged weights, which it was sent, and the table, which everybody knows."""
    world = world(min_devices=2, quorum=1, round_deadline_s=5.0)
    x, mallory = world.device("x"), world.device("mallory")

    def other_group(plan, bundle):
        merged = world.journal.weights().get(("merge", "a+b+c"))
        if plan.phase != "split" or plan.group != "a+b" or merged is None:
            return None
        whole = unpack(world.bundle.table, world.blobs.read(merged.digest))
        table = world.bundle.group(("c",), world.bundle.weights).table
        digest = hashlib.sha256(pack(table, transfer(world.bundle.table, whole, table))).hexdigest()
        assert digest in world.blobs
        return digest

    named = naming(mallory, other_group)
    run(world, x, mallory)
    assert named
    assert world.loop.finished == "all rounds are done"
    assert models(world.journal, world.blobs).keys() == {"a+b", "c"}


def test_device_takes_the_disk_of_one_upload_however_many_it_begins(world):
    world = world(min_devices=2, round_deadline_s=1e6)
    x, mallory = world.device("x"), world.device("mallory")
    x.train = lambda plan, bundle: None  # never comes to its end
    x.tell = lambda message, tell=x.tell: message and tell(message)
    x.start()
    mallory.start()
    world.until(lambda: mallory.answer is not None and isinstance(mallory.answer, Update))
    announced = mallory.answer
    mallory.silent = True
    for number in range(50):
        blob = Blob(digest=hashlib.sha256(b"%d" % number).hexdigest(), size_bytes=1300, chunk_bytes=1024)
        mallory.tell(msgspec.structs.replace(announced, scheme="int8", base=mallory.plan.weights.digest, weights=blob))
        world.link.say(mallory.topics.upload("mallory", blob.digest, 0), b"z" * 1024)
        world.loop.step(0.0)
        world.loop.step(0.0)
    world.until(lambda: not world.link.events)
    (left,) = world.uploads.of("mallory").digests()
    assert left == blob.digest


def test_message_whose_handling_fails_costs_its_device_the_round_and_is_journalled(world, monkeypatch):
    world = world(min_devices=3, quorum=2, merged_rounds=1, probe_rounds=1, split_rounds=1)
    check = world.federation.check_update

    def fails_for_mallory(plan, device, update):
        if device == "mallory":
            raise ZeroDivisionError("a fault that nobody foresaw")
        check(plan, device, update)

    monkeypatch.setattr(world.federation, "check_update", fails_for_mallory)
    run(world, *(world.device(name) for name in ("x", "y", "mallory")))
    assert world.loop.finished == "all rounds are done"
    said = "mallory is left out of this round: what it sent could not be handled (ZeroDivisionError: a fault that"
    assert (
        sum(text.startswith(said) for _, text in world.journal.notes()) == 3
    )  # one merged round, and one of each group
    for row in world.journal.rounds():
        results = world.journal.results(row.round.number)
        assert ("mallory" in results) == (row.round.work == "evaluate")


def test_chunk_that_the_disk_has_no_room_for_is_asked_for_again(world, monkeypatch):
    world = world(min_devices=2)
    x, y = world.device("x"), world.device("y")
    from edge_runtime.wire.blob import Assembly

    accept, fails = Assembly.accept, [OSError(28, "No space left on device")] * 3

    def full(self, index, data):
        if "uploads" in str(self._complete) and fails:
            raise fails.pop()
        return accept(self, index, data)

    monkeypatch.setattr(Assembly, "accept", full)
    run(world, x, y)
    assert not fails
    assert world.loop.finished == "all rounds are done"
    assert any("could not be stored, and is asked for again: No space left" in note for note in world.watcher.notes)
    assert {tuple(sorted(world.journal.results(row.round.number))) for row in world.journal.rounds()} == {("x", "y")}


def test_update_that_is_gone_from_the_disk_is_asked_for_again(world):
    world = world(min_devices=2)
    x, y = world.device("x"), world.device("y")
    x.start()
    y.silent = True
    y.start()
    world.until(lambda: world.loop.round and world.loop.round.number == 0)
    y.silent = False
    y.start()
    world.until(lambda: world.loop.round.number == 1)
    y.silent = True
    world.until(lambda: "x" in world.journal.results(1))
    shutil.rmtree(world.uploads.root)
    y.silent = False
    world.crash()
    assert any("x's update of round 1 is not in the state folder" in note for note in world.watcher.notes)
    world.until_finished()
    assert set(world.journal.results(1)) == {"x", "y"}


def test_update_that_is_damaged_on_the_disk_is_asked_for_again_when_its_round_closes(world):
    world = world(min_devices=2)
    x, y = world.device("x", step=1.0), world.device("y", step=3.0)
    x.start()
    y.start()
    world.until(lambda: world.loop.round.number == 1 and "x" in world.journal.results(1))
    damaged = world.journal.results(1).get("x")
    path = world.uploads.of("x").path(damaged.weights.digest)
    if path.exists():
        path.write_bytes(path.read_bytes()[:-3])
    world.until_finished()
    assert world.loop.finished == "all rounds are done"
    table = world.bundle.group(("a", "b"), world.bundle.weights).table
    start = unpack(world.bundle.table, (world.root / "bundle" / "weights.safetensors").read_bytes())
    expected = np.concatenate([start[world.bundle.table.parts[part]] + 8 for part in table.parts])
    np.testing.assert_array_equal(unpack(table, models(world.journal, world.blobs)["a+b"]), expected)
    assert any("round 1 cannot close yet: an update is damaged (x: " in note for note in world.watcher.notes)


def test_start_weights_that_are_gone_are_made_again_and_trained_ones_are_named(world):
    world = world(min_devices=2)
    shutil.rmtree(world.blobs.root)
    world.crash()
    run(world, world.device("x"), world.device("y"))
    assert world.loop.finished == "all rounds are done"
    trained = world.journal.weights()["split", "a+b"].digest
    world.blobs.discard(trained)
    with pytest.raises(StateDamaged, match=f"weights of a\\+b in phase split \\({trained[:12]}\\) are not in"):
        world.crash()


def test_device_that_asks_for_training_artifacts_alone_is_left_out_where_there_are_none(world):
    world = world(min_devices=3, quorum=2)
    x, y, mallory = world.device("x"), world.device("y"), world.device("mallory")
    train = mallory.train

    def asks_for_more(plan, bundle):
        mallory.ort_training = "require"
        mallory.start()
        return train(plan, bundle)

    mallory.train = asks_for_more
    run(world, x, y, mallory)
    assert not world.loop.failed
    assert world.loop.finished == "all rounds are done"
    assert not [plan for plan in mallory.plans if plan.phase == "split"]
    assert any("mallory ask for nothing else and are left out" in note for note in world.watcher.notes)
    world.crash()  # its Hello is in the journal
    assert not world.loop.failed


def test_device_that_sends_escape_codes_is_shown_none_of_them(world):
    """A text that is not printable is not one of this protocol: the message is dropped, whoever made it."""
    escapes = "\x1b]0;owned\x07\x1b[2J\nmallory has joined: 99 online\n"
    world = world(min_devices=2, quorum=1)
    x, mallory = world.device("x"), world.device("mallory")
    topic = mallory.topics.event("mallory")
    odd = msgspec.json.encode(escapes).decode()
    for text in (
        f'{{"type":"refusal","round":0,"group":"a+b+c","reason":"heat","detail":{odd}}}',
        f'{{"type":"hello","software":{odd},"engine":"e","platform":"p","examples":{{}},"tasks":["a"],"memory_bytes":1}}',
        f'{{"type":"{escapes}"}}',
    ):
        world.link.say(topic, text.encode())
    world.link.say(f"{topic}/\x1b[2J", b"{}")
    run(world, x, mallory)
    assert world.dispatcher.counts["MessageInvalid"] == 3
    assert all(text.isprintable() for _, text in world.journal.notes())
    assert all(note.isprintable() for note in world.watcher.notes)
    world.dispatcher.note(escapes)
    assert world.watcher.notes[-1] == "?]0;owned??[2J mallory has joined: 99 online "


def test_device_that_floods_the_server_with_hellos_and_energy_writes_no_more_than_its_allowance(world, make_energy):
    world = world(min_devices=2, quorum=1)
    x, mallory = world.device("x"), world.device("mallory")
    for number in range(500):
        mallory.tell(samples.hello(software=f"version {number}"))
        mallory.tell(FinalEnergy(round=0, group="a+b+c", energy=make_energy(float(number))))
    world.until(lambda: not world.link.events)
    assert world.journal.hellos()["mallory"].software == "version 19"
    assert sum("mallory has joined" in text for _, text in world.journal.notes()) == 20
    assert world.dispatcher.counts["hello beyond a device's allowance"] == 480
    assert world.dispatcher.counts["energy beyond a device's allowance"] == 300
    run(world, x, mallory)
    assert world.loop.finished == "all rounds are done"
