"""Federations whose general model is computed by the server's host, with the processes of the field."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from edge_runtime.wire import bundle_folder
from edge_runtime.wire import manifest as manifests
from edge_runtime.wire import split_learning as exchange
from edge_runtime.wire.fragments import Assembler, to_fragments
from edge_runtime.wire.link import Connected, Delivery
from edge_runtime.wire.messages import Hello, Plan, Status, decode_server, encode
from edge_runtime.wire.reconstruction import ALLOWED_PSNR_DB, Reconstruction
from edge_runtime.wire.tensors import unpack
from edge_runtime.wire.topics import Topics

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
    done = subprocess.run([*command, "--stages", "2"], check=True, capture_output=True, text=True)
    assert "inputs were made again from the stem's embeddings, PSNR in dB: fp32 " in done.stderr
    return folder / "bundle"


def course(site, bundle, names, *flags, **settings):
    site.bundle = bundle
    server = site.serve(*flags, strategy="all_in_one", min_devices=len(names), **settings)
    devices = [site.device(name, count) for name, count in zip(names, (10, 7, 5, 9), strict=False)]
    return site.ends(server, *devices)


def test_stem_from_which_images_come_back_must_be_allowed_by_name_on_both_ends(site, bundle):
    manifest = bundle_folder.read_folder(bundle)
    assert manifest.reconstruction.fp32 < ALLOWED_PSNR_DB  # its stem keeps a sixth of the numbers
    site.bundle = shutil.copytree(bundle, site.root / "wide")
    measured = Reconstruction(fp32=60.0, fp16=60.0, int8=40.0)
    changed = msgspec.structs.replace(manifest, reconstruction=measured)
    (site.bundle / bundle_folder.MANIFEST).write_bytes(manifests.encode(changed))
    server = site.serve("--no-split-learning-allow-reconstruction", strategy="fedbone")
    assert server.wait() == 2
    assert "20 dB are the most" in server.said
    server = site.serve(strategy="fedbone", min_devices=1, quorum=1)
    device = site.device("attic", allow_reconstruction=False)
    site.until(device, "this device sends no such embeddings (allow_reconstruction in agent.toml)")


EXPERIMENT = """
data = "data"
bundle = "{bundle}"
seeds = [7]
[settings]
grouping.strategy = "all_in_one"
grouping.merged_rounds = 2
grouping.split_rounds = 1
grouping.probe_rounds = 1
grouping.probe_every = 1
training.batch = 4
training.lr = 0.05
rounds.deadline_s = 600.0
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
    models = [course(here, bundle, NAMES), course(there, bundle, NAMES, "--split-learning-encoder", "server")]
    assert models[0] == models[1]
    table = bundle_folder.read_folder(bundle).table
    ((_, data),) = models[1].items()
    assert not np.array_equal(unpack(table, data), unpack(table, (bundle / bundle_folder.WEIGHTS).read_bytes()))
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
split_learning.encoder = "server"
board = { busy_w = 9.0 }
[methods.exact]
split_learning.encoder = "server"
[methods.rounded]
split_learning.encoder = "server"
split_learning.precision = "int8"
[methods.noisy]
split_learning.encoder = "server"
split_learning.noise = 0.5
[methods.far]
split_learning.encoder = "server"
board = { up_bytes_per_s = 20_000.0, down_bytes_per_s = 40_000.0, latency_s = 0.1 }
[methods.fedbone]
grouping.strategy = "fedbone"
[methods.lost]
grouping.strategy = "fedbone"
board = { drop_rate = 1.0, away_s = 30.0 }
[methods.mas]
grouping.strategy = "mas"
grouping.probe = "representation"
split_learning.encoder = "server"
[methods."mas on devices"]
grouping.strategy = "mas"
grouping.probe = "representation"
[fleet.encoder_server]
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
    assert bench.model("noisy") != bench.model("exact")
    assert found["noisy"]["bytes_up"] == exact["bytes_up"]
    assert bench.model("lost") == bench.model("fedbone") != bench.model("exact")
    assert rounded["bytes_up"] < exact["bytes_up"] == far["bytes_up"]
    # Three rounds of at least 3 steps with 4 messages, a beginning and an end.
    assert far["simulated_s"] > exact["simulated_s"] + 3 * (3 * 4 + 4) * 0.1
    assert far["simulated_j"] > exact["simulated_j"]
    # Affinities measured in split training split the general model as those measured on devices.
    divided = [sorted((bench.folder(name) / "models").glob("*.safetensors")) for name in ("mas", "mas_on_devices")]
    assert len(divided[0]) == 2
    assert [path.read_bytes() for path in divided[0]] == [path.read_bytes() for path in divided[1]]
    assert lost["simulated_s"] > bone["simulated_s"] + 3 * 29.0
    assert not (bench.folder("exact") / "server" / "general").exists()
    costs = msgspec.json.decode((bench.root / "out" / "costs.json").read_bytes())
    assert 0 <= costs["train_stem_s"] <= costs["train_s"]
    assert 0 < costs["evaluate_stem_s"] <= costs["evaluate_s"]


def child(process):
    """The host that a server has started; None while there is none."""
    tasks = Path(f"/proc/{process.process.pid}/task")
    found = [number for task in tasks.glob("*/children") for number in task.read_text().split()]
    return int(found[0]) if found else None


