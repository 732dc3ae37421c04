"""A hostile device that says whatever the schema lets it say, in any order, beside two honest ones.

However it goes, the server never raises, the federation ends with all rounds done, and honest devices' results count.
MAS_EDGE_FUZZ=2000 makes it that many courses instead of a few.
"""

import hashlib
import os
import random

import msgspec
import pytest
import samples

from edge_runtime.wire.blob import Blob
from edge_runtime.wire.errors import MessageInvalid
from edge_runtime.wire.messages import Affinity, FinalEnergy, Need, Progress, Refusal, Status, encode

TASKS = ("a", "b", "c")
SEEDS = int(os.environ.get("MAS_EDGE_FUZZ", "6"))
BACKLOG = 50
"""Where this many messages wait, the hostile device is silent: here they are taken in turn, and on a broker fairly."""
GROUPS = ("a+b+c", "a+b", "c", "zzz")


class Hostile:
    """Says one thing at a time, drawn by a seed."""

    def __init__(self, world, seed, make_energy):
        self.world, self.random = world, random.Random(seed)
        self.device = world.device("mallory")
        self.device.hear = lambda topic, payload: self.heard.append((topic, payload))
        self.heard = []
        self.make_energy = make_energy
        self.data = self.random.randbytes(300)

    def act(self):
        kind = self.random.choice(
            ["hello", "status", "need", "progress", "refusal", "update", "evaluation", "energy", "chunk", "bytes", "up"]
        )
        topics = self.device.topics
        try:
            match kind:
                case "status":
                    state = self.random.choice(["online", "offline"])
                    self.device.say(topics.status("mallory"), encode(Status(state=state)))
                case "chunk":
                    digest = self.digest()
                    data = self.random.choice([self.data, self.data[:10], b"", bytes(1024)])
                    self.device.say(topics.upload("mallory", digest, self.random.randrange(3)), data)
                case "bytes":
                    self.device.say(topics.event("mallory"), self.random.randbytes(self.random.randrange(200)))
                case "up":
                    self.device.say(topics.up("mallory"), self.random.randbytes(40))
                case _:
                    self.device.tell(getattr(self, kind)())
        except MessageInvalid:
            return

    def digest(self):
        own = hashlib.sha256(self.data).hexdigest()
        known = list(self.world.blobs.digests()) or [own]
        return self.random.choice([own, self.random.choice(known), "0" * 64])

    def number(self):
        current = self.world.loop.round.number if self.world.loop.round else 0
        return max(0, current + self.random.choice([0, 0, 0, -1, 1, 7]))

    def group(self):
        current = self.world.loop.round.group if self.world.loop.round else "a+b+c"
        return self.random.choice([current, current, *GROUPS])

    def tasks(self):
        names = self.random.sample([*TASKS, "zzz"], self.random.randrange(1, 4))
        return tuple(names)

    def hello(self):
        return samples.hello(
            software=f"v{self.random.randrange(3)}",
            tasks=self.tasks(),
            examples=self.random.choice([{}, {"train": 0}, {"train": 2**53}, {"train": 10}]),
            ort_training=self.random.choice(["off", "auto", "require"]),
        )

    def need(self):
        return Need(digest=self.digest(), chunks=tuple(self.random.sample(range(100), 3)))

    def progress(self):
        return Progress(round=self.number(), stage="train", done=self.random.randrange(9), total=3)

    def refusal(self):
        return Refusal(round=self.number(), group=self.group(), reason="heat", detail="x" * self.random.randrange(500))

    def losses(self):
        values = [0.0, -1e18, 1e18, 1.5]
        return {task: self.random.choice(values) for task in self.tasks()}

    def affinity(self):
        tasks = self.random.choice([TASKS, self.tasks()])
        row = tuple(self.random.choice([0.0, 1e18, -1e18]) for _ in tasks)
        return self.random.choice([None, Affinity(tasks=tasks, count=1, mean=(row,) * len(tasks), variance=None)])

    def update(self):
        scheme = self.random.choice(["fp32", "int8", "topk", "fp16"])
        return samples.update(
            self.number(),
            group=self.group(),
            weights=Blob(digest=self.digest(), size_bytes=self.random.choice([1, 300, 1300, 2**31]), chunk_bytes=1024),
            scheme=scheme,
            base=None if scheme == "fp32" else self.digest(),
            examples={task: self.random.choice([0, 1, 10, 2**53]) for task in self.tasks()},
            train_loss=self.losses(),
            val_loss=self.random.choice([None, self.losses()]),
            affinity=self.affinity(),
        )

    def evaluation(self):
        return samples.evaluation(
            self.number(), group=self.group(), loss=self.losses(), examples=dict.fromkeys(self.tasks(), 2**53)
        )

    def energy(self):
        return FinalEnergy(round=self.number(), group=self.group(), energy=self.make_energy(1e12))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_server_goes_on_whatever_an_enrolled_device_says(world, make_energy, seed):
    world = world(min_devices=2, quorum=2, round_deadline_s=20.0)
    hostile = Hostile(world, seed, make_energy)
    honest = [world.device(name) for name in ("x", "y")]
    for device in honest:
        device.start()
    hostile.device.start()
    for _ in range(4000):
        if world.loop.finished:
            break
        for _ in range(hostile.random.randrange(8) if len(world.link.events) < BACKLOG else 0):
            hostile.act()
        world.loop.step(0.25)
        if hostile.random.random() < 0.002:
            world.crash()
    world.until_finished()
    assert world.loop.finished == "all rounds are done"
    assert all(note.isprintable() for note in world.watcher.notes)
    trained = [row for row in world.journal.rounds() if row.round.work == "train"]
    assert all({"x", "y"} & set(world.journal.results(row.round.number)) for row in trained)
    graphs = {blob.digest for blob in world.federation.manifests.graphs}
    assert graphs <= set(world.blobs.digests())
    assert msgspec.json.encode(world.journal.hellos())
