import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from torch import nn  # noqa: E402

from edge_runtime.training.engine import Engine, EngineError  # noqa: E402
from edge_runtime.wire import bundle_folder  # noqa: E402
from edge_runtime.wire import manifest as wire  # noqa: E402
from edge_runtime.wire.tensors import pack, unpack  # noqa: E402
from export.__main__ import main  # noqa: E402
from export.compile import compile_model, describe  # noqa: E402
from export.deploy import inference_model  # noqa: E402
from export.errors import ModelInvalid, ParityFailed  # noqa: E402
from export.losses import l1  # noqa: E402
from export.model_file import build_model  # noqa: E402
from export.models import xception  # noqa: E402
from export.parity.check import TOLERANCE, check_parity  # noqa: E402

pytestmark = pytest.mark.workstation
ROOT = Path(__file__).parents[2]
NO_PARITY = wire.Parity(max_relative_error=0.0, worst="", compared=0)


def test_compiled_model_agrees_with_pytorch(make, run):
    compiled = compile_model(make())
    parity = check_parity(compiled, run)
    assert parity.max_relative_error <= TOLERANCE
    assert parity.compared > 20


@pytest.mark.parametrize(
    "tasks", [pytest.param(("depth",), marks=pytest.mark.long), ("segmentation", "normals", "keypoints")]
)
def test_xception_agrees_with_pytorch(tasks, run):
    torch.manual_seed(0)
    compiled = compile_model(xception.make(tasks, width=0.05, size=16, batch=2))
    assert check_parity(compiled, run).max_relative_error <= TOLERANCE


def test_same_model_gives_the_same_bytes(make):
    first, second = compile_model(make()), compile_model(make())
    assert first.graphs == second.graphs
    assert first.weights.tobytes() == second.weights.tobytes()
    assert wire.encode(describe(first, "x", NO_PARITY)) == wire.encode(describe(second, "x", NO_PARITY))


def test_graphs_do_not_hold_the_weights_or_the_batch(make):
    whole = compile_model(make())
    other = compile_model(
        make(
            example_input=torch.rand(5, 3, 8, 8),
            example_targets={"a": torch.rand(5, 1, 8, 8), "b": torch.rand(5, 2, 8, 8)},
        )
    )
    assert whole.graphs == other.graphs
    alone = compile_model(
        make(
            heads={"a": nn.Conv2d(4, 1, 1)},
            losses={"a": make().losses["a"]},
            example_targets={"a": torch.rand(2, 1, 8, 8)},
        )
    )
    assert all(whole.graphs[name] == graph for name, graph in alone.graphs.items())


def test_manifest_describes_the_model_and_survives_the_wire(make):
    manifest = describe(compile_model(make()), "small", NO_PARITY)
    assert wire.decode(wire.encode(manifest)) == manifest
    assert manifest.task_names == ("a", "b")
    assert manifest.input.shape == (3, 8, 8)
    assert manifest.representation[0].shape == (4, 8, 8)
    group = manifest.group(("b",), manifest.weights)
    assert set(group.graphs.values()) < set(manifest.graphs.values())


def test_progress_is_told_of_each_graph(make):
    found = []
    compile_model(make(), lambda *step: found.append(step))
    assert found[0][1:] == (0, len(found) - 1)
    assert found[-1] == ("", len(found) - 1, len(found) - 1)


def corrupted(graph, change):
    model = onnx.load_from_string(graph)
    change(model.graph)
    return model.SerializeToString()


def wrong_constant(graph):
    for tensor in graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array((array * np.float32(1.001)).astype(np.float32), tensor.name))


@pytest.mark.parametrize("graph", ["encoder.0.forward", "encoder.0.backward", "encoder.0.kept", "head.a.step"])
def test_parity_finds_a_wrong_constant(graph, make, run):
    compiled = compile_model(make(heads={"a": nn.Sequential(nn.Conv2d(4, 1, 1), nn.GELU()), "b": nn.Conv2d(4, 2, 1)}))
    compiled.graphs[graph] = corrupted(compiled.graphs[graph], wrong_constant)
    with pytest.raises(ParityFailed, match="differs from PyTorch"):
        check_parity(compiled, run)


