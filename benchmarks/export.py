"""`make bench-export`: training steps at full width, in PyTorch, in onnxruntime-training and on the portable engine.

Each side is a process of its own that trains on the same random images, all with the same number of threads, one after
another in turn; the portable engine once with all activations kept and once with all recomputed. Peak memory is that of
the whole process. Whole runs are written to benchmarks/results/export.json and, as tables, to docs/measurements.md; a
run of some models only prints.
"""

import argparse
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import ROOT, WORK, alternate, bundle, ratios, spread, write, write_section
from edge_runtime.datasets.dataset_writer import write_split
from edge_runtime.wire.bundle_folder import read_folder
from edge_runtime.wire.manifest import Manifest, Task

SOURCE = ROOT / "benchmarks" / "models" / "measured.py"
ORT_TRAINING_PYTHON = Path(os.environ.get("MAS_ORT_TRAINING_PYTHON") or ROOT / ".venv-ort-training" / "bin" / "python")
HEADING = "## Training steps at full width: `make bench-export`"
PYTORCH, ORT_TRAINING, KEPT, RECOMPUTED = "PyTorch", "onnxruntime-training", "portable, kept", "portable, recomputed"
PLANS = {
    PYTORCH: "eager; keeps all activations",
    ORT_TRAINING: "1.19.2; keeps all activations",
    KEPT: "one head at a time; the encoder's activations are kept",
    RECOMPUTED: "one head at a time; the encoder's activations are recomputed stage by stage",
}
FIGURES = (("step", "step_ms_median"), ("peak", "peak_rss_bytes"))
ROOMY = "64GiB"
"""A budget in which everything is kept."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model to measure: a function of measured.py, and what it is called in the table."""

    title: str


MODELS = {
    "resnet18": Measured(title="ResNet-18"),
    "mobilenet_v2": Measured(title="MobileNetV2"),
    "xception_five": Measured(title="MAS Xception, 5 heads"),
}
NINE, ONE = "xception_nine", "xception_one"
TASKS = "tasks"


@dataclass(frozen=True, kw_only=True)
class Extent:
    """The number of runs and threads of every measurement."""

    pairs: int
    threads: int
    batch: int
    steps: int

    def common(self, data: Path) -> list[str]:
        """The arguments that `edge_runtime train` and `benchmarks.torch_train` share."""
        sizes = ["--batch", str(self.batch), "--threads", str(self.threads), "--lr", "0.01"]
        return ["--data", str(data), *sizes]


def random_data(folder: Path, manifest: Manifest, images: int) -> Path:
    """A data set of noise with the shapes of a model; a class number is below the number of classes."""
    random = np.random.default_rng(0)

    def labels(task: Task) -> Any:
        shape = (images, *task.target.shape)
        if task.target.dtype == "int64":
            return random.integers(0, task.outputs[task.measured_output].shape[0], shape)
        return random.random(shape, np.float32)

    assert manifest.input is not None
    image = random.integers(0, 256, (images, *manifest.input.shape), np.uint8)
    write_split(folder / "train", image, {task.name: labels(task) for task in manifest.tasks})
    return folder


def train(folder: Path, *options: str) -> list[str]:
    """The command of a side that a device's process trains."""
    return ["-m", "edge_runtime", "train", "--bundle", str(folder), "--json", *options]


def steps(name: str, settings: Extent) -> dict[str, Any]:
    """Step time and peak memory of all sides on one model."""
    model = MODELS[name]
    has_ort_training = ORT_TRAINING_PYTHON.is_file()
    folder, _ = bundle(f"{SOURCE}:{name}", *(("--ort-training", "require") if has_ort_training else ()))
    data = random_data(WORK / f"noise-{name}", read_folder(folder), settings.batch * settings.steps)
    common = settings.common(data)
    sides = {
        PYTORCH: ["-m", "benchmarks.torch_train", "--model", f"{SOURCE}:{name}", *common],
        KEPT: train(folder, *common, "--memory-budget", ROOMY),
        RECOMPUTED: train(folder, *common),
    }
    if has_ort_training:
        sides[ORT_TRAINING] = train(folder, *common, "--engine", "ort_training")
    runs = alternate(sides, settings.pairs, {ORT_TRAINING: str(ORT_TRAINING_PYTHON)})
    result: dict[str, Any] = {"model": model.title}
    for side, found in runs.items():
        losses = [run["epochs"][-1]["train_loss"] if "epochs" in run else run["train_loss"] for run in found]
        result[side] = {
            "plan": PLANS[side],
            "step_ms": spread([run["step_ms_median"] for run in found]),
            "peak_rss_mb": spread([run["peak_rss_bytes"] / 1e6 for run in found]),
            "train_loss": losses[-1],
        }
        for other in (PYTORCH, ORT_TRAINING):
            if other in runs and other != side:
                result[side][f"to {other}"] = {
                    figure: ratios(*([run[figure] for run in of] for of in (found, runs[other])))
                    for _, figure in FIGURES
                }
    for side in runs:
        print(f"{model.title}, {side}: {result[side]}", flush=True)
    return result


