"""Messages of a hostile device, drawn by a seed: whatever the schema lets it say."""

import hashlib

import samples

from edge_runtime.wire.blob import Blob, ChunkRun
from edge_runtime.wire.messages import Affinity, FinalEnergy, Need, Progress, Refusal

TASKS = ("a", "b", "c")
KINDS = ("hello", "need", "progress", "refusal", "update", "evaluation", "energy")


class HostileMessages:
    """Draws messages. `place` gives the open round's number and group, `known` digests that the server has."""

    def __init__(self, random, place, known, make_energy, *, tasks=TASKS):
        self.random, self.place, self.known, self.make_energy = random, place, known, make_energy
        self.names = tasks
        self.data = random.randbytes(300)

    def draw(self, kind):
        """Return a message of a kind. Raises MessageInvalid where its schema refuses it."""
        return getattr(self, kind)()

    def digest(self):
        own = hashlib.sha256(self.data).hexdigest()
        known = self.known() or [own]
        return self.random.choice([own, self.random.choice(known), "0" * 64])

    def number(self):
        return max(0, self.place()[0] + self.random.choice([0, 0, 0, -1, 1, 7]))

    def group(self):
        current = self.place()[1]
        return self.random.choice(
            [current, current, "+".join(self.names), "+".join(self.names[:2]), self.names[-1], "zzz"]
        )

    def tasks(self):
        names = self.random.sample([*self.names, "zzz"], self.random.randrange(1, 4))
        return tuple(names)

    def hello(self):
        return samples.hello(
            software=f"v{self.random.randrange(3)}",
            tasks=self.tasks(),
            examples=self.random.choice([{}, {"train": 0}, {"train": 2**53}, {"train": 10}]),
            ort_training=self.random.choice(["off", "auto", "require"]),
        )

    def need(self):
        firsts = self.random.sample(range(100), 3)
        runs = tuple(ChunkRun(first, self.random.choice([1, 5, 2**20])) for first in firsts)
        return Need(digest=self.digest(), runs=runs)

    def progress(self):
        return Progress(round=self.number(), stage="train", done=self.random.randrange(9), total=3)

    def refusal(self):
        return Refusal(round=self.number(), group=self.group(), reason="heat", detail="x" * self.random.randrange(500))

    def losses(self):
        values = [0.0, -1e18, 1e18, 1.5]
        return {task: self.random.choice(values) for task in self.tasks()}

    def affinity(self):
        tasks = self.random.choice([self.names, self.tasks()])
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
