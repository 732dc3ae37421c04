"""A hostile device that says whatever the schema lets it say, in any order, beside two honest ones.

However it goes, the server never raises, the federation ends with all rounds done, and honest devices' results count.
MAS_EDGE_FUZZ=2000 makes it that many courses instead of a few.
"""

import os
import random

import msgspec
import pytest
from hostile_messages import KINDS, HostileMessages

from edge_runtime.wire.errors import MessageInvalid
from edge_runtime.wire.messages import Status, encode

SEEDS = int(os.environ.get("MAS_EDGE_FUZZ", "6"))
BACKLOG = 50
"""Where this many messages wait, the hostile device is silent: here they are taken in turn, and on a broker fairly."""


class Hostile:
    """Says one thing at a time, drawn by a seed."""

    def __init__(self, world, seed, make_energy):
        self.world, self.random = world, random.Random(seed)
        self.device = world.device("mallory")
        self.device.hear = lambda topic, payload: self.heard.append((topic, payload))
        self.heard = []
        self.messages = HostileMessages(self.random, self.place, lambda: list(world.blobs.digests()), make_energy)

    def place(self):
        current = self.world.loop.round
        return (current.number, current.group) if current else (0, "a+b+c")

    def act(self):
        kind = self.random.choice([*KINDS, "status", "chunk", "bytes", "up"])
        topics = self.device.topics
        try:
            match kind:
                case "status":
                    state = self.random.choice(["online", "offline"])
                    self.device.say(topics.status("mallory"), encode(Status(state=state)))
                case "chunk":
                    digest = self.messages.digest()
                    own = self.messages.data
                    data = self.random.choice([own, own[:10], b"", bytes(1024)])
                    self.device.say(topics.upload("mallory", digest, self.random.randrange(3)), data)
                case "bytes":
                    self.device.say(topics.event("mallory"), self.random.randbytes(self.random.randrange(200)))
                case "up":
                    self.device.say(topics.up("mallory"), self.random.randbytes(40))
                case _:
                    self.device.tell(self.messages.draw(kind))
        except MessageInvalid:
            return


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