def tasks(settings: Extent) -> dict[str, Any]:
    """Measure the exporter's time for nine tasks, and the peak memory of nine tasks against one."""
    began_s, used_s = time.monotonic(), _children_s()
    nine, _ = bundle(f"{SOURCE}:{NINE}", "--anew")
    export = {"wall_s": time.monotonic() - began_s, "cpu_s": _children_s() - used_s}
    one, _ = bundle(f"{SOURCE}:{ONE}")
    common = settings.common(random_data(WORK / f"noise-{NINE}", read_folder(nine), 2 * settings.batch))
    runs = alternate({"nine": train(nine, *common), "one": train(one, *common)}, 1)  # memory does not vary
    peaks = {name: [run["peak_rss_bytes"] / 1e6 for run in found] for name, found in runs.items()}
    result: dict[str, Any] = {
        "export": export,
        "peak_rss_mb": {name: spread(values) for name, values in peaks.items()},
        "nine_to_one": ratios(peaks["nine"], peaks["one"]),
    }
    print(f"nine tasks: {result}")
    return result


def tables(result: dict[str, Any], settings: Extent) -> str:
    """The results as Markdown."""
    how = (
        f"Step time and peak memory of whole processes that train on the same random images: 224 px, batch "
        f"{settings.batch}, {settings.threads} threads, SGD with momentum. Each side in a process of its own, in turn, "
        f"{settings.pairs} times; medians (least–largest). onnxruntime-training runs the bundle's "
        "ONNX Runtime training artifacts, whose batch normalisation is written as sums."
    )
    ratio = [(f"{figure} against {other}", other, key) for other in (PYTORCH, ORT_TRAINING) for figure, key in FIGURES]
    columns = ["model", "side", "step, ms", "peak memory, MB", *(title for title, _, _ in ratio)]
    lines = [how, "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name in MODELS:
        found = result["models"][name]
        for side in (side for side in PLANS if side in found):
            row = [found["model"], side, text(found[side]["step_ms"], ".0f"), text(found[side]["peak_rss_mb"], ".0f")]
            for _, other, key in ratio:
                against = found[side].get(f"to {other}")
                row.append("" if against is None else f"{against[key]['median']:.2f}×")
            lines.append(f"| {' | '.join(row)} |")
    nine = result[TASKS]
    peaks = {name: text(values, ".0f") for name, values in nine["peak_rss_mb"].items()}
    plans = "; ".join(f"{side}: {plan}" for side, plan in PLANS.items())
    others = (
        f"Peak memory of the Xception with nine heads {peaks['nine']} MB, with one {peaks['one']} MB: "
        f"{text(nine['nine_to_one'], '.2f')}×. Exporting it with nine heads, checked against PyTorch, takes "
        f"{nine['export']['wall_s']:.0f} s ({nine['export']['cpu_s']:.0f} s of processor time)."
    )
    lines += ["", f"Plans: {plans}.", "", others]
    return "\n".join(lines)


def text(figure: dict[str, Any], form: str) -> str:
    return f"{figure['median']:{form}} ({figure['min']:{form}}–{figure['max']:{form}})"


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        action="append",
        choices=[*MODELS, TASKS],
        help=f"may be repeated; default: all; {TASKS}: nine to one",
    )
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side, in turn (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="of each side (default 2)")
    parser.add_argument("--batch", type=int, default=8, help="images in a step (default 8)")
    parser.add_argument("--steps", type=int, default=5, help="of each run (default 5)")
    args = parser.parse_args(arguments)
    settings = Extent(pairs=args.pairs, threads=args.threads, batch=args.batch, steps=args.steps)
    if not ORT_TRAINING_PYTHON.is_file():
        print(
            "onnxruntime-training is left out: make venv-ort-training, or set MAS_ORT_TRAINING_PYTHON", file=sys.stderr
        )
    wanted = args.model or [*MODELS, TASKS]
    result: dict[str, Any] = {"models": {name: steps(name, settings) for name in MODELS if name in wanted}}
    if TASKS in wanted:
        result[TASKS] = tasks(settings)
    if args.model is None:
        write("export", "make bench-export", {"settings": vars(args), **result})
        write_section(ROOT / "docs" / "measurements.md", HEADING, tables(result, settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
