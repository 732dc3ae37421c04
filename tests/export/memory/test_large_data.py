"""Training on data that does not fit in memory: the peak is the plan's, whatever the number of samples."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks.limits import memory_limit, within

pytestmark = [pytest.mark.workstation, pytest.mark.process]
ROOT = Path(__file__).parents[3]


def command(*words):
    return [sys.executable, "-m", *map(str, words)]


def sparse_data(folder, samples):
    """Zeros, which take no disk: images and masks of 256 bytes a sample, and values."""
    (folder / "train").mkdir(parents=True)
    arrays = {"image": ((3, 8, 8), np.uint8), "mask": ((1, 8, 8), np.uint8), "value": ((2,), np.float32)}
    for name, (shape, dtype) in arrays.items():
        np.lib.format.open_memmap(folder / "train" / f"{name}.npy", "w+", dtype, (samples, *shape))
    return folder


def test_peak_is_the_plans_whatever_the_number_of_samples(model_file, tmp_path):
    bundle = tmp_path / "bundle"
    subprocess.run(command("export", "compile", f"{model_file}:build", "--out", bundle), cwd=ROOT, check=True)
    options = ("--bundle", bundle, "--batch", 1024, "--threads", 1, "--json", "--memory-budget")
    limited = True
    for samples in (2_000, 400_000):
        train = command("edge_runtime", "train", "--data", sparse_data(tmp_path / str(samples), samples), *options)
        plan = run(None, [*train, "1KiB"])
        budget_mib = int(plan.stderr.split(" MiB would do")[0].split()[-1]) + 1
        with memory_limit(int(1.1 * budget_mib * 2**20)) as group:
            limited = limited and group is not None
            done = run(group, [*train, f"{budget_mib}MiB"])
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["peak_rss_bytes"] < 1.1 * found["memory"]["predicted_peak_bytes"]
    if not limited:
        pytest.skip("no control group can be made here: the peak was compared with the plan alone")


def run(group, words):
    return subprocess.run(within(group, words), cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
