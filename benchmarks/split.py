"""`make bench-split`: split training against training the same model on the device.

- steps: `train` and `split-train` on one machine, in turn: time of a step, peak memory of the device's process, bytes;
- fleet: four device processes, each under a limit of the kernel's that the whole model does not fit, and the server
  with its host, over MQTT; and what a device says to the whole model within the same limit.

Whole runs are written to benchmarks/results/split.json and, as tables, to docs/split_learning.md.
"""

import argparse
import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.export import random_data
from benchmarks.limits import memory_limit, within
from benchmarks.measure import ROOT, WORK, alternate, bundle, ratios, spread, write, write_section
from edge_runtime.wire.bundle_folder import read_folder

SOURCE = ROOT / "export" / "models" / "vit.py"
HEADING = "## Measured: `make bench-split`"
DOCUMENT = ROOT / "docs" / "split_learning.md"
MIB = 2**20
MODELS = {
    "build_small": ("ViT-Small, 2 tasks", 8, 4, 4),
    "build_general": ("ViT-Base, 9 tasks", 4, 2, 12),
}
"""Name, images of a run, batch and stages of the encoder, by function."""
DEVICES, FLEET_LIMIT_MIB, FLEET_BUDGET_MIB = 4, 320, 300
PRECISIONS = ("fp32", "fp16", "int8")
LIMIT_S = 3600.0


def steps(name: str, pairs: int, threads: int) -> dict[str, Any]:
    """The same training in one process and in two."""
    title, images, batch, stages = MODELS[name]
    folder, _ = bundle(f"{SOURCE}:{name}", "--stages", str(stages))
    data = random_data(WORK / f"noise-{name}", read_folder(folder), images)
    common = ["--bundle", str(folder), "--data", str(data), "--batch", str(batch), "--threads", str(threads), "--json"]
    whole = "on the device"
    sides = {whole: ["-m", "edge_runtime", "train", *common]} | {
        precision: ["-m", "edge_runtime", "split-train", *common, "--precision", precision] for precision in PRECISIONS
    }
    runs = alternate(sides, pairs)
    result: dict[str, Any] = {"model": title, "batch": batch}
    for side, found in runs.items():
        result[side] = {
            "step_ms": spread([run["step_ms_median"] for run in found]),
            "peak_rss_mib": spread([run["peak_rss_bytes"] / MIB for run in found]),
            "train_loss": found[-1]["epochs"][-1]["train_loss"],
        }
        if side != whole:
            result[side] |= {
                "host_peak_rss_mib": spread([run["encoder_server_peak_rss_bytes"] / MIB for run in found]),
                "mb_per_step": found[-1]["bytes_per_step"] / 1e6,
                "peak_to_whole": ratios(*_both(found, runs[whole], "peak_rss_bytes")),
                "throughput_to_whole": ratios(*_both(runs[whole], found, "step_ms_median")),
            }
        print(f"{title}, {side}: {result[side]}", flush=True)
    return result


