"""`make bench`: what the README claims, measured. `python -m benchmarks.run [gradients device tasks demo]`."""

import argparse
import subprocess
from typing import Any

from benchmarks.measure import PYTHON, ROOT, WORK, XCEPTION, alternate, bundle, ratios, rooms, run_json, spread, write

SEEDS = (0, 1, 2)


def gradients(_pairs: int) -> None:
    """Every gradient against PyTorch, for each ready model that fits a short run."""
    found = {}
    for function in ("build", "build_nine", "build_views"):
        _, summary = bundle(f"{XCEPTION}:{function}")
        found[function] = summary["parity"]
        print(f"{function}: {summary['parity']}")
    write("gradients", "python -m benchmarks.run gradients", {"parity": found})


def device(pairs: int) -> None:
    """A device process against a PyTorch process: the same model, batches and data."""
    data = rooms() / "building_00"
    folder, _ = bundle(f"{XCEPTION}:build")
    common = ["--data", str(data), "--batch", "16", "--epochs", "2"]
    sides = {
        "device": ["-m", "edge_runtime", "train", "--bundle", str(folder), *common, "--json"],
        "pytorch": ["-m", "benchmarks.torch_train", "--model", f"{XCEPTION}:build", *common],
    }
    runs = alternate(sides, pairs)
    result: dict[str, Any] = {"model": "build: 5 tasks, width 0.25, 64 px, batch 16"}
    for name, found in runs.items():
        last = found[-1]
        result[name] = {
            "step_ms": spread([run["step_ms_median"] for run in found]),
            "peak_rss_mib": spread([run["peak_rss_bytes"] / 2**20 for run in found]),
            "train_loss": last["epochs"][-1]["train_loss"] if name == "device" else last["train_loss"],
        }
    for figure in ("step_ms_median", "peak_rss_bytes"):
        ours, theirs = ([run[figure] for run in runs[side]] for side in ("device", "pytorch"))
        result[f"ratio_{figure}"] = ratios(ours, theirs)
        print(f"{figure}: device / PyTorch = {result[f'ratio_{figure}']}")
    write("device", "python -m benchmarks.run device", result)


def tasks(pairs: int) -> None:
    """Peak memory of nine tasks against one, on the same data."""
    data = rooms() / "building_00"
    bundles = {function: str(bundle(f"{XCEPTION}:{function}")[0]) for function in ("build_nine", "build_one")}
    sides = {
        function: ["-m", "edge_runtime", "train", "--bundle", folder, "--data", str(data), "--json"]
        for function, folder in bundles.items()
    }
    runs = alternate(sides, pairs)
    peaks = {name: [run["peak_rss_bytes"] / 2**20 for run in found] for name, found in runs.items()}
    ratio = ratios(peaks["build_nine"], peaks["build_one"])
    print(f"peak memory, nine tasks / one = {ratio}")
    write(
        "tasks",
        "python -m benchmarks.run tasks",
        {"peak_rss_mib": {name: spread(values) for name, values in peaks.items()}, "ratio_peak_rss": ratio},
    )


def demo(_pairs: int) -> None:
    """The demo for each of three seeds: total test loss before, after the merged phase, and at the end."""
    found = {}
    for seed in SEEDS:
        out = WORK / f"demo-{seed}"
        command = ["-m", "broker_server", "demo", "--out", str(out), "--seed", str(seed), "--fresh"]
        subprocess.run([PYTHON, *command], cwd=ROOT, check=True)
        report = run_json(["-c", f"print(open({str(out / 'report.json')!r}).read())"])
        totals = {phase: report["test_loss"][phase]["total"] for phase in ("before", "merged", "end")}
        found[str(seed)] = {"total_test_loss": totals, "split": report["split"], "wall_s": report["wall_s"]}
        print(f"seed {seed}: {found[str(seed)]}")
    write("demo", "python -m benchmarks.run demo", {"seeds": found})


def main() -> None:
    sections = {"gradients": gradients, "device": device, "tasks": tasks, "demo": demo}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", nargs="*", choices=[*sections, []], help="default: all of them")
    parser.add_argument("--pairs", type=int, default=5, help="alternating runs of each side (default 5)")
    args = parser.parse_args()
    for name in args.section or sections:
        print(f"== {name}", flush=True)
        sections[name](args.pairs)


if __name__ == "__main__":
    main()
