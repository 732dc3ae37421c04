"""`make bench-reconstruction`: what comes back of images from embeddings, and what keeping it back costs in loss.

For a stem that is a matrix, a narrow one, and noise on the embeddings of the first: the PSNR of images of a rendered
building that the exporter's attack makes of the initial and of the trained stem's embeddings, and the validation loss
after split training, the sum over nine tasks. Written to benchmarks/results/reconstruction.json and docs/security.md.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import ROOT, WORK, bundle, rooms, run_json, spread, write, write_section
from edge_runtime.datasets.dataset import Dataset
from edge_runtime.wire.bundle_folder import read_folder
from edge_runtime.wire.messages import Precision
from edge_runtime.wire.reconstruction import NOISES, Reconstruction
from edge_runtime.wire.tensors import unpack
from export.model_file import build_model
from export.reconstruction import measure_reconstruction

SOURCE = ROOT / "export" / "models" / "vit.py"
HEADING = "## Measured: `make bench-reconstruction`"
DOCUMENT = ROOT / "docs" / "security.md"
WIDE, NARROW = "build_small_nine", "build_narrow_nine"
WAYS: dict[str, tuple[str, Precision, float]] = {
    "patches, fp32": (WIDE, "fp32", 0.0),
    "patches, int8": (WIDE, "int8", 0.0),
    **{f"patches, noise {noise:g}": (WIDE, "fp32", noise) for noise in NOISES},
    "narrow, fp32": (NARROW, "fp32", 0.0),
    "narrow, int8": (NARROW, "int8", 0.0),
}
"""Stem, precision and noise, by name."""
IMAGES, PIXELS = 200, 32


def images(data: Path) -> torch.Tensor:
    """Return two of the images that are trained on."""
    found, _ = Dataset.open(data).train.batch(range(2), (), ("image",))
    return torch.from_numpy(found["image"])


def attacked(function: str, seed: int, x: torch.Tensor, weights: Path | None = None) -> Reconstruction:
    """Return what comes back of images with a model's initial stem, or a trained one."""
    model = build_model(f"{SOURCE}:{function}", seed)
    assert model.stem is not None
    if weights is not None:
        manifest = read_folder(WORK / function)
        views = manifest.table.views(unpack(manifest.table, weights.read_bytes()))
        state = {name: torch.from_numpy(views[f"stem.{name}"].copy()) for name in model.stem.state_dict()}
        model.stem.load_state_dict(state)
    found = measure_reconstruction(replace(model, example_input=x))
    assert found is not None
    return found


def measure(data: Path, seed: int, epochs: int) -> dict[str, dict[str, float]]:
    """Return, for one seed and each way, the PSNR before and after training, and the loss."""
    x = images(data)
    result = {}
    for function in (WIDE, NARROW):
        folder, _ = bundle(f"{SOURCE}:{function}", "--seed", str(seed))
        before = attacked(function, seed, x)
        for name, (stem, precision, noise) in WAYS.items():
            if stem != function:
                continue
            out = WORK / "trained.safetensors"
            options = [
                "--json",
                "--epochs",
                str(epochs),
                "--batch",
                "8",
                "--lr",
                "0.02",
                "--seed",
                str(seed),
                "--out",
                str(out),
            ]
            sent = ["--precision", precision, "--noise", str(noise)]
            trained = run_json(
                ["-m", "edge_runtime", "split-train", "--bundle", str(folder), "--data", str(data), *options, *sent]
            )
            losses = [sum(epoch["val_loss"].values()) for epoch in trained["epochs"]]
            after = attacked(function, seed, x, out)
            result[name] = {
                "initial_psnr_db": before.psnr_db(precision, noise),
                "trained_psnr_db": after.psnr_db(precision, noise),
                "val_loss": statistics.mean(losses[-3:]),
            }
            print(seed, name, result[name], flush=True)
    return result


def table(result: dict[str, Any]) -> str:
    """Return the result in Markdown."""
    rows = [
        "| stem, and how embeddings are sent | PSNR, dB | of the trained stem | validation loss | to the first |",
        "|---|---|---|---|---|",
    ]
    for name, found in result["ways"].items():
        initial, after, loss = (found[key]["median"] for key in ("initial_psnr_db", "trained_psnr_db", "val_loss"))
        low, high = found["val_loss"]["min"], found["val_loss"]["max"]
        spare = f" ({low:.3f}–{high:.3f})" if low < high else ""
        ratio = found["loss_to_patches"]["median"]
        rows.append(f"| {name} | {initial:.1f} | {after:.1f} | {loss:.3f}{spare} | {ratio:.2f}× |")
    return "\n".join(rows)


def about(seeds: int, epochs: int, guess_db: float) -> str:
    """Return what was measured, in a paragraph."""
    medians = f"medians of {seeds} seeds (least–largest)" if seeds > 1 else "one seed"
    return (
        f"{IMAGES} images of a rendered building, {PIXELS} px, nine tasks, {epochs} epochs, {medians}; the loss is the "
        "mean of the last three epochs. Attacked are two of the training images, which the exporter does not have: its "
        f"own figure is of drawn ones. Who knows an image's mean colour alone is at {guess_db:.1f} dB."
    )


def main() -> None:
    """Measure, and write JSON and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    data = rooms(1, IMAGES, PIXELS) / "building_00"
    x = images(data)
    flat = x.mean((2, 3), keepdim=True).expand_as(x)
    guess_db = float(10 * torch.log10((x.max() - x.min()) ** 2 / (flat - x).square().mean()))
    runs = [measure(data, seed, args.epochs) for seed in range(args.seeds)]
    ways = {
        name: {key: spread([run[name][key] for run in runs]) for key in runs[0][name]}
        | {"loss_to_patches": spread([run[name]["val_loss"] / run["patches, fp32"]["val_loss"] for run in runs])}
        for name in WAYS
    }
    command = f"python -m benchmarks.reconstruction --seeds {args.seeds} --epochs {args.epochs}"
    result = {"images": IMAGES, "pixels": PIXELS, "guess_db": round(guess_db, 1), "ways": ways}
    write("reconstruction", command, result)
    write_section(DOCUMENT, HEADING, f"{about(args.seeds, args.epochs, guess_db)}\n\n{table(result)}")


if __name__ == "__main__":
    main()
