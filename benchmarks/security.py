"""`make bench-security`: what signatures and TLS cost the demo, in CPU time and in bytes.

Every process of a short demo, which is over TLS and signed as always, counts the CPU time that is spent in signatures
and in TLS (benchmarks/cost_hooks), so that the load of the machine does not matter. Written to
benchmarks/results/security.json and docs/security.md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, WORK, write, write_section
from edge_runtime.wire.envelope import COMMAND_BYTES, EVENT_BYTES

HEADING = "## Measured: `make bench-security`"
DOCUMENT = ROOT / "docs" / "security.md"
HOOKS = ROOT / "benchmarks" / "cost_hooks"
RECORD_BYTES = 22
"""What TLS 1.3 adds to a record: its header, its type and its tag."""
SIGNING = {
    "sign.seal_command": "command signed, server",
    "sign.open_command": "command checked, device",
    "sign.seal_event": "event signed, device",
    "sign.check_event": "event checked, server",
}


def demo(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Run a demo; return what its processes have counted."""
    costs = folder / "costs"
    shutil.rmtree(costs, ignore_errors=True)
    costs.mkdir(parents=True)
    command = [sys.executable, "-m", "broker_server", "demo", "--out", str(folder), "--quiet", "--fresh"]
    command += ["--merged-rounds", str(rounds), "--split-rounds", str(rounds)]
    environment = os.environ | {"PYTHONPATH": f"{HOOKS}:{ROOT}", "MAS_COST": str(costs)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return [json.loads(path.read_bytes()) for path in sorted(costs.glob("*.json"))]


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the shares, and each kind of call."""
    federation = [each for each in found if any(name.startswith("sign.") for name in each["calls"])]
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for each in federation:
        for name, (spent_s, count) in each["calls"].items():
            seconds[name] += spent_s
            calls[name] += count
    cpu_s = sum(each["cpu_s"] for each in federation)
    parts = {kind: sum(s for name, s in seconds.items() if name.startswith(kind)) for kind in ("sign.", "tls.")}
    return {
        "processes": len(federation),
        "cpu_s": round(cpu_s, 2),
        "signatures_cpu_s": round(parts["sign."], 4),
        "tls_cpu_s": round(parts["tls."], 4),
        "signatures_share": parts["sign."] / cpu_s,
        "tls_share": parts["tls."] / cpu_s,
        "messages": {
            words: {"count": calls[name], "ms": round(1e3 * seconds[name] / max(1, calls[name]), 4)}
            for name, words in SIGNING.items()
        },
        "handshakes": {
            "count": calls["tls.do_handshake"],
            "ms": round(1e3 * seconds["tls.do_handshake"] / max(1, calls["tls.do_handshake"]), 4),
        },
        "bytes": {"command": COMMAND_BYTES, "event": EVENT_BYTES, "tls_record": RECORD_BYTES},
    }


def table(result: dict[str, Any]) -> str:
    """Return the result in Markdown."""
    rows = ["| what | how often | ms of CPU each | bytes each |", "|---|---|---|---|"]
    sizes = result["bytes"]
    for words, found in result["messages"].items():
        size = (
            sizes["command"]
            if words.startswith("command signed")
            else sizes["event"]
            if "event signed" in words
            else ""
        )
        rows.append(f"| {words} | {found['count']} | {found['ms']:.3f} | {size} |")
    shake = result["handshakes"]
    rows.append(f"| steps of TLS handshakes | {shake['count']} | {shake['ms']:.3f} | |")
    rows.append(f"| TLS record | | | {sizes['tls_record']} |")
    return "\n".join(rows)


def main() -> None:
    """Measure, and write JSON and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="merged rounds, and rounds of each of two groups (3)")
    args = parser.parse_args()
    result = summary(demo(WORK / "security-demo", args.rounds))
    write("security", f"python -m benchmarks.security --rounds {args.rounds}", result)
    about = (
        f"The demo's server and four devices ({args.rounds} merged rounds, {args.rounds} of each group) took "
        f"{result['cpu_s']:.0f} s of CPU: {100 * result['signatures_share']:.2f} % of it for signatures and "
        f"{100 * result['tls_share']:.2f} % for TLS, counted in the calls themselves."
    )
    write_section(DOCUMENT, HEADING, f"{about}\n\n{table(result)}")


if __name__ == "__main__":
    main()
