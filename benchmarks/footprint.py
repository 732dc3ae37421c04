"""`make bench-footprint`: the predicted memory of plans against the peaks of real training processes.

For every architecture at several micro-batches, with every stage of the encoder recomputed and with every stage kept:
benchmarks/results/footprint.json and the table in docs/footprint.md. `python -m benchmarks.footprint [NAME …]` measures
some architectures again and leaves the others in the file.
"""

import argparse
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from benchmarks.measure import RESULTS, ROOT, WORK, run_json, write
from benchmarks.models import convolutional as nets
from edge_runtime.training.engine import SPARE_BYTES, Arrays, Engine, GraphObservation
from edge_runtime.wire import bundle_folder
from edge_runtime.wire import manifest as wire
from edge_runtime.wire.budget import MemoryPlan, Workload, predict
from edge_runtime.wire.tensors import pack
from export.compile import compile_model, describe
from export.losses import cross_entropy, l2, masked_l1
from export.memory.footprint import footprint
from export.model import MultiTaskModel
from export.models import xception

PAGE = ROOT / "docs" / "footprint.md"
MARK = "<!-- made by python -m benchmarks.footprint -->\n"
MICRO_BATCHES = (1, 4, 8)
OTHERS = ("resnet18", "xception")
"""Architectures that are also measured by other plans."""
MIB = 2**20


