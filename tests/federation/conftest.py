"""Whole federations: the server and its devices as the processes that run in the field, on the tiny bundle."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from ports import free_port

from broker_server.server.keys import load_or_create
from edge_runtime.wire.names import group_id

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
LIMIT_S, SIMULATION_LIMIT_S = 300.0, 240.0
TASKS = ("depth", "normals", "segmentation")


class Process:
    """A process of ours, with what it says in a file."""

    def __init__(self, log, module, *arguments, python=sys.executable):
        self.log, self.command = log, [str(python), "-m", module, *map(str, arguments)]
        self.start()

    def start(self):
        log = self.log.open("ab")
        with log:
            self.process = subprocess.Popen(
                self.command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=self.log.parent, stdout=log, stderr=log
            )

    def again(self):
        """Cut it off at once, as a power cut would, and start it anew; False if it had ended by itself."""
        if self.process.poll() is not None:
            return False
        self.kill()
        self.start()
        return True

    def kill(self):
        self.process.kill()
        self.process.wait()

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, limit_s=LIMIT_S):
        """The exit code."""
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.command} did not end in time: {self.said[-3000:]}") from None

    @property
    def said(self):
        return self.log.read_text()


class Site:
    """A folder with a server's state, data sets and devices; everything that was started is stopped at the end."""

    bundle = FIXTURES / "bundle"
    tasks = TASKS

    def __init__(self, root):
        self.root, self.state, self.port = root, root / "state", free_port()
        root.mkdir(parents=True, exist_ok=True)
        self.key = load_or_create(self.state)
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.processes = []

    def run(self, log, module, *arguments, python=sys.executable):
        self.processes.append(Process(self.root / f"{log}.log", module, *arguments, python=python))
        return self.processes[-1]

    def serve(self, *flags, **settings):
        settings = {
            "state": self.state, "bundle": self.bundle, "host": "127.0.0.1", "port": self.port,
            "merged_rounds": 2, "probe_rounds": 1, "probe_every": 1, "split_rounds": 1, "groups": 2,
            "batch": 4, "lr": 0.05, "seed": 7, "round_deadline_s": 60,
        } | settings  # fmt: skip
        flags = ("--split-learning-allow-reconstruction", *flags)
        given = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
        return self.run("server", "broker_server", *given, "--exit-when-finished", "--quiet", *flags)

    def data(self, name, count=10):
        """A data set of its own: `count` of the fixture's images, others for each name."""
        folder = self.root / "data" / name
        for split in ("train", "val", "test"):
            source = FIXTURES / "data" / split
            (folder / split).mkdir(parents=True, exist_ok=True)
            size = len(np.load(source / "image.npy"))
            seed = hashlib.sha256(f"{name}/{split}".encode()).digest()
            chosen = np.random.default_rng(list(seed)).permutation(size)[: count if split == "train" else size]
            for path in source.glob("*.npy"):
                np.save(folder / split / path.name, np.load(path)[chosen])
        shutil.copy(FIXTURES / "data" / "dataset.json", folder)
        return folder

    def link(self, name):
        """The link of a device that is enrolled here, for messages of one's own."""
        from edge_runtime.agent.identity import ServerKey
        from edge_runtime.agent.signed_link import SignedDeviceLink
        from edge_runtime.wire.counter import Counter
        from edge_runtime.wire.envelope import Scope
        from edge_runtime.wire.mqtt import MqttLink

        config = msgspec.toml.decode(self.enrol(name).read_bytes())
        plain = MqttLink(
            config["url"], client_id=name, username=name, password=config["token"], ca_pem=config.get("ca")
        )
        return SignedDeviceLink(
            plain,
            Scope(federation="home", device=name),
            key=Ed25519PrivateKey.generate(),
            code=bytes.fromhex(config["code"]),
            server_key=ServerKey(self.root, config["server_key"]),
            counter=Counter(self.root / f"{name}.counter"),
        )

    def enrol(self, name, *, meter="none", meter_root="/", meter_idle_s=0.0, **settings):
        pytest.importorskip("jwt")
        from broker_server.server.enrol import enrol

        config = self.root / name / "agent.toml"
        enrol(
            name,
            config,
            **(
                {
                    "state": self.state,
                    "federation": "home",
                    "url": self.url,
                    "threads": 1,
                    "force": True,
                    "split_learning": True,
                    "allow_reconstruction": True,
                }
                | settings
            ),
        )
        with config.open("a") as file:
            file.write(f'meter = "{meter}"\nmeter_root = "{meter_root}"\nmeter_idle_s = {meter_idle_s}\n')
        return config

    def device(self, name, count=10, *, python=sys.executable, **settings):
        config = self.enrol(name, data=str(self.data(name, count)), **settings)
        return self.run(f"device-{name}", "edge_runtime", "run", "--config", config, python=python)

    def report(self):
        return msgspec.json.decode((self.state / "report" / "report.json").read_bytes())

    def models(self):
        """The bytes of every model that the report has, by group."""
        return {path.stem: path.read_bytes() for path in (self.state / "report" / "models").glob("*.safetensors")}

    def ends(self, server, *devices):
        """The federation has gone to its end, and everybody knows."""
        assert server.wait() == 0, server.said[-3000:]
        for device in devices:
            assert device.wait() == 0, device.said[-3000:]
        groups = self.report()["split"]["groups"] if self.report()["split"] else [self.tasks]
        assert sorted(self.models()) == sorted(group_id(group) for group in groups)
        return self.models()

    def until(self, process, text, limit_s=LIMIT_S):
        """Wait until a process has said something."""
        until_s = time.monotonic() + limit_s
        while text not in process.said:
            assert time.monotonic() < until_s, f"{text!r} was not said: {process.said[-3000:]}"
            assert process.process.poll() is None or text in process.said, process.said[-3000:]
            time.sleep(0.05)

    def stop(self):
        for process in self.processes:
            if process.process.poll() is None:
                process.signal(signal.SIGCONT)
                process.kill()


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory):
    """One for all tests of a module."""
    pytest.importorskip("jwt")
    site = Site(tmp_path_factory.mktemp("shared"))
    yield site
    site.stop()


