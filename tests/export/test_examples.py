"""The examples of docs/examples, from their file to a deployed model, by the commands that a user types."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from edge_runtime.__main__ import main as edge_runtime  # noqa: E402
from edge_runtime.wire import manifest as wire  # noqa: E402
from edge_runtime.wire.tensors import unpack  # noqa: E402
from export.__main__ import main as export  # noqa: E402
from export.model_file import build_model  # noqa: E402

pytestmark = pytest.mark.workstation
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def write_data(folder, model, samples=6):
    """A data set of random images and of the example's kinds of labels."""
    random = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        (folder / split).mkdir(parents=True)
        images = random.random((samples, *model.example_input.shape[1:]), np.float32)
        np.save(folder / split / "image.npy", images)
        for task, example in model.example_targets.items():
            shape = (samples, *example.shape[1:])
            classes = example.dtype == torch.int64
            labels = random.integers(0, int(example.max()) + 1, shape) if classes else random.random(shape, np.float32)
            np.save(folder / split / f"{task}.npy", labels)
    return folder


# The example, and the share of its numbers that are trained and sent.
CASES = {
    "unet.py:build": (1.0, 1.0),
    "frozen_backbone.py:build": (0.5, 0.7),
    "frozen_backbone.py:build_tuned": (0.8, 0.95),
    "lora_vit.py:build": (0.02, 0.1),
}


@pytest.mark.parametrize("case", CASES)
def test_example_is_compiled_trained_and_deployed(case, tmp_path, capsys):
    source = f"{EXAMPLES}/{case}"
    bundle, trained, plain = tmp_path / "bundle", tmp_path / "trained.safetensors", tmp_path / "model.onnx"
    assert export(["compile", source, "--out", str(bundle)]) == 0
    data = write_data(tmp_path / "data", build_model(source, 0))
    capsys.readouterr()
    command = ["train", "--bundle", str(bundle), "--data", str(data), "--epochs", "2", "--batch", "3", "--lr", "0.02"]
    assert edge_runtime([*command, "--threads", "1", "--out", str(trained), "--json"]) == 0
    result = msgspec.json.decode(capsys.readouterr().out)
    first, last = (sum(epoch["train_loss"].values()) for epoch in result["epochs"])
    assert last < first
    assert export(["deploy", str(bundle), "--weights", str(trained), "--out", str(plain)]) == 0
    manifest = wire.read_folder(bundle)
    weights = unpack(manifest.table, trained.read_bytes())
    fixed = sum(part.table.size for part in manifest.fixed.values())
    least, most = CASES[case]
    assert least <= manifest.table.size / (manifest.table.size + fixed) <= most
    held = {tensor.name for tensor in onnx.load(plain).graph.initializer}
    assert held >= {t.name for t in manifest.tensors} | {t.name for p in manifest.fixed.values() for t in p.tensors}
    assert (weights != unpack(manifest.table, (bundle / wire.WEIGHTS).read_bytes())).any()
