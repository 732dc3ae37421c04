"""Budgets: what a device chooses for each, what it then takes, and whether it lives under a limit that kills.

Each budget is tried with plain training and fp32 updates, and with probes and updates that take more memory. Where
control groups can be made, the limit is one of the kernel's (memory.max, or version 1's): a process that needs more is
killed. Training is the worker's, on rendered rooms.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.limits import memory_limit, within
from benchmarks.measure import ROOT, WORK, XCEPTION, bundle, rooms

BUDGETS_MIB = (400, 160, 130, 110, 80)
OPTIONS = (("", "fp32"), ("exact", "int8"), ("encoder", "topk"))
"""The methods of probing and of writing updates."""
BATCH = 16
IMAGES = 32
ROUNDS = 200
MIB = 2**20


def measure() -> dict[str, Any]:
    """Each budget in a process of its own, under a limit of that budget; then many rounds in one process."""
    data = next(folder for folder in sorted(rooms(1, IMAGES).iterdir()) if folder.is_dir())
    folder, _ = bundle(f"{XCEPTION}:build")
    found = []
    for probe, scheme in OPTIONS:
        for budget in BUDGETS_MIB:
            about = {"budget_mib": budget, "probe": probe, "scheme": scheme}
            found.append({**about, **_bounded(folder, data, budget, 2, probe, scheme)})
            print(found[-1], flush=True)
    many = _bounded(folder, data, 200, ROUNDS)
    peaks = [row["peak_bytes"] for row in many["rounds"]]
    return {
        "batch": BATCH,
        "budgets": found,
        "growth": {
            "rounds": ROUNDS,
            "peak_bytes_of_round_10": peaks[min(9, len(peaks) - 1)],
            "peak_bytes_of_the_last": peaks[-1],
        },
    }


def document(result: dict[str, Any]) -> str:
    """The table."""
    rows = [
        "## Memory budgets: `python -m benchmarks.device budget`",
        "",
        f"The small Xception with five tasks (width 0.25, 64 px), batches of {result['batch']}, in a process under a",
        "hard limit of its budget where the kernel allows one. *Peak* is the process's own measure (VmHWM), which",
        "counts the pages of files and libraries too, from the first graph to the written update.",
        "",
        "| budget | probes | updates | at once | kept, recomputed, frozen | predicted, MiB | peak, MiB | limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["budgets"]:
        limit = row["limit"]
        about = f"| {row['budget_mib']} | {row['probe'] or 'none'} | {row['scheme']} |"
        if "declined" in row:
            rows.append(f"{about} declined: {row['declined']} | | | | {limit} |")
            continue
        last = row["rounds"][-1]
        stages = f"{last['kept']} / {last['recomputed']} / {last['frozen']}"
        predicted, peak = (last[name] / MIB for name in ("predicted_peak_bytes", "peak_bytes"))
        rows.append(f"{about} {last['micro_batch']} | {stages} | {predicted:.0f} | {peak:.0f} | {limit} |")
    growth = result["growth"]
    tenth, last_peak = (growth[name] / MIB for name in ("peak_bytes_of_round_10", "peak_bytes_of_the_last"))
    many = f"{growth['rounds']} rounds in one process"
    return "\n".join([*rows, "", f"{many}: peak {tenth:.1f} MiB in the tenth, {last_peak:.1f} MiB in the last."])


def _bounded(
    folder: Path, data: Path, budget_mib: int, rounds: int, probe: str = "", scheme: str = "fp32"
) -> dict[str, Any]:
    state = WORK / f"budget-{budget_mib}-{rounds}-{probe}"
    shutil.rmtree(state, ignore_errors=True)
    arguments = [folder, data, state, f"{budget_mib}MiB", BATCH, rounds, probe, scheme]
    command = [sys.executable, "-m", "benchmarks.device.bounded", *map(str, arguments)]
    with memory_limit(budget_mib * MIB) as group:
        done = subprocess.run(within(group, command), cwd=ROOT, stdout=subprocess.PIPE, check=False)
    limit = "none here" if group is None else "kernel"
    if done.returncode:
        return {"limit": limit, "declined": f"KILLED, exit code {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout)
    return {"limit": limit, **result}