def test_parity_finds_two_gradients_exchanged(make, run):
    compiled = compile_model(make(encoder=nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))))

    def exchange(graph):
        names = {"grad.1.weight": "grad.2.weight", "grad.2.weight": "grad.1.weight"}
        for node in graph.node:
            node.output[:] = [names.get(name, name) for name in node.output]

    compiled.graphs["encoder.0.backward"] = corrupted(compiled.graphs["encoder.0.backward"], exchange)
    with pytest.raises(ParityFailed, match=r"grad\.[12]\.weight"):
        check_parity(compiled, run)


def test_parity_finds_what_is_not_a_number(make, run):
    compiled = compile_model(make())

    def spoil(graph, inputs):
        return {name: value * np.float32("nan") for name, value in run(graph, inputs).items()}

    with pytest.raises(ParityFailed, match="inf"):
        check_parity(compiled, spoil)


def at_a_kink(make, **fields):
    """A prediction that equals its target but for rounding: parity goes through the operators."""
    heads = {"a": nn.Sequential(nn.Conv2d(4, 1, 1), nn.GELU()), "b": nn.Conv2d(4, 2, 1)}
    model = make(heads=heads, **fields)
    with torch.no_grad():
        target = heads["a"](model.encoder(model.example_input))
    targets = {"a": target, "b": model.example_targets["b"]}
    return make(encoder=model.encoder, heads=heads, example_targets=targets)


def test_parity_does_not_count_a_jump_at_a_kink(make, run):
    """Rounding decides on which side of zero L1 is."""
    assert check_parity(compile_model(at_a_kink(make)), run).max_relative_error <= TOLERANCE


def test_parity_finds_a_wrong_constant_beside_a_kink(make, run):
    compiled = compile_model(at_a_kink(make))
    compiled.graphs["head.a.step"] = corrupted(compiled.graphs["head.a.step"], wrong_constant)
    with pytest.raises(ParityFailed, match=r"of head\.a\.step"):
        check_parity(compiled, run)


def test_parity_finds_operators_that_are_not_the_model_s(make, run):
    """The graphs are right for their operators, and these are those of another model."""
    ours = make(encoder=nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.LeakyReLU(0.2)))
    other = compile_model(make(encoder=nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.LeakyReLU(0.3))))
    with pytest.raises(ParityFailed, match="differs from PyTorch"):
        check_parity(dataclasses.replace(other, model=ours), run)


def test_deployed_model_is_pytorchs_in_stock_onnxruntime(make, tmp_path):
    model = make()
    compiled = compile_model(model)
    manifest = describe(compiled, "small", NO_PARITY)
    bundle_folder.write_folder(tmp_path, manifest, b"x", compiled.graphs)
    deployed = inference_model(tmp_path, manifest, compiled.weights)
    path = tmp_path / "model.onnx"
    path.write_bytes(deployed.SerializeToString())
    for batch in (1, 3):
        x = torch.rand(batch, 3, 8, 8)
        found = stock(path, x.numpy(), tmp_path)
        assert list(found) == ["a", "b"]
        with torch.no_grad():
            for task in model.tasks:
                expected = model.heads[task](model.encoder(x)).numpy()
                np.testing.assert_allclose(found[task], expected, atol=1e-5)


class Denoised(nn.Module):
    """An encoder that draws, in training and where it predicts."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x + 0.1 * torch.randn_like(x))


def test_model_that_draws_where_it_predicts_is_deployed_with_a_fixed_seed(make, run, tmp_path):
    compiled = compile_model(make(encoder=Denoised()))
    assert check_parity(compiled, run).max_relative_error <= TOLERANCE
    manifest = describe(compiled, "small", NO_PARITY)
    bundle_folder.write_folder(tmp_path, manifest, b"x", compiled.graphs)
    deployed = inference_model(tmp_path, manifest, compiled.weights)
    assert [value.name for value in deployed.graph.input] == ["image"]
    path = tmp_path / "model.onnx"
    path.write_bytes(deployed.SerializeToString())
    x = torch.rand(2, 3, 8, 8).numpy()
    first, second = (stock(path, x, tmp_path) for _ in range(2))
    np.testing.assert_array_equal(first["a"], second["a"])


def stock(path, image, folder):
    """A plain session in a process of its own: nothing of ours is loaded there."""
    np.save(folder / "image.npy", image)
    script = f"""