@pytest.fixture
def make_site(tmp_path):
    pytest.importorskip("jwt")
    sites = []

    def make(name="site"):
        sites.append(Site(tmp_path / name))
        return sites[-1]

    yield make
    for site in sites:
        site.stop()


@pytest.fixture
def site(make_site):
    return make_site()


SETTINGS = """
[settings]
grouping.merged_rounds = 2
grouping.split_rounds = 1
grouping.probe_rounds = 1
grouping.probe_every = 1
training.batch = 4
training.lr = 0.05
rounds.deadline_s = 600.0
"""


class Bench:
    """A folder with data sets and experiments."""

    def __init__(self, site):
        self.site, self.root = site, site.root
        for name, count in (("attic", 10), ("cellar", 7)):
            site.data(name, count)

    def experiment(self, methods, fleet="", seeds="[7]"):
        text = f'data = "data"\nbundle = "{self.site.bundle}"\nseeds = {seeds}\n{SETTINGS}\n{methods}\n{fleet}'
        path = self.root / "experiment.toml"
        path.write_text(text)
        return path

    def start(self, path, out, *flags):
        command = [sys.executable, "-m", "broker_server", "simulate", str(path), "--out", str(self.root / out)]
        return subprocess.Popen(
            [*command, "--workers", "1", *flags],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, path, out="out", *flags):
        process = self.start(path, out, *flags)
        said, _ = process.communicate(timeout=SIMULATION_LIMIT_S)
        assert process.returncode == 0, said[-3000:]
        return said

    def summaries(self, out="out"):
        found = msgspec.json.decode((self.root / out / "summary.json").read_bytes())
        return {(each["method"], each["seed"]): each for each in found}

    def models(self, method, out="out", seed=7):
        folder = self.root / out / "runs" / method / str(seed) / "models"
        return {path.stem: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.fixture
def bench(make_site):
    return Bench(make_site())
