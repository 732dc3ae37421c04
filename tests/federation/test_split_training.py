"""Federations whose general model is computed by the server's host, with the processes of the field."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from edge_runtime.wire import manifest as manifests
from edge_runtime.wire.tensors import unpack

pytestmark = pytest.mark.workstation
ROOT = Path(__file__).parents[2]
NAMES = ("attic", "cellar", "kitchen")
LIMIT_S = 240.0

MODEL = """
from export.models import vit


def build():
    tasks = ("depth", "normals", "segmentation")
    return vit.make(tasks, width=8, heads=2, depth=2, size=16, patch=4)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split")
    (folder / "model.py").write_text(MODEL)
    command = [
        sys.executable,
        "-m",
        "export",
        "compile",
        str(folder / "model.py:build"),
        "--out",
        str(folder / "bundle"),
    ]
    subprocess.run([*command, "--stages", "2"], check=True)
    return folder / "bundle"


def course(site, bundle, names, *flags, **settings):
    site.bundle = bundle
    server = site.serve(*flags, strategy="all_in_one", min_devices=len(names), **settings)
    devices = [site.device(name, count) for name, count in zip(names, (10, 7, 5, 9), strict=False)]
    return site.ends(server, *devices)


EXPERIMENT = """
data = "data"
bundle = "{bundle}"
seeds = [7]
[settings]
strategy = "all_in_one"
merged_rounds = 2
split_rounds = 1
probe_rounds = 1
probe_every = 1
batch = 4
lr = 0.05
round_deadline_s = 600.0
{methods}
"""


class Bench:
    """A folder with data sets and an experiment."""

    def __init__(self, site, bundle, methods):
        self.root = site.root
        for name, count in zip(NAMES, (10, 7, 5), strict=True):
            site.data(name, count)
        (self.root / "experiment.toml").write_text(EXPERIMENT.format(bundle=bundle, methods=methods))

    def start(self):
        command = ["-m", "broker_server", "simulate", "experiment.toml", "--out", "out", "--workers", "1"]
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self):
        """The summaries by method."""
        process = self.start()
        said, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, said[-3000:]
        found = msgspec.json.decode((self.root / "out" / "summary.json").read_bytes())
        return {each["method"]: each for each in found}

    def folder(self, method):
        return self.root / "out" / "runs" / method / "7"

    def model(self, method):
        (path,) = (self.folder(method) / "models").glob("*.safetensors")
        return path.read_bytes()


def test_weights_are_those_of_devices_that_have_the_encoder(make_site, bundle):
    here, there = make_site("device"), make_site("host")
    models = [course(here, bundle, NAMES), course(there, bundle, NAMES, "--general", "host")]
    assert models[0] == models[1]
    table = manifests.read_folder(bundle).table
    ((_, data),) = models[1].items()
    assert not np.array_equal(unpack(table, data), unpack(table, (bundle / manifests.WEIGHTS).read_bytes()))
    reports = [site.report() for site in (here, there)]
    assert reports[0]["test_loss"] == reports[1]["test_loss"]
    up = [sum(row["bytes_up"] for row in report["rounds"]) for report in reports]
    assert up[1] > up[0]  # activations, at this size more than the encoder's weights

    bench = Bench(make_site("simulated"), bundle, "[methods.device]\n[methods.host]\ngeneral = 'host'\n")
    simulated = bench.run()
    ((_, real),) = models[1].items()
    assert bench.model("device") == bench.model("host") == real
    assert simulated["host"]["test_loss"] == simulated["device"]["test_loss"]
    # The same bytes, but for what was said twice in the field.
    assert simulated["host"]["bytes_up"] <= sum(row["bytes_up"] for row in reports[1]["rounds"] if row["train_loss"])
    assert simulated["host"]["bytes_up"] > simulated["device"]["bytes_up"]


METHODS = """
[methods.cut]
general = "host"
board = { busy_w = 9.0 }
[methods.exact]
general = "host"
[methods.rounded]
general = "host"
general_precision = "int8"
[methods.far]
general = "host"
board = { up_bytes_per_s = 20_000.0, down_bytes_per_s = 40_000.0, latency_s = 0.1 }
[methods.fedbone]
strategy = "fedbone"
[methods.lost]
strategy = "fedbone"
board = { drop_rate = 1.0, away_s = 30.0 }
[fleet.host]
speed = 4.0
"""


def test_a_simulated_exchange_takes_its_bytes_and_time_and_changes_no_weights(make_site, bundle):
    bench = Bench(make_site(), bundle, METHODS)
    process, until_s = bench.start(), time.monotonic() + LIMIT_S
    taught = bench.folder("cut") / "server" / "general"
    while not list(taught.glob("*/*.safetensors")) and process.poll() is None and time.monotonic() < until_s:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=LIMIT_S)
    found = bench.run()
    exact, rounded, far, bone, lost = (found[name] for name in ("exact", "rounded", "far", "fedbone", "lost"))
    assert bench.model("cut") == bench.model("far") == bench.model("exact") != bench.model("rounded")
    assert bench.model("lost") == bench.model("fedbone") != bench.model("exact")
    assert rounded["bytes_up"] < exact["bytes_up"] == far["bytes_up"]
    # Three rounds of at least 3 steps with 4 messages, a beginning and an end.
    assert far["simulated_s"] > exact["simulated_s"] + 3 * (3 * 4 + 4) * 0.1
    assert far["simulated_j"] > exact["simulated_j"]
    assert lost["simulated_s"] > bone["simulated_s"] + 3 * 29.0
    assert not (bench.folder("exact") / "server" / "general").exists()
    costs = msgspec.json.decode((bench.root / "out" / "costs.json").read_bytes())
    assert 0 < costs["train_stem_s"] <= costs["train_s"]
    assert 0 < costs["evaluate_stem_s"] <= costs["evaluate_s"]
