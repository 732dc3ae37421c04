"""`make bench-link`: a round over slow and bad lines, of real agents and the real server, into docs/link.md.

One device is behind a line (line.py), two are not, and none trains for long: a model of one megabyte goes down and its
update up. Bytes are counted in the line, requests, acknowledgements and what a reset has swallowed included; *needed*
are those of the files. Times are from the device's log: of its downloads, and of its uploads until the server's
acknowledgement.
"""

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.export import random_data
from benchmarks.line import Line
from benchmarks.measure import ROOT, WORK, bundle, write, write_section
from benchmarks.split import started
from edge_runtime.wire.bundle_folder import read_folder

DOCUMENT = ROOT / "docs" / "link.md"
HEADING = "## Measured: `make bench-link`"
SOURCE = ROOT / "benchmarks" / "models" / "wide.py"
LINES = ((5e3, 0.0), (2e4, 0.0), (1e5, 0.0), (1e6, 0.0), (2e4, 0.05), (1e5, 0.05))
"""Bytes a second, and the probability of a reset in each second."""
ROUNDS = 2
LIMIT_S = 7200.0
SAID = re.compile(r"^(\S+ \S+) \w+ round (\d+): (asked|downloading (\d+)|train |evaluate |done|accepted)", re.MULTILINE)


def measure(folder: Path, bytes_per_s: float, resets_per_s: float) -> dict[str, Any]:
    """Run one federation over one line; return what crossed it, and how long that took."""
    root = WORK / f"link-{bytes_per_s:.0f}-{resets_per_s}"
    shutil.rmtree(root, ignore_errors=True)
    state, manifest = root / "state", read_folder(folder)
    settings = {
        "state": state, "bundle": folder, "host": "127.0.0.1", "port": 0, "strategy": "all_in_one",
        "merged_rounds": 1, "split_rounds": ROUNDS - 1, "batch": 4, "min_devices": 3, "quorum": 3, "lr": 0.01,
        "round_deadline_s": LIMIT_S,
    }  # fmt: skip
    flags = [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    server = [sys.executable, "-m", "broker_server", *flags, "--exit-when-finished", "--quiet"]
    root.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((root / "server.log").open("wb"))
        serving = stack.enter_context(started(server, log))
        while (found := re.search(r"listens on 127.0.0.1:(\d+)", (root / "server.log").read_text())) is None:
            time.sleep(0.1)
        line = stack.enter_context(Line(int(found[1]), bytes_per_s, resets_per_s))
        for images, name in enumerate(("slow", "near-1", "near-2"), 4):
            data = random_data(root / "data" / name, manifest, images)
            shutil.copytree(data / "train", data / "test", dirs_exist_ok=True)
            config = root / name / "agent.toml"
            port = line.port if name == "slow" else line.target
            enrol = [sys.executable, "-m", "broker_server", "enrol", name, "--out", config, "--state", state]
            more = ["--url", f"mqtt://127.0.0.1:{port}", "--data", data, "--threads", "1", "--meter", "none"]
            subprocess.run([*map(str, enrol), *map(str, more)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            device = [sys.executable, "-m", "edge_runtime", "run", "--config", str(config)]
            stack.enter_context(started(device, stack.enter_context((root / f"{name}.log").open("wb"))))
        serving.wait(LIMIT_S)
        time.sleep(1.0)
    report = json.loads((state / "report" / "report.json").read_bytes())
    trained = sum("slow" in row["clients"] for row in report["rounds"] if row["bytes_up"])
    said = (root / "slow.log").read_text()
    need_down = sum(int(size) for *_, size in SAID.findall(said) if size)  # each file once, whatever was lost
    need_up = trained * manifest.weights.size_bytes
    seconds = _transfer_s(said)
    return {
        "bytes_per_s": bytes_per_s,
        "resets_per_s": resets_per_s,
        "rounds": trained,
        "needed_down": need_down,
        "down": line.down_bytes,
        "down_ratio": line.down_bytes / need_down,
        "needed_up": need_up,
        "up": line.up_bytes,
        "up_ratio": line.up_bytes / need_up,
        "resets": line.resets,
        "transfer_s": seconds,
        "time_ratio": seconds * bytes_per_s / (need_down + need_up),
    }


def _transfer_s(said: str) -> float:
    """Return how long a device's downloads and uploads took, by its log."""
    seconds, since = 0.0, 0.0
    for when, _, what, _ in SAID.findall(said):
        now = datetime.strptime(when, "%Y-%m-%d %H:%M:%S,%f").timestamp()  # noqa: DTZ007
        if what in {"train ", "evaluate ", "accepted"} and since:
            seconds, since = seconds + now - since, 0.0
        elif what in {"asked", "done"}:
            since = now
    return seconds


def document(rows: Sequence[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "One device behind the line, two beside the server, two rounds of training and one of measuring, a model of",
        "one megabyte. *Down* and *up* are bytes on the line in relation to those of the files; *time* is that of all",
        "transfers in relation to the files' bytes at the line's rate.",
        "",
        "| line, kB/s | resets | down | up | time |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        bad = f"{100 * row['resets_per_s']:g} %/s ({row['resets']})" if row["resets_per_s"] else "none"
        ratios = " | ".join(f"{row[key]:.2f}" for key in ("down_ratio", "up_ratio", "time_ratio"))
        lines.append(f"| {row['bytes_per_s'] / 1e3:g} | {bad} | {ratios} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--line", type=int, action="append", help="number of a line, from 0 (default: all)")
    args = parser.parse_args(arguments)
    folder, _ = bundle(f"{SOURCE}:build")
    rows = []
    for number in args.line if args.line is not None else range(len(LINES)):
        rows.append(measure(folder, *LINES[number]))
        print(rows[-1], flush=True)
    if args.line is None:
        write("link", "make bench-link", {"lines": rows})
        write_section(DOCUMENT, HEADING, document(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
