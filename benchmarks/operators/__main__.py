"""`make coverage-operators`: PyTorch's samples of its operators and modules, exported and compared.

    python -m benchmarks.operators                  all entries (half an hour): JSON, and the table of docs/operators.md
    python -m benchmarks.operators add nn.Linear    these alone, printed; edge: those of benchmarks/operators/edge.txt

Worker processes go through the entries in turn; an entry that ends its process is counted as a crash, and the rest
goes on.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, ROOT, write, write_section
from benchmarks.operators.outcome import CRASH, NOTHING, of_entry, of_sample
from benchmarks.operators.report import EDGE, shares, table
from benchmarks.operators.samples import entries, samples

COMMAND = "make coverage-operators"
HEADING = f"## Held to PyTorch's own samples: `{COMMAND}`"


def work(names: Sequence[str]) -> None:
    """Try entries one after another; print each as a line of JSON, its name before it is tried."""
    import torch

    from edge_runtime.training.engine import Engine

    torch.set_num_threads(1)
    engine, known = Engine(threads=1), entries()
    for name in names:
        print(json.dumps([name, None]), flush=True)
        try:
            found = of_entry((sample, of_sample(sample, engine)) for sample in samples(name, known[name]))
        except Exception as exc:  # noqa: BLE001  the samples themselves cannot be made
            found = {"result": NOTHING, "samples": {}, "message": f"samples: {exc}"}
        print(json.dumps([name, found]), flush=True)


def measure(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Try entries in processes of their own; return them by name."""
    found: dict[str, dict[str, Any]] = {}
    left = list(names)
    while left:
        found |= _worker(left)
        left = [name for name in left if name not in found]
    return {name: found[name] for name in names}


def _worker(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what a process gives before it ends; the entry that ended it is a crash."""
    found: dict[str, dict[str, Any]] = {}
    command = [sys.executable, "-m", "benchmarks.operators", "--work", *names]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        tried = names[0]
        for line in process.stdout:
            if not line.startswith("["):
                continue
            tried, entry = json.loads(line)
            if entry is not None:
                found[tried] = entry
                print(f"{tried:60s} {entry['result']:14s} {entry.get('message', '')[:200]}", flush=True)
    if tried not in found:
        found[tried] = {"result": CRASH, "samples": {}, "message": f"the process ended with {process.returncode}"}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--renew", action="store_true", help="put these alone into the results and the table again")
    parser.add_argument("--out", type=Path, help="write the entries here, whichever they are")
    args = parser.parse_args()
    names: list[str] = args.names
    if args.work:
        work(names)
        return
    if names == ["edge"]:
        names = list(EDGE)
    found = measure(names or list(entries()))
    if args.out:
        args.out.write_text(json.dumps({"entries": found}, indent=1))
    elif names and args.renew:
        path = RESULTS / "operators.json"
        whole = json.loads(path.read_text())
        whole["entries"] |= found
        whole["shares"] = shares(whole["entries"])
        path.write_text(json.dumps(whole, indent=1) + "\n")
        write_section(ROOT / "docs" / "operators.md", HEADING, table(whole["entries"]))
    elif not names:
        write((RESULTS / "operators").name, COMMAND, {"shares": shares(found), "entries": found})
        write_section(ROOT / "docs" / "operators.md", HEADING, table(found))


if __name__ == "__main__":
    main()
