"""The board install on aarch64: Debian's own Python and the wheels that a board gets, under user emulation.

A bundle that was made on this machine trains there, and its losses are those of training here. The one is the tests'
tiny bundle over nine steps. The other is the demo's Xception, a single step at a time from the same weights: after some
steps of a network with kinks, two processors' roundings are as far from one another as two runs here whose first
weights differ in the last place.
"""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

pytestmark = [pytest.mark.emulated, pytest.mark.workstation]

TOLERANCE = 1e-4
MAX_PACKAGES, MAX_MB = 12, 50.0
TASKS = ("depth", "edge_texture", "keypoints", "normals", "segmentation")


@pytest.fixture(scope="module")
def board(board_command, run, tmp_path_factory):
    """Runs Python in the board's environment, with what `pip install .[board]` installs there."""
    command, environment = board_command
    folder = tmp_path_factory.mktemp("board")
    return lambda *words: run(*command, *words, cwd=folder, env={**environment, "PYTHONPATH": ""})


@pytest.fixture(scope="module")
def both(board, ours):
    """Trains on the board and here by the same command; both results and both weights."""

    def train(out, bundle, data, *flags):
        words = ["train", "--bundle", bundle, "--data", data, "--threads", "1", "--json", *flags]
        told = board("-m", "edge_runtime", *words, "--out", out / "arm.safetensors")
        here = ours("edge_runtime", *words, "--out", out / "here.safetensors")
        return json.loads(told), json.loads(here)

    return train


def losses(result):
    """Every loss of a run, by where it was measured."""
    found = {("test", task): loss for task, loss in result["test_loss"].items()}
    for epoch in result["epochs"]:
        for kind in ("train_loss", "val_loss"):
            found |= {(epoch["epoch"], kind, task): loss for task, loss in epoch[kind].items()}
    return found


def apart(one, other):
    """The largest difference."""
    one, other = losses(one), losses(other)
    assert one.keys() == other.keys()
    return max(abs(one[key] - other[key]) for key in one)


def mib(result):
    return f"{result['peak_rss_bytes'] / 2**20:.0f} MiB"


def test_board_has_no_more_than_a_board_may(board, wheels, say):
    script = (
        "import platform; from importlib.metadata import distributions as d; "
        "print(platform.machine(), *sorted(x.name for x in d()))"
    )
    machine, *names = board("-c", script).split()
    assert machine == "aarch64"
    assert not {"torch", "onnx", "PyJWT"} & set(names)
    size_mb = sum(path.stat().st_size for path in wheels.glob("*.whl") if not path.name.startswith("pip-")) / 1e6
    say(f"aarch64: {len(names)} packages, {size_mb:.1f} MB of wheels: {', '.join(names)}")
    assert len(names) <= MAX_PACKAGES
    assert size_mb <= MAX_MB


def test_commands_of_a_board_run(board):
    idle = json.loads(board("-m", "edge_runtime", "energy", "--source", "model:2,6", "--seconds", "1", "--json"))
    assert idle["estimated"]
    assert re.search("aarch64|ARM", board("-m", "devices", "detect"))


def test_tiny_bundle_trains_as_it_does_here(both, fixtures, tmp_path, say):
    flags = ["--epochs", "3", "--batch", "4", "--lr", "0.02", "--seed", "3", "--probe-every", "2"]
    there, here = both(tmp_path, fixtures / "bundle", fixtures / "data", *flags)
    far = apart(there, here)
    say(f"tiny bundle, 9 steps: losses within {far:.1e}; peak {mib(there)} emulated, {mib(here)} here")
    assert far <= TOLERANCE
    for mine, theirs in zip(there["epochs"], here["epochs"], strict=True):
        assert np.allclose(mine["affinity"]["mean"], theirs["affinity"]["mean"], rtol=0, atol=TOLERANCE)
    weights = load_file(tmp_path / "arm.safetensors")
    for name, array in load_file(tmp_path / "here.safetensors").items():
        assert np.allclose(weights[name], array, rtol=0, atol=1e-6), name


def test_xception_takes_each_step_as_it_does_here(both, ours, say, tmp_path):
    pytest.importorskip("torch")
    say("compiling the demo's Xception here (a minute or two)")
    ours("export", "compile", "export/models/xception.py:build", "--out", tmp_path / "bundle", "--json")
    shape = ["--buildings", "1", "--images", "24", "--size", "64"]
    ours("broker_server", "rooms", "--out", tmp_path / "rooms", *shape)
    ours("edge_runtime", "datasets", "import", tmp_path / "rooms", "--out", tmp_path / "data", "--size", "64")
    (data,) = (path for path in (tmp_path / "data").iterdir() if path.is_dir())
    start = tmp_path / "bundle" / "weights.safetensors"
    for step in range(3):
        out = tmp_path / str(step)
        out.mkdir()
        flags = ["--epochs", "1", "--batch", "64", "--lr", "0.02", "--seed", "3", "--weights", start]
        there, here = both(out, tmp_path / "bundle", data, *flags)
        far = apart(there, here)
        say(f"Xception, step {step + 1}: losses within {far:.1e}; peak {mib(there)} emulated, {mib(here)} here")
        assert set(there["epochs"][0]["train_loss"]) == set(TASKS)
        assert far <= TOLERANCE
        start = out / "here.safetensors"
