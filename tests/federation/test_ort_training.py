"""A whole MAS run with ONNX Runtime training artifacts beside the same run on the portable one.

Both merge, measure and split with the same data, seeds and settings; the server compiles the training artifacts of the
groups that it finds while the devices wait. What they have in common at the end is the tolerance of the engines.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("torch")

from edge_runtime.wire import bundle_folder
from edge_runtime.wire.tensors import unpack

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("MAS_ORT_TRAINING_PYTHON") or ROOT / ".venv-ort-training" / "bin" / "python")
pytestmark = [
    pytest.mark.workstation,
    pytest.mark.skipif(not PYTHON.is_file(), reason="needs onnxruntime-training: make venv-ort-training"),
]
LIMIT_S = 600.0
TOLERANCE = 1e-4
"""Of losses, relative, and of every tensor of the final weights, relative to its largest value."""
AFFINITY_TOLERANCE = 2e-3
"""Relative to the largest affinity: it is the small difference of two losses, which has all of their rounding."""


@pytest.fixture
def compiled(tmp_path):
    """A model of tests/fixtures as a bundle with training artifacts for all its tasks."""

    def make(name):
        source, out = ROOT / "tests" / "fixtures" / f"{name}.py", tmp_path / "bundle"
        words = ["-m", "export", "compile", f"{source}:build", "--out", out, "--ort-training", "require"]
        done = subprocess.run(
            [sys.executable, *map(str, words), "--ort-training-python", str(PYTHON)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return out

    return make


def run(site, bundle, engines, *, cut_off=False):
    """A federation of devices a and b on these engines, to its end; the site.

    With `cut_off` the server is killed, and started again, while training artifacts are being made.
    """
    site.bundle = bundle
    server = site.serve(
        "--ort-training-python", PYTHON, split_rounds=2, merged_rounds=3, probe_rounds=2, probe_every=2, quorum=2
    )
    site.until(server, "a device joins")
    for name, engine in zip("ab", engines, strict=True):
        python = sys.executable if engine == "portable" else PYTHON
        site.device(name, engine=engine, python=python)
    if cut_off:
        site.until(server, "making ONNX Runtime training artifacts", LIMIT_S)
        assert server.again()
    assert server.wait(LIMIT_S) == 0, server.said[-3000:]
    for device in site.processes[1:]:
        assert device.wait() == 0, device.said[-3000:]
    return site


def differences(bundle, one, other):
    """The largest relative differences of two runs, by what was compared."""
    a, b = one.report(), other.report()
    assert a["split"]["groups"] == b["split"]["groups"]
    found = {"affinity": relative(a["affinity"]["values"], b["affinity"]["values"])}
    for stage in ("before", "merged", "end"):
        keys = sorted(a["test_loss"][stage])
        values = [[report["test_loss"][stage][key] for key in keys] for report in (a, b)]
        found[f"test loss {stage}"] = max(abs(x / y - 1) for x, y in zip(*values, strict=True))
    pairs = list(zip(a["rounds"], b["rounds"], strict=True))
    assert [x["group"] for x, _ in pairs] == [y["group"] for _, y in pairs]
    losses = [(x["train_loss"][task], y["train_loss"][task]) for x, y in pairs for task in x["train_loss"]]
    found["training loss"] = max(abs(x / y - 1) for x, y in losses)
    whole = bundle_folder.read_folder(bundle)
    worst = []
    for group in a["split"]["groups"]:
        table = whole.group(tuple(group), whole.weights).table
        name = "+".join(group)
        first, second = (table.views(unpack(table, site.models()[name])) for site in (one, other))
        worst += [relative(first[tensor], second[tensor]) for tensor in first]
    found["weights"] = max(worst)
    return found


def relative(one, other):
    one, other = np.asarray(one), np.asarray(other)
    return float(np.abs(one - other).max() / max(np.abs(other).max(), np.finfo(np.float32).tiny))


def agree(bundle, portable, other):
    """Both runs give the same within what is allowed, and the artifacts that the other needed were made on the way."""
    report = other.report()
    assert set(report["ort_training"]) == {"+".join(group) for group in report["split"]["groups"]}
    assert all(each["problem"] is None for each in report["ort_training"].values())
    found = differences(bundle, portable, other)
    print(other.root.name, {what: f"{value:.1e}" for what, value in found.items()})
    assert found.pop("affinity") < AFFINITY_TOLERANCE
    assert max(found.values()) < TOLERANCE, found
    # The same bytes would mean that both runs had used the same engine.
    assert portable.models() != other.models()


def test_engines_agree_over_a_whole_run(make_site, compiled):
    bundle = compiled("make_bundle")
    portable = run(make_site("portable"), bundle, ("portable", "portable"))
    assert portable.report()["ort_training"] == {}
    agree(bundle, portable, run(make_site("ort_training"), bundle, ("ort_training", "ort_training")))
    mixed = run(make_site("mixed"), bundle, ("portable", "auto"), cut_off=True)
    agree(bundle, portable, mixed)
    fetched = {name: blobs(mixed, name) for name in "ab"}
    assert any(b"GradientAccumulation" in data or b"ConvGrad" in data for data in fetched["b"])
    assert not any(b"GradientAccumulation" in data or b"ConvGrad" in data for data in fetched["a"])


def test_engines_agree_with_running_statistics_dropout_and_several_representations(make_site, compiled):
    bundle = compiled("stateful_model")
    portable = run(make_site("portable"), bundle, ("portable", "portable"))
    agree(bundle, portable, run(make_site("ort_training"), bundle, ("ort_training", "ort_training")))


def blobs(site, name):
    """What a device keeps of the bundle."""
    return [path.read_bytes() for path in (site.root / name / "state" / "blobs").iterdir()]