def test_processes_cut_off_at_random_moments_end_as_if_they_had_not_been(make_site, bundle):
    """Devices, the server and its host, in the middle of a round and of a batch."""
    settings = {
        "min_devices": 2,
        "quorum": 2,
        "epochs": 30,
        "strategy": "fedbone",
        "split_learning_parts": 2,
        "stems": "own",
    }
    counts = {"a": 10, "b": 6}
    calm = make_site("calm")
    calm.bundle = bundle
    server = calm.serve(**settings)
    expected = calm.ends(server, *(calm.device(name, count) for name, count in counts.items()))
    site, chance, hit = make_site("site"), random.Random(5), []
    site.bundle = bundle
    server = site.serve(**settings)
    devices = []
    for name, count in counts.items():
        config = site.enrol(name, data=str(site.data(name, count)))
        with config.open("a") as file:
            file.write("checkpoint_s = 0.1\n")
        devices.append(site.run(f"device-{name}", "edge_runtime", "run", "--config", config))
    site.until(server, "b has joined")
    while len(hit) < 4:
        time.sleep(chance.uniform(0.5, 1.5))
        victim = ["host", server, *devices][len(hit) % 4]
        if victim == "host":
            if (number := child(server)) is None:
                continue
            os.kill(number, signal.SIGKILL)
        elif server.process.poll() is not None or not victim.again():
            break
        hit.append(victim)
    assert {"host", server, *devices} <= set(hit), "the federation ended too early to be disturbed"
    assert site.ends(server, *devices) == expected
    ((_, data),) = expected.items()
    table, began = bundle_folder.read_folder(bundle).table, (bundle / bundle_folder.WEIGHTS).read_bytes()
    changed = {part: (unpack(table, data)[at] != unpack(table, began)[at]).any() for part, at in table.parts.items()}
    assert changed == {part: part != "stem" for part in table.parts}  # stems are the devices' own
    assert site.report()["test_loss"] == calm.report()["test_loss"]


class Impostor:
    """A device with a token and labels that says what no device would, by hand."""

    def __init__(self, site, name):
        self.topics = Topics("home")
        self.name = name
        self.link = site.link(name)
        self.link.subscribe(self.topics.command(name), self.topics.down(name))
        self.said, self.assembler = [], Assembler(2**24)

    def join(self):
        self.until(lambda event: isinstance(event, Connected))
        hello = Hello(
            software="x", engine="x", platform="x", examples={"train": 4}, tasks=("depth",), memory_bytes=None
        )
        self.link.publish(self.topics.status(self.name), encode(Status(state="online")), retain=True)
        self.link.publish(self.topics.event(self.name), encode(hello))

    def leave(self):
        self.link.publish(self.topics.status(self.name), encode(Status(state="offline")), retain=True)
        self.link.close()

    def until(self, wanted):
        until_s = time.monotonic() + 120
        while time.monotonic() < until_s:
            event = self.link.receive(1.0)
            if event is not None and wanted(event):
                return event
        raise AssertionError("it did not come")

    def plan(self):
        """The first plan of training."""
        command = self.topics.command(self.name)
        while True:
            event = self.until(lambda event: isinstance(event, Delivery) and event.topic == command)
            plan = decode_server(event.payload)
            if isinstance(plan, Plan) and plan.work == "train":
                return plan

    def say(self, data):
        for piece in to_fragments(len(self.said), data):
            self.link.publish(self.topics.up(self.name), piece)
        self.said.append(data)

    def refusal(self, layout):
        """The host's next refusal."""
        down = self.topics.down(self.name)
        while True:
            event = self.until(lambda event: isinstance(event, Delivery) and event.topic == down)
            if (data := self.assembler.accept(event.payload)) is not None:
                header = exchange.decode(layout, data).header
                if header.kind == "refused":
                    return header.reason, header.detail
                assert header.kind in {"ready", "representation"}


def test_a_device_that_says_nonsense_or_stops_in_mid_batch_does_not_keep_the_others(site, bundle):
    site.bundle = bundle
    server = site.serve(min_devices=2, quorum=2, strategy="fedbone", round_deadline_s=15, split_learning_idle_s=2)
    site.until(server, "listens")
    impostor = Impostor(site, "c")
    impostor.join()
    site.until(server, "c has joined")
    devices = [site.device(name) for name in "ab"]
    number = impostor.plan().round
    layout = exchange.MessageLayout.of(bundle_folder.read_folder(bundle), 4)
    header = partial(exchange.SplitHeader, round=number)
    e = np.zeros((2, *layout.embedding), np.float32)
    impostor.link.publish(impostor.topics.up("c"), b"no piece")  # counted, and not answered
    impostor.say(b"rubbish")
    assert impostor.refusal(layout)[0] == "invalid"
    impostor.say(exchange.encode(exchange.SplitMessage(header=header(kind="begin", seed=1))))
    for data in (e[:, :1], np.zeros((5, *layout.embedding), np.float32)):  # other shapes, more than a batch
        message = exchange.SplitMessage(header=header(kind="embedding", samples=len(data)), arrays=(data,))
        impostor.say(exchange.encode(message))
        assert impostor.refusal(layout)[0] == "invalid"
    good = exchange.encode(exchange.SplitMessage(header=header(kind="embedding", samples=2), arrays=(e,)))
    impostor.say(good[:-4] + np.float32(np.nan).tobytes())
    assert impostor.refusal(layout) == ("invalid", "a value of the embedding is not finite")
    z = tuple(np.zeros((2, *shape), np.float32) for shape in layout.representation)
    impostor.say(exchange.encode(exchange.SplitMessage(header=header(kind="gradient", samples=2, part=3), arrays=z)))
    assert impostor.refusal(layout)[0] == "unknown"
    impostor.say(good)  # the representation comes, and is never answered
    reason, detail = impostor.refusal(layout)
    assert (reason, detail) == ("timeout", "the device was silent for 2 s")
    impostor.leave()
    site.ends(server, *devices)
    assert site.report()["rounds"][0]["clients"] == ["a", "b"]
