"""Simulations, and a server's rounds, on a Ray cluster: two nodes on this machine, each with one processor.

What is said where there is no cluster comes first: the cluster lives until the end of the module.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]
LIMIT_S = 240.0
pytestmark = [pytest.mark.workstation, pytest.mark.cluster]

EXPERIMENT = """
data = "data"
bundle = "{bundle}"
seeds = [7]
[settings]
grouping.merged_rounds = 2
grouping.split_rounds = 1
grouping.probe_rounds = 1
grouping.probe_every = 1
training.batch = 4
training.lr = 0.05
rounds.deadline_s = 600.0
[methods."MAS-2"]
grouping.strategy = "mas"
grouping.groups = 2
"""


def simulate(root, *flags, address=""):
    """A simulation in `root`, begun; the working folder is another one than the workers'."""
    return subprocess.Popen(
        [sys.executable, "-m", "broker_server", "simulate", "experiment.toml", "--quiet", *flags],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process, code=0):
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code, said[-3000:]
    return said


def models(root, out):
    folder = root / out / "runs" / "MAS-2" / "7" / "models"
    found = {path.stem: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert found
    return found


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two nodes."""
    pytest.importorskip("ray", reason="ray is not installed: pip install '.[cluster]'")
    given = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "300"}
    before = {name: os.environ.get(name) for name in given}
    os.environ |= given
    from ray.cluster_utils import Cluster  # reads the environment

    node = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=node)
    try:
        nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
        yield nodes.address
    finally:
        nodes.shutdown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


@pytest.fixture
def root(make_site):
    site = make_site()
    for name, count in (("attic", 10), ("cellar", 7)):
        site.data(name, count)
    (site.root / "experiment.toml").write_text(EXPERIMENT.format(bundle=site.bundle))
    return site.root


def workers():
    """The process ids of Ray's workers at work on our functions."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith((b"ray::perform", b"ray::measure", b"ray::partial_fold")):
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:9", "nonsense"])
def test_no_cluster_is_said_in_a_sentence(root, address):
    pytest.importorskip("ray", reason="ray is not installed: pip install '.[cluster]'")
    if address == "auto" and Path("/tmp/ray/ray_current_cluster").exists():
        pytest.skip("a Ray cluster runs on this machine")
    said = ended(simulate(root, "--out", "cluster", "--ray", address, address=""), 4)
    assert f"no Ray cluster at {address!r}" in said
    assert "Traceback" not in said


def test_without_ray_its_installation_is_named(root):
    (root / "ray.py").write_text("raise ImportError('blocked')\n")  # in the working folder, it hides the package
    said = ended(simulate(root, "--out", "cluster", "--ray", "auto"), 4)
    assert "Ray is not installed: pip install '.[cluster]'" in said


def test_a_cluster_gives_the_weights_of_worker_processes_bit_for_bit(root, cluster):
    ended(simulate(root, "--out", "local", "--workers", "2"))
    ended(simulate(root, "--out", "cluster", "--ray", cluster))
    assert models(root, "cluster") == models(root, "local")
    (one,) = msgspec.json.decode((root / "local" / "summary.json").read_bytes())
    (other,) = msgspec.json.decode((root / "cluster" / "summary.json").read_bytes())
    assert other["test_loss"] == one["test_loss"]
    assert other["groups"] == one["groups"]


def test_auto_finds_the_cluster_and_workers_that_are_killed_are_survived(root, cluster):
    process = simulate(root, "--out", "cluster", "--ray", "auto", address=cluster)
    killed, until = set(), time.monotonic() + LIMIT_S
    while len(killed) < 2 and process.poll() is None and time.monotonic() < until:
        for number in workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
                killed.add(number)
                break
        time.sleep(0.2)
    ended(process)
    assert killed
    ended(simulate(root, "--out", "local", "--workers", "1"))
    assert models(root, "cluster") == models(root, "local")


def test_a_round_is_folded_to_the_same_bits_on_a_cluster_though_a_worker_is_killed(cluster):
    import numpy as np

    from broker_server.aggregation.sums import LocalSums, ShardedSums
    from broker_server.rounds.worker_pool import ray_workers

    elements, updates = 3_000_000, 24  # 12 MB each
    here = LocalSums(elements)
    with ray_workers(cluster) as pool:
        there = ShardedSums(elements, pool.executor)
        killed = False
        for number in range(updates):
            vector = np.random.default_rng(number).standard_normal(elements, np.float32)
            weights = [(slice(0, 1_500_000), number + 1), (slice(1_500_000, elements), 7)]
            here.add(vector, weights)
            there.add(vector, weights)
            if not killed and (found := workers()):
                os.kill(found[0], signal.SIGKILL)
                killed = True
        total = there.total()
    assert killed
    assert total.tobytes() == here.total().tobytes()


def test_a_server_folds_its_rounds_on_a_cluster(make_site, cluster):
    models = []
    for name, flags in (("here", ()), ("there", ("--ray", cluster))):
        site = make_site(name)
        server = site.serve(*flags, min_devices=2)
        models.append(site.ends(server, *(site.device(name) for name in "ab")))
        assert "is folded here" not in server.said
    assert models[0] == models[1]
