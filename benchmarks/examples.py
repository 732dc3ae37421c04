"""`make bench-examples`: the worked examples of docs/examples, in PyTorch and on the runtime of a board.

Each side is a process of its own that trains on the same random samples with the same number of threads, one after
another in turn. Peak memory is that of the whole process. Whole runs are written to benchmarks/results/examples.json
and, as a table, to docs/measurements.md; a run of some examples only prints.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.export import PYTORCH, text, train
from benchmarks.measure import ROOT, WORK, alternate, bundle, ratios, spread, write, write_section
from edge_runtime.datasets.dataset import Description
from edge_runtime.datasets.dataset_writer import write_description
from edge_runtime.wire.bundle_folder import read_folder
from edge_runtime.wire.graph_names import IMAGE
from edge_runtime.wire.manifest import Manifest

EXAMPLES = ROOT / "docs" / "examples"
HEADING = "## Worked examples: `make bench-examples`"
RUNTIME = "runtime"
WORKLOADS = {
    "keywords.py:build": "keyword spotting: a digit and four numbers of a log spectrogram",
    "activity_lstm.py:build": "activity recognition: windows of an inertial sensor, LSTM",
    "air_quality.py:build": "air-quality forecasts: a day of readings, six tasks",
    "table_mmoe.py:build": "a table: mixture of four experts, two tasks",
    "unet.py:build": "dense tasks: U-Net with batch normalisation, 64 px",
    "frozen_backbone.py:build": "transfer learning: the backbone is fixed, 64 px",
    "frozen_backbone.py:build_tuned": "transfer learning: its last block is trained",
    "lora_vit.py:build": "LoRA on a Vision Transformer, 64 px",
}
FIGURES = {"step_ms": ("step_ms_median", 1.0), "peak_rss_mb": ("peak_rss_bytes", 1e6)}


def random_samples(folder: Path, manifest: Manifest, samples: int) -> Path:
    """A data set of noise for any bundle: bytes for images, numbers within their tables, classes of the contract."""
    random = np.random.default_rng(0)
    (folder / "train").mkdir(parents=True, exist_ok=True)
    names = []
    for name, value in manifest.inputs.items():
        names.append(name)
        shape = (samples, *value.shape)
        array: Any = random.random(shape, np.float32)
        if value.dtype == "int64":
            array = random.integers(0, value.count or 2, shape)
        elif name == IMAGE and len(value.shape) == 3:
            array = random.integers(0, 256, shape, np.uint8)
        np.save(folder / "train" / f"{name}.npy", array)
    for task in manifest.tasks:
        shape = (samples, *task.target.shape)
        classes = (task.labels.classes if task.labels else None) or task.outputs[task.measured_output].shape[0]
        integers = task.target.dtype == "int64"
        labels = random.integers(0, classes, shape) if integers else random.random(shape, np.float32)
        np.save(folder / "train" / f"{task.name}.npy", labels)
    write_description(folder, Description(inputs=tuple(sorted(names))))
    return folder


def measured(example: str, args: argparse.Namespace) -> dict[str, Any]:
    """Step time and peak memory of both sides on one example."""
    source = f"{EXAMPLES / example}"
    folder, summary = bundle(source)
    name = example.replace(".py:", "-")
    data = random_samples(WORK / f"noise-{name}", read_folder(folder), args.batch * args.steps)
    sizes = ["--batch", str(args.batch), "--threads", str(args.threads), "--lr", "0.01"]
    sides = {
        PYTORCH: ["-m", "benchmarks.torch_train", "--model", source, "--data", str(data), *sizes],
        RUNTIME: train(folder, "--data", str(data), *sizes),
    }
    load = os.getloadavg()[0]
    runs = alternate(sides, args.pairs)
    losses = {
        PYTORCH: runs[PYTORCH][0]["train_loss"],
        RUNTIME: runs[RUNTIME][0]["epochs"][0]["train_loss"],
    }
    apart = (abs(loss - losses[RUNTIME][task]) / abs(loss) for task, loss in losses[PYTORCH].items())
    result: dict[str, Any] = {
        "parameters": summary["parameters"],
        "fixed": summary["fixed"],
        "load_before": load,
        "largest_difference_of_losses": max(apart),
    }
    for figure, (key, unit) in FIGURES.items():
        values = {side: [run[key] / unit for run in found] for side, found in runs.items()}
        result[figure] = {side: spread(found) for side, found in values.items()}
        result[figure]["to PyTorch"] = ratios(values[RUNTIME], values[PYTORCH])
    print(f"{example}: {result}", flush=True)
    return result


def table(found: dict[str, dict[str, Any]], args: argparse.Namespace) -> str:
    """The results as Markdown."""
    load = [one["load_before"] for one in found.values()]
    how = (
        f"Whole processes that train on the same random samples, {args.steps} steps of batch {args.batch}, "
        f"{args.threads} threads, SGD with momentum: `python -m edge_runtime train` as it is, and PyTorch eager. "
        f"In turn, {args.pairs} times; medians (least–largest). Losses of the epoch differ by at most "
        f"{max(one['largest_difference_of_losses'] for one in found.values()):.0e}. The machine's load before each "
        f"example, its own runs included, was {min(load):.1f} to {max(load):.1f}."
    )
    if max(load) > 2 * args.threads:
        how += (
            " Others used the machine meanwhile: steps took longer than they do alone, and only their ratio, of runs "
            "in turn, says something; memory does not depend on it."
        )
    columns = ("workload", "example", "step, ms", "PyTorch", "ratio", "peak memory, MB", "PyTorch", "ratio")
    lines = [how, "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for example, one in found.items():
        file, _, function = example.partition(":")
        name = f"[{file}](examples/{file})" + ("" if function == "build" else f":{function}")
        row = [WORKLOADS[example], name]
        for figure, form in (("step_ms", ".1f"), ("peak_rss_mb", ".0f")):
            ours, theirs, ratio = (one[figure][side] for side in (RUNTIME, PYTORCH, "to PyTorch"))
            row += [text(ours, form), text(theirs, form), f"{ratio['median']:.2f}×"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--example", action="append", choices=[*WORKLOADS], help="may be repeated; default: all")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side, in turn (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="of each side (default 2)")
    parser.add_argument("--batch", type=int, default=16, help="samples in a step (default 16)")
    parser.add_argument("--steps", type=int, default=40, help="of each run (default 40)")
    args = parser.parse_args(arguments)
    found = {example: measured(example, args) for example in args.example or WORKLOADS}
    if args.example is None:
        write("examples", "make bench-examples", {"settings": vars(args), "examples": found})
        write_section(ROOT / "docs" / "measurements.md", HEADING, table(found, args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
