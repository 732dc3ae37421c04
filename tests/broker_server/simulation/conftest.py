"""Summaries of runs that nobody ran, and federations whose rounds are closed by hand."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import samples

from broker_server.rounds.device_uploads import DeviceUploads
from broker_server.rounds.federation import Federation
from broker_server.rounds.journal import FederationJournal
from broker_server.rounds.round_state import RoundTraffic
from broker_server.server.keys import load_or_create
from broker_server.simulation.run_cache import GroupRuns, RunCache
from broker_server.simulation.summary import Summary
from broker_server.simulation.timeline import Timeline
from edge_runtime.wire.blob import BlobStore
from edge_runtime.wire.bundle_folder import read_folder
from edge_runtime.wire.manifest import decode
from edge_runtime.wire.messages import Affinity
from edge_runtime.wire.tensors import pack, unpack

BUNDLE = Path(__file__).parents[2] / "fixtures" / "bundle"
DEVICES = ("attic", "cellar")
ROUND_S = 10.0


@pytest.fixture
def make_summary():
    def make(method="MAS-2", seed=0, **others):
        given = {"strategy": "mas", "test_loss": {"depth": 0.25, "total": 0.25}, "groups": (("depth",),), "rounds": 3}
        given |= {"compute_s": 12.4, "critical_path_s": 6.0, "simulated_s": 9.0, "simulated_j": 50.0}
        return Summary(**{"method": method, "seed": seed, "bytes_up": 1, "bytes_down": 2, **given, **others})

    return make


class Played:
    """A federation over the fixture's bundle. Every round takes ROUND_S, adds one to the weights and is told of."""

    def __init__(self, folder, cache, make_config, *, context="boards", energy=None, **settings):
        settings = {"merged_rounds": 2, "split_rounds": 1, "probe_rounds": 1, "probe_every": 1} | settings
        config, bundle = make_config(**settings), read_folder(BUNDLE)
        self.timeline = Timeline()
        self.journal, self.blobs = (
            FederationJournal(folder / "journal", self.timeline.clock),
            BlobStore(folder / "blobs"),
        )
        self.uploads = DeviceUploads(folder / "uploads")
        self.timeline.now_s = max((row.closed_s for row in self.journal.rounds()), default=0.0)
        self.energy = energy
        self.played = []
        """The rounds that were not taken from the cache."""
        terms = config.terms(bundle)
        self.federation = Federation(
            journal=self.journal,
            blobs=self.blobs,
            uploads=self.uploads,
            bundle=bundle,
            folder=BUNDLE,
            key=load_or_create(folder),
            terms=terms,
        )
        self.group_runs = GroupRuns(
            self.federation,
            self.journal,
            self.blobs,
            aggregation=terms.aggregation,
            cache=cache,
            timeline=self.timeline,
            context=context,
        )

    def round(self):
        """Close the next round; whether there was one."""
        planned = self.group_runs.next()
        if planned is None:
            return False
        self.played.append(planned)
        self.journal.open_round(planned, DEVICES, 2)
        self.timeline.pass_by(ROUND_S)
        for number, device in enumerate(DEVICES):
            self.journal.add_result(planned.number, device, self.result(planned, device))
            self.group_runs.computed(device, SimpleNamespace(round=planned.number), 1.0 + number)
        self.federation.close(planned, DEVICES, RoundTraffic(up_bytes=1000))
        return True

    def to_the_end(self):
        while self.round():
            pass
        return self

    def result(self, planned, device):
        plan, tasks = self.federation.plan(planned, 60.0), planned.tasks
        shared = {"number": planned.number, "group": planned.group, "examples": dict.fromkeys(tasks, 8), "wall_s": 5.0}
        shared |= {"bytes_down": 100, "energy": self.energy}
        if planned.work == "evaluate":
            return samples.evaluation(loss=dict.fromkeys(tasks, 0.5), metrics=dict.fromkeys(tasks, 0.25), **shared)
        table = decode(self.blobs.read(plan.bundle.digest)).table
        trained = unpack(table, self.blobs.read(plan.weights.digest)) + np.float32(1.0)
        zeros = ((0.0,) * len(tasks),) * len(tasks)
        return samples.update(
            weights=self.uploads.of(device).add(pack(table, trained)),
            train_loss=dict.fromkeys(tasks, 1.0),
            val_loss=dict.fromkeys(tasks, 1.0),
            affinity=Affinity(tasks=tasks, count=1, mean=zeros, variance=None) if planned.probe else None,
            **shared,
        )

    def weights(self):
        return {key: self.blobs.read(blob.digest) for key, blob in self.journal.weights().items()}


@pytest.fixture
def cache(tmp_path):
    return RunCache(tmp_path / "library")


@pytest.fixture
def play(tmp_path, cache, make_config):
    """Makes federations that share a cache, each in a folder of its own or of the name given."""
    made = []

    def make(name=None, **settings):
        made.append(Played(tmp_path / (name or f"run-{len(made)}"), cache, make_config, **settings))
        return made[-1]

    yield make
    for each in made:
        each.journal.close()
