"""A real server process, killed at random moments; devices over real sockets."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from ports import free_port

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from broker_server.server.keys import load_or_create
from edge_runtime.wire.tensors import unpack

pytestmark = pytest.mark.workstation
ROOT = Path(__file__).parents[2]
LIMIT_S = 120.0


@pytest.fixture
def mosquitto(tmp_path):
    """The port of a Mosquitto that outlives the server."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None:
        pytest.skip("mosquitto is not installed")
    port = free_port()
    settings = tmp_path / "mosquitto.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n")
    process = subprocess.Popen([program, "-c", settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until_s = time.monotonic() + LIMIT_S
    while True:
        assert process.poll() is None, f"mosquitto ended with exit code {process.returncode}"
        assert time.monotonic() < until_s, "mosquitto does not listen"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        time.sleep(0.05)
    yield port
    process.terminate()
    process.wait()


def serve(tmp_path, arguments, *, seed, kills):
    """Run the server to its end, killing it `kills` times on the way; how often it was."""
    command = [
        sys.executable, "-m", "broker_server", "--state", tmp_path / "state", *arguments,
        "--merged-rounds", "3", "--probe-rounds", "2", "--split-rounds", "3", "--groups", "2",
        "--round-deadline-s", "60", "--exit-when-finished", "--quiet",
    ]  # fmt: skip
    chance, killed, until_s = random.Random(seed), 0, time.monotonic() + LIMIT_S
    while True:
        log = tmp_path / f"server-{killed}.log"
        with log.open("wb") as out:
            server = subprocess.Popen(
                command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=out, stderr=subprocess.STDOUT
            )
            try:
                limit_s = chance.uniform(1.5, 4.0) if killed < kills else max(1.0, until_s - time.monotonic())
                code = server.wait(timeout=limit_s)
            except subprocess.TimeoutExpired:
                assert time.monotonic() < until_s, f"the federation did not end: {log.read_text()[-2000:]}"
                server.send_signal(signal.SIGKILL)
                server.wait()
                killed += 1
                continue
            finally:
                server.kill()
        assert code == 0, log.read_text()[-2000:]
        return killed


def check(tmp_path, folder, bundle):
    report = msgspec.json.decode((tmp_path / "state" / "report" / "report.json").read_bytes())
    assert [r["round"] for r in report["rounds"]] == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert all(r["clients"] == ["x", "y"] for r in report["rounds"])
    assert report["affinity"]["counts"] == [[12] * 3] * 3  # two rounds, two devices, three batches
    start = unpack(bundle.table, (folder / "weights.safetensors").read_bytes())
    for group in (("a", "b"), ("c",)):
        table = bundle.group(group, bundle.weights).table
        path = tmp_path / "state" / "report" / "models" / f"{'+'.join(group)}.safetensors"
        # Three rounds merged and three of the group, each of which adds the mean step of 2: none lost, none twice.
        expected = np.concatenate([start[bundle.table.parts[part]] + 12 for part in table.parts])
        np.testing.assert_array_equal(unpack(table, path.read_bytes()), expected)


@pytest.mark.process
def test_server_killed_at_random_moments_ends_as_if_it_had_not_been(tmp_path, tiny_bundle, join):
    folder, bundle = tiny_bundle
    port, key = free_port(), load_or_create(tmp_path / "state")
    join("x", key, port, tmp_path / "state", step=1.0, pause_s=0.15)
    join("y", key, port, tmp_path / "state", step=3.0, pause_s=0.15)
    killed = serve(tmp_path, ["--bundle", folder, "--host", "127.0.0.1", "--port", str(port)], seed=0, kills=5)
    assert killed > 0
    check(tmp_path, folder, bundle)


@pytest.mark.process
def test_server_killed_beside_a_broker_that_goes_on(tmp_path, tiny_bundle, join, mosquitto):
    folder, bundle = tiny_bundle
    key = load_or_create(tmp_path / "state")
    join("x", key, mosquitto, tmp_path / "state", step=1.0, pause_s=0.15)
    join("y", key, mosquitto, tmp_path / "state", step=3.0, pause_s=0.15)
    killed = serve(tmp_path, ["--bundle", folder, "--broker", f"mqtt://127.0.0.1:{mosquitto}"], seed=1, kills=2)
    assert killed > 0
    check(tmp_path, folder, bundle)