import numpy, onnxruntime
session = onnxruntime.InferenceSession({str(path)!r}, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
found = session.run(names, {{"image": numpy.load({str(folder / "image.npy")!r})}})
numpy.savez({str(folder / "found.npz")!r}, **dict(zip(names, found)))
"""
    subprocess.run(
        [sys.executable, "-c", script], check=True, timeout=120, env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
    )
    with np.load(folder / "found.npz") as file:
        return dict(file)


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "export", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_command_compiles_and_deploys_a_user_s_own_file(model_file, tmp_path):
    out = tmp_path / "bundle"
    done = command("compile", f"{model_file}:build", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["tasks"] == ["mask", "value"]
    assert 0 <= summary["parity"]["max_relative_error"] <= 1e-4
    assert {"name", "parameters", "inputs", "representation", "graphs", "weights_bytes", "opset", "versions"} <= set(
        summary
    )
    manifest = bundle_folder.read_folder(out)
    assert unpack(manifest.table, (out / bundle_folder.WEIGHTS).read_bytes()).size == summary["parameters"]
    model = tmp_path / "value.onnx"
    done = command("deploy", out, "--tasks", "value", "--out", model)
    assert done.returncode == 0, done.stderr
    found = stock(model, np.zeros((2, 3, 8, 8), np.float32), tmp_path)
    assert {task: array.shape for task, array in found.items()} == {"value": (2, 2)}
    before = model.read_bytes()
    done = command("deploy", out, "--tasks", "value", "--weights", out / bundle_folder.WEIGHTS, "--out", model)
    assert done.returncode == 0, done.stderr
    assert model.read_bytes() == before
    for task in ("mask", "value"):  # what a device has of its own stands in place of the bundle's
        table = manifest.table.select([f"head.{task}"])
        (tmp_path / f"{task}.safetensors").write_bytes(pack(table, np.zeros(table.size, np.float32)))
    done = command("deploy", out, "--tasks", "value", "--own", tmp_path / "value.safetensors", "--out", model)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(stock(model, np.ones((2, 3, 8, 8), np.float32), tmp_path)["value"], 0)
    for words, text in (
        (("--tasks", "other"), "no task 'other'"),
        (("--weights", model_file), "not a tensor file"),
        (("--weights", tmp_path / "absent"), "absent"),
        (("--own", tmp_path / "mask.safetensors", "--tasks", "value"), "no weights of value"),
    ):
        done = command("deploy", out, *words, "--out", model)
        assert done.returncode == 3
        assert text in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_bundle_has_no_memory_plan_where_the_engine_does_not_tell(model_file, tmp_path, monkeypatch, capsys):
    """As onnxruntime before 1.28, the last for Python 3.10 among them."""

    def observe(*_):
        raise EngineError("onnxruntime 1.23.2 does not say what the nodes of a graph allocate")

    monkeypatch.setattr(Engine, "observe", observe)
    assert main(["compile", f"{model_file}:build", "--out", str(tmp_path / "bundle")]) == 0
    assert "no memory plan: onnxruntime 1.23.2 does not say" in capsys.readouterr().err
    assert bundle_folder.read_folder(tmp_path / "bundle").footprint is None


def test_heads_of_one_form_are_made_once(make, run):
    """A lambda in the same line, and a tensor that is no parameter, are no detail of the form."""
    heads = {name: nn.Conv2d(4, 2, 1) for name in "abcdef"}
    heads["d"].weight.requires_grad_(False)
    heads["e"] = nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
    heads["f"] = nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2).eval())
    first, second = lambda p, t: (p - t).abs().mean(), lambda p, t: ((p - t) ** 2).mean()
    losses = {"a": first, "b": first, "c": second, "d": first, "e": first, "f": first}
    targets = {name: torch.rand(2, 2, 8, 8) for name in heads}
    compiled = compile_model(make(heads=heads, losses=losses, example_targets=targets))
    assert len({id(compiled.lowered[f"head.{name}.step"]) for name in heads}) == 5
    assert compiled.lowered["head.a.step"] is compiled.lowered["head.b.step"]
    check_parity(compiled, run)


def test_loss_that_works_in_place_leaves_the_prediction_as_it_is(make, run):
    compiled = compile_model(make(losses={"a": l1, "b": lambda p, t: p.sub_(t).abs().mean()}))
    check_parity(compiled, run)


SOURCES = {
    "empty": ("", "has no function build()"),
    "not_callable": ("build = 3", "has no function build()"),
    "other": ("def build():\n    return 3", "returned int: return an export.model.MultiTaskModel"),
    "syntax": ("def build(:\n    pass", "line 1: invalid syntax"),
    "import": ("\nimport a_module_that_is_not_there", "line 2: ModuleNotFoundError"),
    "raises": ("def build():\n    x = {}\n    return x['depth']", "line 3: KeyError: 'depth'"),
    "arguments": ("def build(width):\n    return width", "TypeError: build() missing 1 required"),
}


@pytest.mark.parametrize("case", SOURCES)
def test_source_that_gives_no_model_is_one_sentence(case, tmp_path):
    content, text = SOURCES[case]
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(ModelInvalid, match=re.escape(text)) as caught:
        build_model(f"{path}:build", 0)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "text"),
    [("model.py", "does not name a function"), ("model.py:", "does not name"), ("absent.py:build", "does not exist")],
)
def test_source_that_is_not_there_is_one_sentence(source, text, tmp_path):
    with pytest.raises(ModelInvalid, match=text):
        build_model(source, 0)
    done = command("compile", source, "--out", tmp_path / "bundle")
    assert done.returncode == 3
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "bundle").exists()


def test_source_may_import_its_neighbours(tmp_path, model_file):
    (tmp_path / "mine.py").write_text("from unet import build")
    assert build_model(f"{tmp_path / 'mine.py'}:build", 0).tasks == ("mask", "value")


def test_seed_fixes_the_weights(model_file):
    first, again, other = (build_model(f"{model_file}:build", seed).encoder.down1.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_committed_bundle_is_what_the_exporter_makes_now(tmp_path):
    """If it is not: python tests/fixtures/make_bundle.py, and look at what changed.

    Weights are drawn by kernels that round as the processor does, so that they are compared as numbers.
    """
    fixtures = ROOT / "tests" / "fixtures"
    spec = importlib.util.spec_from_file_location("make_bundle", fixtures / "make_bundle.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.make(tmp_path)
    ours, committed = (bundle_folder.read_folder(folder / "bundle") for folder in (tmp_path, fixtures))
    own = {"parity": committed.parity, "versions": committed.versions, "weights": committed.weights}
    assert msgspec.structs.replace(ours, **own) == committed
    folders = (tmp_path, fixtures)
    weights = [unpack(ours.table, (folder / "bundle" / bundle_folder.WEIGHTS).read_bytes()) for folder in folders]
    np.testing.assert_allclose(*weights, atol=1e-6)
    new, old = (onnx.load(folder / "model.onnx").graph for folder in folders)
    for one, other in zip(new.initializer, old.initializer, strict=True):
        np.testing.assert_allclose(*(onnx.numpy_helper.to_array(each) for each in (one, other)), atol=1e-6)
        one.CopyFrom(other)
    assert new == old
    with np.load(tmp_path / "reference.npz") as new, np.load(fixtures / "reference.npz") as old:
        assert set(new) == set(old)
        for name in new:
            np.testing.assert_allclose(new[name], old[name], atol=1e-4)
