"""`split-train` with real processes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edge_runtime.wire import bundle_folder  # noqa: E402
from edge_runtime.wire import manifest as wire  # noqa: E402
from edge_runtime.wire.tensors import pack  # noqa: E402
from export.compile import compile_model, describe  # noqa: E402
from export.models import vit  # noqa: E402

pytestmark = pytest.mark.workstation
ROOT = Path(__file__).parents[3]
TINY = ROOT / "tests" / "fixtures"


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "edge_runtime", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bundle")
    compiled = compile_model(vit.make(("depth", "normals"), width=8, heads=1, depth=1, size=16, patch=4), stages=1)
    none = wire.Parity(max_relative_error=0.0, worst="", compared=0)
    manifest = describe(compiled, "vit", none)
    bundle_folder.write_folder(folder, manifest, pack(compiled.table, compiled.weights), compiled.graphs)
    return folder


@pytest.mark.process
def test_train_apart_gives_the_losses_of_training_in_one_process(bundle):
    words = ("--bundle", bundle, "--data", TINY / "data", "--epochs", 2, "--batch", 4, "--json")
    apart, whole = command("split-train", *words), command("train", *words)
    assert (apart.returncode, whole.returncode) == (0, 0), apart.stderr + whole.stderr
    ours, theirs = json.loads(apart.stdout), json.loads(whole.stdout)
    for one, other in zip(ours["epochs"], theirs["epochs"], strict=True):
        assert one["train_loss"] == other["train_loss"]
        for task, loss in other["val_loss"].items():
            assert one["val_loss"][task] == pytest.approx(loss, rel=1e-5)
    assert ours["encoder_server_peak_rss_bytes"] > 10_000_000
    # e and z up and down, of four samples (2 in the third step), 16 patches of 8 numbers, and headers.
    assert ours["bytes_per_step"] == pytest.approx(4 * 10 / 3 * 16 * 8 * 4, rel=0.2)


@pytest.mark.process
def test_train_apart_tells_people(bundle):
    done = command("split-train", "--bundle", bundle, "--data", TINY / "data", "--precision", "int8")
    assert done.returncode == 0, done.stderr
    assert "epoch 1: train" in done.stdout
    assert "in the encoder server" in done.stdout


@pytest.mark.process
def test_train_apart_writes_the_weights_that_training_here_does(bundle, tmp_path):
    apart, here = tmp_path / "apart", tmp_path / "here"
    for name, out in (("split-train", apart), ("train", here)):
        words = ("--epochs", 2, "--batch", 4, "--seed", 3, "--out", out)
        done = command(name, "--bundle", bundle, "--data", TINY / "data", *words)
        assert done.returncode == 0, done.stderr
    assert apart.read_bytes() == here.read_bytes()


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("--batch", 0), 2, "argument --batch: '0' is not a whole number"),
        (("--micro-batch", -1), 2, "argument --micro-batch: '-1' is not a whole number"),
        (("--lr", -1), 2, "argument --lr: '-1' is not a number"),
        (("--bundle", TINY / "bundle"), 3, "has no stem, and split learning needs one"),
        (("--data", TINY), 3, "is not a data set"),
        (("--out", TINY), 3, "fixtures: Is a directory"),
    ],
)
def test_train_apart_says_what_is_wrong(bundle, words, code, sentence):
    done = command("split-train", "--bundle", bundle, "--data", TINY / "data", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.process
def test_general_ends_with_its_input_and_says_what_it_cannot_use(bundle):
    assert subprocess.run(
        [sys.executable, "-m", "edge_runtime", "encoder-server", str(bundle)],
        cwd=ROOT,
        input=b"",
        timeout=300,
        check=True,
    )
    odd = subprocess.run(
        [sys.executable, "-m", "edge_runtime", "encoder-server", str(bundle)],
        cwd=ROOT,
        input=b"hello, server",
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert odd.returncode == 3
    assert b"the encoder server ends" in odd.stderr


@pytest.mark.process
def test_batch_that_a_loss_compares_is_not_cut(bundle, tmp_path):
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = bundle_folder.read_folder(copy)
    tasks = tuple(msgspec.structs.replace(task, whole_batch=True) for task in manifest.tasks)
    (copy / bundle_folder.MANIFEST).write_bytes(wire.encode(msgspec.structs.replace(manifest, tasks=tasks)))
    done = command("split-train", "--bundle", copy, "--data", TINY / "data", "--micro-batch", 2)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--micro-batch: a loss of the bundle compares the samples of a batch" in done.stderr


@pytest.mark.process
def test_damaged_weights_are_named(bundle, tmp_path):
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    path = copy / bundle_folder.WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    done = command("split-train", "--bundle", copy, "--data", TINY / "data")
    assert done.returncode == 3
    assert np.char.count(done.stderr, "weights.safetensors") == 1
