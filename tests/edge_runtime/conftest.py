"""The tiny bundle and data set of tests/fixtures, on the real engine, and what PyTorch computed with them."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import samples

from edge_runtime.agent.work import DownloadedPlan
from edge_runtime.datasets.dataset import Dataset
from edge_runtime.training.engine import Engine
from edge_runtime.training.graph_cache import GraphCache
from edge_runtime.training.model import Model
from edge_runtime.wire import bundle_folder
from edge_runtime.wire.blob import BlobStore
from edge_runtime.wire.tensors import transfer, unpack

FIXTURES = Path(__file__).parents[1] / "fixtures"


class Tiny:
    """The bundle of tests/fixtures, whose reference was computed with these settings."""

    folder = FIXTURES / "bundle"
    data = FIXTURES / "data"
    deployed = FIXTURES / "model.onnx"
    settings = samples.training(epochs=2, lr=0.02, weight_decay=0.01, seed=3)
    probe_lr = 0.5

    def __init__(self):
        self.manifest = bundle_folder.read_folder(self.folder)
        self.table = self.manifest.table
        self.weights = unpack(self.table, (self.folder / bundle_folder.WEIGHTS).read_bytes())
        self.dataset = Dataset.open(self.data)
        with np.load(FIXTURES / "reference.npz") as file:
            self.reference = dict(file)
        self.shelf = GraphCache(Engine())

    def group(self, *tasks):
        """The manifest and the weights of some tasks alone."""
        manifest = self.manifest.group(tasks, self.manifest.weights)
        return manifest, transfer(self.table, self.weights, manifest.table)

    def model(self, *tasks):
        manifest, weights = self.group(*(tasks or self.manifest.task_names))
        locate = lambda name, _: bundle_folder.graph_path(self.folder, name)  # noqa: E731
        return Model(manifest, GraphCache(Engine()).of(manifest, locate), weights)

    def velocity(self):
        return np.zeros_like(self.weights)

    def change(self, **values):
        return msgspec.structs.replace(self.settings, **values)

    def store(self, folder):
        """A device's blob store with every graph of the bundle."""
        store = BlobStore(folder)
        for name in self.manifest.graphs:
            store.add(bundle_folder.graph_path(self.folder, name).read_bytes())
        return store

    @staticmethod
    def downloaded(plan, manifest, store, weights):
        return DownloadedPlan(plan=plan, manifest=manifest, weights=weights, graphs=store)

    def plan(self, *, round_number=1, training=None, data_split=None):
        work = {"training": training or self.change(epochs=1)}
        if data_split is not None:
            work = {"work": "evaluate", "data_split": data_split}
        return samples.plan(round_number, tasks=self.manifest.task_names, **work)


@pytest.fixture(scope="session")
def tiny():
    return Tiny()


@pytest.fixture
def data_copy(tiny, tmp_path):
    """A data set that a test may damage."""
    return Path(shutil.copytree(tiny.data, tmp_path / "data"))


@pytest.fixture
def bundle_copy(tiny, tmp_path):
    """A bundle that a test may damage."""
    return Path(shutil.copytree(tiny.folder, tmp_path / "bundle"))