def _both(a: list[dict[str, Any]], b: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    return [run[key] for run in a], [run[key] for run in b]


def fleet() -> dict[str, Any]:
    """Run four devices under a limit that the whole model does not fit, with the encoder on either side."""
    folder, _ = bundle(f"{SOURCE}:build_small", "--stages", "4")
    root = WORK / "split-fleet"
    shutil.rmtree(root, ignore_errors=True)
    manifest = read_folder(folder)
    found = {}
    for where in ("host", "device"):
        found[where] = _federation(folder, root / where, manifest, where)
        print(f"encoder on the {where}: {found[where]}", flush=True)
    return {"devices": DEVICES, "limit_mib": FLEET_LIMIT_MIB, "budget_mib": FLEET_BUDGET_MIB, **found}


def _federation(folder: Path, root: Path, manifest: Any, where: str) -> dict[str, Any]:
    state, names = root / "state", [f"board-{number}" for number in range(DEVICES)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "state": state, "bundle": folder, "host": "127.0.0.1", "port": port, "strategy": "fedbone",
        "split_learning_encoder": "server" if where == "host" else where,
        "merged_rounds": 1, "split_rounds": 1, "batch": 4, "min_devices": DEVICES, "lr": 0.01,
        "round_deadline_s": 1200,
    }  # fmt: skip
    flags = [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    server = [sys.executable, "-m", "broker_server", *flags, "--exit-when-finished", "--quiet"]
    server.append("--split-learning-allow-reconstruction")
    root.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((root / "server.log").open("wb"))
        serving = stack.enter_context(started(server, log))
        while not (state / "url").exists() and "listens" not in (root / "server.log").read_text():
            time.sleep(0.1)
        logs = []
        limited = False
        for name in names:
            data = random_data(root / "data" / name, manifest, 8)
            shutil.copytree(data / "train", data / "test")
            config = root / name / "agent.toml"
            enrol = [sys.executable, "-m", "broker_server", "enrol", name, "--out", config, "--state", state]
            more = ["--url", f"mqtt://127.0.0.1:{port}", "--data", data, "--threads", "1", "--meter", "none"]
            more += ["--split-learning", "--allow-reconstruction"]  # data are noise, and nobody's
            subprocess.run([*map(str, enrol), *map(str, more)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            with config.open("a") as file:
                file.write(f'memory_budget = "{FLEET_BUDGET_MIB}MiB"\n')
            group = stack.enter_context(memory_limit(FLEET_LIMIT_MIB * MIB))
            limited = group is not None
            logs.append(root / f"{name}.log")
            device = [sys.executable, "-m", "edge_runtime", "run", "--config", str(config)]
            stack.enter_context(started(within(group, device), stack.enter_context(logs[-1].open("wb"))))
        result: dict[str, Any] = {"limit": "kernel" if limited else "none here"}
        if where == "device":  # they refuse, so the round never closes
            return result | {"said": _refusals(logs)}
        result["exit_code"] = serving.wait(LIMIT_S)
    report = json.loads((state / "report" / "report.json").read_bytes())
    rows = [row for row in report["rounds"] if row["peak_rss_bytes"]]
    return result | {
        "rounds": len(report["rounds"]),
        "clients": sorted({client for row in report["rounds"] for client in row["clients"]}),
        "peak_rss_mib": max(row["peak_rss_bytes"] for row in rows) / MIB,
        "test_loss": {stage: losses["total"] for stage, losses in report["test_loss"].items() if losses},
        "mb_up": sum(row["bytes_up"] or 0 for row in report["rounds"]) / 1e6,
        "mb_down": sum(row["bytes_down"] or 0 for row in report["rounds"]) / 1e6,
    }


def _refusals(logs: list[Path]) -> str:
    """Return the output of the devices when all have ended."""
    pattern = re.compile(r"refused \((\w+)\): (.*)")
    until_s = time.monotonic() + LIMIT_S
    while time.monotonic() < until_s:
        found = [pattern.search(log.read_text()) for log in logs]
        if all(found):
            return min(match.group(2) for match in found if match)
        time.sleep(0.5)
    return "nothing within the time"


@contextlib.contextmanager
def started(command: list[str], log: Any) -> Any:
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def document(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "Noise with the models' shapes, 224 px, SGD with momentum; device and host on the same two cores, one after",
        "another. *Throughput* is steps in a given time against training in one process; medians (least–largest).",
        "",
        "| model | encoder | step, ms | throughput | device, MiB | of the whole | host, MiB | MB a step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for found in result["steps"].values():
        for side in ("on the device", *PRECISIONS):
            row = found[side]
            name = side if side == "on the device" else f"at the host, {side}"
            cells = [f"{found['model']}, batch {found['batch']}", name, _text(row["step_ms"])]
            cells += [f"{_text(row['throughput_to_whole'], '.2f')}×" if "throughput_to_whole" in row else ""]
            cells += [_text(row["peak_rss_mib"])]
            cells += [f"{row['peak_to_whole']['median']:.2f}×" if "peak_to_whole" in row else ""]
            cells += [_text(row["host_peak_rss_mib"]) if "host_peak_rss_mib" in row else ""]
            cells += [f"{row['mb_per_step']:.1f}" if "mb_per_step" in row else ""]
            lines.append(f"| {' | '.join(cells)} |")
    if "fleet" in result:
        fleet = result["fleet"]
        host, device = fleet["host"], fleet["device"]
        told = (
            f"{fleet['devices']} device processes with ViT-Small, each in a control group of {fleet['limit_mib']} MiB "
            f"(limit: {host['limit']}) with a budget of {fleet['budget_mib']} MiB, over MQTT with "
            f"`python -m broker_server --strategy fedbone`: {host['rounds']} rounds, exit code {host['exit_code']}, "
            f"peak {host['peak_rss_mib']:.0f} MiB, {host['mb_up']:.0f} MB up and {host['mb_down']:.0f} MB down in all. "
            f"With `--split-learning-encoder device` the same devices say: “{device['said']}”"
        )
        lines += ["", told]
    return "\n".join(lines)


def _text(figure: dict[str, Any], form: str = ".0f") -> str:
    return f"{figure['median']:{form}} ({figure['min']:{form}}–{figure['max']:{form}})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=[*MODELS, "fleet"], help="may be repeated; default: all")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side, in turn (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="of each process (default 2)")
    args = parser.parse_args(arguments)
    wanted = args.part or [*MODELS, "fleet"]
    result: dict[str, Any] = {"steps": {n: steps(n, args.pairs, args.threads) for n in MODELS if n in wanted}}
    if "fleet" in wanted:
        result["fleet"] = fleet()
    if args.part is None:
        write("split", "make bench-split", {"settings": vars(args), **result})
        write_section(DOCUMENT, HEADING, document(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
