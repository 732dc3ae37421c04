"""What a plan is said to take, held to what training takes: real processes, the real trainer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")


from edge_runtime.wire import bundle_folder  # noqa: E402
from edge_runtime.wire.budget import MARGIN, MemoryPlan, Workload, predict  # noqa: E402
from export.__main__ import main  # noqa: E402

pytestmark = pytest.mark.workstation
ROOT = Path(__file__).parents[3]
TOLERANCE = 0.1

MODEL = """
import torch
from torch import nn
import torch.nn.functional as F
from export.losses import cross_entropy, l2
from export.model import MultiTaskModel


def layer(inputs, outputs, norm):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), norm(outputs), nn.ReLU(inplace=True))


class Head(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.fc = nn.Linear(32, outputs)

    def forward(self, z):
        return self.fc(F.adaptive_avg_pool2d(z, 1).flatten(1))


def make(encoder):
    return MultiTaskModel(
        encoder=encoder,
        heads={"kind": Head(5), "value": Head(1)},
        losses={"kind": cross_entropy(), "value": l2},
        example_input=torch.randn(3, 3, 64, 64),
        example_targets={"kind": torch.randint(0, 5, (3,)), "value": torch.rand(3, 1)},
    )


def build():
    layers = [layer(a, b, nn.BatchNorm2d) for a, b in ((3, 32), (32, 32), (32, 32))]
    return make(nn.Sequential(layers[0], nn.MaxPool2d(3, 2, 1), *layers[1:]))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("footprint")
    (folder / "model.py").write_text(MODEL)
    assert main(["compile", f"{folder / 'model.py'}:build", "--out", str(folder / "bundle"), "--stages", "2"]) == 0
    return folder / "bundle"


def measured(bundle, plan, arena_bytes):
    keep = "".join("01"[kept] for kept in plan.saved)
    command = [str(bundle), "--batch", str(plan.micro_batch), "--keep", keep, "--arena", str(arena_bytes)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train_peak", *command], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("keep", [True, False])
def test_prediction_agrees_with_the_peak_of_a_training_process(bundle, keep):
    manifest = bundle_folder.read_folder(bundle)

    def both(batch):
        plan = MemoryPlan(micro_batch=batch, saved=(keep,) * len(manifest.stages))
        arena_bytes = predict(manifest, plan, Workload(batch=batch, base_bytes=0, evaluates=False)).arena_bytes
        found = measured(bundle, plan, arena_bytes)
        predicted = predict(manifest, plan, Workload(batch=batch, base_bytes=found["base_bytes"], evaluates=False))
        assert predicted.peak == pytest.approx(found["peak_bytes"], rel=TOLERANCE), predicted
        return predicted, found["peak_bytes"] - found["base_bytes"]

    (small, small_bytes), (large, large_bytes) = both(16), both(64)
    # What 48 samples more take is mostly the graphs' part, and large beside what resident memory varies by.
    graphs = (large.saved + large.transient) - (small.saved + small.transient)
    grown = (large.peak - large.base) - (small.peak - small.base)
    assert graphs > 0.75 * grown
    assert grown == pytest.approx(large_bytes - small_bytes, rel=1.5 * TOLERANCE), (small, large)


def test_footprint_knows_every_graph_and_what_kept_stages_hold(bundle):
    manifest = bundle_folder.read_folder(bundle)
    graphs = manifest.footprint.graphs
    assert graphs.keys() == {file.digest for file in manifest.graphs.values()}
    for k in range(len(manifest.stages)):
        kinds = {kind: graphs[manifest.graphs[f"encoder.{k}.{kind}"].digest] for kind in ("keep", "forward", "kept")}
        assert kinds["keep"].held(1) > 0
        assert kinds["forward"].held(1) == kinds["kept"].held(1) == 0


def test_command_prints_the_table_and_a_plan(bundle, capsys):
    assert main(["footprint", str(bundle), "--budget", "2GiB", "--batch", "4"]) == 0
    found = capsys.readouterr().out
    assert "micro-batch" in found
    assert "plan for 2048 MiB: micro-batches of 4, 2 of 2 stages kept, 0 recomputed, 0 frozen" in found


def test_command_as_json_has_all_plans_of_the_table(bundle, capsys):
    assert main(["footprint", str(bundle), "--batch", "4", "--tasks", "kind", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["plans"]) == 4 * 3
    assert found["plan"] is None
    first, *_ = found["plans"]
    parts = ("base", "sessions", "vectors", "arrays", "saved", "transient")
    assert sum(first[f"{part}_bytes"] for part in parts) + first["arena_bytes"] // 32 == first["peak_bytes"]
    assert main(["footprint", str(bundle), "--budget", "1GiB", "--optimizer", "adamw", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["saved"] == [True] * 2


def test_command_leaves_the_margin_that_a_device_leaves(bundle, capsys):
    assert main(["footprint", str(bundle), "--json"]) == 0
    peaks = sorted(plan["peak_bytes"] for plan in json.loads(capsys.readouterr().out)["plans"])
    budget = peaks[-1] // 2**20 + 1  # the largest plan fits the budget, and not what may be filled of it
    assert main(["footprint", str(bundle), "--budget", f"{budget}MiB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["peak_bytes"] <= MARGIN * budget * 2**20 < peaks[-1]


def test_command_refuses_a_budget_that_is_too_small(bundle, capsys):
    assert main(["footprint", str(bundle), "--budget", "20MiB"]) == 3
    assert "20 MiB of memory are too little for this bundle" in capsys.readouterr().err


@pytest.mark.parametrize("change", [["--budget", "220MB"], ["--budget", "0MiB"], ["--batch", "0"], ["--base", "-1"]])
def test_command_refuses_sizes_that_make_no_sense(bundle, change, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["footprint", str(bundle), *change])
    assert "is not a" in capsys.readouterr().err or change[0] == "--base"


def test_command_without_a_bundle_says_so(tmp_path, capsys):
    assert main(["footprint", str(tmp_path)]) == 3
    assert "not a bundle" in capsys.readouterr().err
