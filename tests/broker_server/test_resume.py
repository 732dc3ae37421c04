"""A real server process, killed at random moments; devices over real sockets."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from broker_server.keys import load_or_create
from edge_runtime.wire import tokens
from edge_runtime.wire.link import Connected, Delivery, MqttLink
from edge_runtime.wire.messages import Status, encode
from edge_runtime.wire.signing import public_hex
from edge_runtime.wire.tensors import unpack

pytestmark = pytest.mark.workstation
ROOT = Path(__file__).parents[2]
LIMIT_S = 240.0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Runner(threading.Thread):
    """A scripted device on a link of its own."""

    def __init__(self, device, link):
        super().__init__(daemon=True)
        self.device, self.link = device, link
        self.stop = threading.Event()
        device.subscribe = link.subscribe
        link.subscribe(device.topics.command(device.name))

    def run(self):
        asked_s = time.monotonic()
        while not self.stop.is_set():
            match self.link.receive(0.2):
                case Connected():
                    self.device.start()
                case Delivery(topic=topic, payload=payload):
                    self.device.hear(topic, payload)
            if time.monotonic() - asked_s > 1.0:
                asked_s = time.monotonic()
                for digest in self.device.wanted:
                    self.device.ask(digest)
        self.link.close()


@pytest.mark.parametrize("seed", [0])
def test_server_killed_at_random_moments_ends_as_if_it_had_not_been(tmp_path, tiny_bundle, device_class, seed):
    folder, bundle = tiny_bundle
    state, port = tmp_path / "state", free_port()
    key = load_or_create(state)
    command = [
        sys.executable, "-m", "broker_server", "--state", state, "--bundle", folder, "--host", "127.0.0.1",
        "--port", str(port), "--merged-rounds", "3", "--probe-rounds", "2", "--split-rounds", "3", "--groups", "2",
        "--round-deadline-s", "60", "--exit-when-finished", "--quiet",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    runners = []
    for name, step in (("x", 1.0), ("y", 3.0)):
        token = tokens.issue(key, name=name, federation="home", role="device", lifetime_s=3600)
        link = MqttLink(
            f"mqtt://127.0.0.1:{port}",
            client_id=name,
            username=name,
            password=token,
            will=(f"mas/1/home/device/{name}/status", encode(Status(state="offline"))),
            retry_max_s=1,
        )
        device = device_class(name, tmp_path / "devices", link.publish, public_hex(key), step=step)
        device.train = lambda plan, manifest, train=device.train: (time.sleep(0.15), train(plan, manifest))[1]
        runners.append(Runner(device, link))
        runners[-1].start()
    chance, kills, until_s = random.Random(seed), 0, time.monotonic() + LIMIT_S
    code = None
    while code is None:
        assert time.monotonic() < until_s, "the federation did not end"
        log = (tmp_path / f"server-{kills}.log").open("wb")
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = server.wait(timeout=chance.uniform(1.5, 4.0) if kills < 5 else until_s - time.monotonic())
        except subprocess.TimeoutExpired:
            server.send_signal(signal.SIGKILL)
            server.wait()
            kills += 1
        finally:
            server.kill()
            log.close()
    for runner in runners:
        runner.stop.set()
        runner.join()
    assert code == 0, (tmp_path / f"server-{kills}.log").read_text()[-2000:]
    assert kills > 0
    report = msgspec.json.decode((state / "report" / "report.json").read_bytes())
    assert [r["round"] for r in report["rounds"]] == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert all(r["clients"] == ["x", "y"] for r in report["rounds"])
    assert report["affinity"]["counts"] == [[12] * 3] * 3  # two rounds, two devices, three batches
    start = unpack(bundle.table, (folder / "weights.safetensors").read_bytes())
    for group in (("a", "b"), ("c",)):
        table = bundle.group(group, bundle.weights).table
        values = unpack(table, (state / "report" / "models" / f"{'+'.join(group)}.safetensors").read_bytes())
        # Three rounds merged and three of the group, each of which adds the mean step of 2: none lost, none twice.
        expected = np.concatenate([start[bundle.table.parts[part]] + 12 for part in table.parts])
        np.testing.assert_array_equal(values, expected)