def _attention() -> Any:
    path = ROOT / "tests" / "export" / "architectures" / "attention.py"
    spec = importlib.util.spec_from_file_location("attention", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _classified(encoder: nn.Module, width: int, size: int) -> MultiTaskModel:
    return MultiTaskModel(
        encoder=encoder,
        heads={"kind": nets.Classifier(width, 5), "value": nets.Classifier(width, 1)},
        losses={"kind": cross_entropy(), "value": l2},
        example_input=torch.randn(2, 3, size, size),
        example_targets={"kind": torch.randint(0, 5, (2,)), "value": torch.rand(2, 1)},
    )


def _dense(encoder: nn.Module, head: Callable[[int], nn.Module], size: int) -> MultiTaskModel:
    return MultiTaskModel(
        encoder=encoder,
        heads={"depth": head(1), "parts": head(4)},
        losses={"depth": masked_l1, "parts": cross_entropy(ignore=0)},
        example_input=torch.randn(2, 3, size, size),
        example_targets={"depth": torch.rand(2, 1, size, size), "parts": torch.randint(0, 4, (2, size, size))},
    )


def _deeplab() -> MultiTaskModel:
    stem = nn.Sequential(nets.conv(3, 32, stride=2), nets.conv(32, 64, stride=2), nets.conv(64, 64, dilation=2))
    return _dense(stem, lambda outputs: nets.Aspp(64, outputs, 32), 128)


def _vit() -> MultiTaskModel:
    tokens = _attention()
    return MultiTaskModel(
        encoder=tokens.ViT(96, 8, 128, 6),
        heads={"kind": tokens.FirstToken(128, 5)},
        losses={"kind": cross_entropy(smoothing=0.1)},
        example_input=torch.randn(2, 3, 96, 96),
        example_targets={"kind": torch.randint(0, 5, (2,))},
    )


ARCHITECTURES: dict[str, tuple[str, Callable[[], MultiTaskModel]]] = {
    "resnet18": ("ResNet-18, 224 px", lambda: _classified(*nets.resnet18(), 224)),
    "mobilenet_v2": ("MobileNetV2, 224 px", lambda: _classified(*nets.mobilenet_v2(), 224)),
    "mobilenet_v3_small": (
        "MobileNetV3-small, 224 px",
        lambda: _classified(*nets.mobilenet_v3_small(), 224),
    ),
    "efficientnet_b0": ("EfficientNet-B0, 224 px", lambda: _classified(*nets.efficientnet_b0(), 224)),
    "unet": ("U-Net, 128 px", lambda: _dense(nets.UNetEncoder(16), lambda outputs: nets.UNetHead(outputs, 16), 128)),
    "deeplab": ("DeepLab's ASPP, 128 px", _deeplab),
    "vit": ("ViT, 6 blocks of 128, 96 px", _vit),
    "swin": ("Swin, 2 blocks of 48, 64 px", lambda: _classified(_attention().Swin(32, 4, 48), 48, 64)),
    "xception": (
        "MAS Xception, half width, 128 px, 3 tasks",
        lambda: xception.make(("depth", "normals", "segmentation"), width=0.5, size=128, batch=2),
    ),
}


def bundle(name: str) -> Path:
    """An architecture's bundle, compiled where it is not there yet; its parity is not checked."""
    folder = WORK / "footprint" / name
    if (folder / bundle_folder.MANIFEST).is_file():
        return folder
    torch.manual_seed(0)
    compiled = compile_model(ARCHITECTURES[name][1]())
    manifest = describe(compiled, name, wire.Parity(max_relative_error=0.0, worst="", compared=0))
    with tempfile.TemporaryDirectory() as scratch:
        engine, path = Engine(), Path(scratch) / "graph.onnx"

        def observe(graph: bytes, runs: Any) -> GraphObservation:
            path.write_bytes(graph)
            found: list[tuple[Arrays, Arrays]] = list(runs)
            return engine.observe(path, found)

        taken = footprint(compiled.graphs, observe, SPARE_BYTES)
    manifest = msgspec.structs.replace(manifest, footprint=taken)
    shutil.rmtree(folder, ignore_errors=True)
    bundle_folder.write_folder(folder, manifest, pack(compiled.table, compiled.weights), compiled.graphs)
    return folder


def measure(name: str) -> list[dict[str, Any]]:
    """Predicted and measured peaks of an architecture."""
    folder = bundle(name)
    stages = len(bundle_folder.read_folder(folder).stages)
    found = []
    for kept in (False, True):
        for batch in MICRO_BATCHES:
            plan = MemoryPlan(micro_batch=batch, saved=(kept,) * stages)
            found.append({"kept": kept, **measure_plan(folder, plan, batch)})
            print(f"{name} {found[-1]}", flush=True)
    return found


def measure_others(name: str) -> list[dict[str, Any]]:
    """Predicted and measured peaks of an architecture by other plans, and with another optimizer."""
    folder = bundle(name)
    stages = len(bundle_folder.read_folder(folder).stages)
    nothing = (False,) * stages
    half = stages // 2
    plans = {
        "8 in micro-batches of 2, recomputed": (MemoryPlan(micro_batch=2, saved=nothing), "sgd"),
        "8 in micro-batches of 2, kept": (MemoryPlan(micro_batch=2, saved=(True,) * stages), "sgd"),
        "the first half frozen, recomputed": (MemoryPlan(micro_batch=8, saved=nothing, frozen=half), "sgd"),
        "all stages frozen": (MemoryPlan(micro_batch=8, saved=nothing, frozen=stages), "sgd"),
        "one stage kept": (MemoryPlan(micro_batch=8, saved=(*nothing[1:], True)), "sgd"),
        "AdamW, recomputed": (MemoryPlan(micro_batch=8, saved=nothing), "adamw"),
    }
    found = []
    for way, (plan, optimizer) in plans.items():
        found.append({"way": way, **measure_plan(folder, plan, 8, optimizer)})
        print(f"{name} {found[-1]}", flush=True)
    return found


def measure_plan(folder: Path, plan: MemoryPlan, batch: int, optimizer: str = "sgd") -> dict[str, Any]:
    """Return a plan's predicted memory, and that of a process that trained by it."""
    manifest = bundle_folder.read_folder(folder)
    work = Workload(batch=batch, base_bytes=0, evaluates=False, state_vectors=2 if optimizer == "adamw" else 1)
    options = ["--batch", str(batch), "--micro", str(plan.micro_batch), "--frozen", str(plan.frozen)]
    options += ["--keep", "".join("01"[kept] for kept in plan.saved), "--optimizer", optimizer]
    options += ["--arena", str(predict(manifest, plan, work).arena_bytes)]
    ran = run_json(["-m", "benchmarks.train_peak", str(folder), *options])
    predicted = predict(manifest, plan, replace(work, base_bytes=ran["base_bytes"]))
    parts = {f"{part}_bytes": value for part, value in msgspec.to_builtins(predicted).items()}
    row = {"stages": len(plan.saved), "micro_batch": plan.micro_batch}
    return {**row, "predicted_bytes": predicted.peak, "measured_bytes": ran["peak_bytes"], **parts}


def document(peaks: dict[str, list[dict[str, Any]]], others: dict[str, list[dict[str, Any]]]) -> str:
    """The tables: Markdown."""
    head = " | ".join(f"{way}, {batch}" for way in ("recomputed", "kept") for batch in MICRO_BATCHES)
    lines = [f"| model | stages | {head} |", "|" + "---|" * (2 + 2 * len(MICRO_BATCHES))]
    for name, (title, _) in ARCHITECTURES.items():
        if name in peaks:
            cells = " | ".join(map(_cell, peaks[name]))
            lines.append(f"| {title} | {peaks[name][0]['stages']} | {cells} |")
    if others:
        lines += ["", "Other plans, 8 samples in a step:", ""]
        names = [row["way"] for row in next(iter(others.values()))]
        lines += [f"| model | {' | '.join(names)} |", "|" + "---|" * (1 + len(names))]
        lines += [f"| {ARCHITECTURES[name][0]} | {' | '.join(map(_cell, rows))} |" for name, rows in others.items()]
    worst = max(abs(_off(row)) for rows in (*peaks.values(), *others.values()) for row in rows)
    return "\n".join([*lines, "", f"The largest difference is {100 * worst:.1f} %.", ""])


def _cell(row: dict[str, Any]) -> str:
    said, was = row["predicted_bytes"] / MIB, row["measured_bytes"] / MIB
    return f"{said:.0f} / {was:.0f} ({100 * _off(row):+.1f} %)".replace("-", "−")


def _off(row: dict[str, Any]) -> float:
    return float(row["predicted_bytes"] / row["measured_bytes"] - 1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.footprint", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="*", choices=[*ARCHITECTURES, []], help="default: all of them")
    chosen = parser.parse_args().name
    path = RESULTS / "footprint.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    peaks, others = dict(before.get("peaks", {})), dict(before.get("others", {}))
    for name in chosen or ARCHITECTURES:
        peaks[name] = measure(name)
        if name in OTHERS:
            others[name] = measure_others(name)
        write("footprint", "python -m benchmarks.footprint", {"peaks": peaks, "others": others})
        text, _, _ = PAGE.read_text().partition(MARK)
        PAGE.write_text(text + MARK + "\n" + document(peaks, others))


if __name__ == "__main__":
    main()
