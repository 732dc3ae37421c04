"""Running measured processes and writing down what they gave."""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "runs" / "bench"
PYTHON = sys.executable
XCEPTION = ROOT / "export" / "models" / "xception.py"


def run_json(arguments: Sequence[str], python: str = PYTHON) -> dict[str, Any]:
    """Run a Python module as a process and read the JSON on its standard output. Raises CalledProcessError."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([python, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def alternate(
    sides: Mapping[str, Sequence[str]], pairs: int, pythons: Mapping[str, str] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Run each side `pairs` times, A B A B …, so that a change in the machine's speed falls on both.

    `pythons` names the interpreter of those sides that need another one.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for pair in range(pairs):
        for name, arguments in sides.items():
            print(f"  pair {pair + 1} of {pairs}: {name}", file=sys.stderr, flush=True)
            found[name].append(run_json(arguments, (pythons or {}).get(name, PYTHON)))
    return found


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Median, least and largest of some measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "count": len(values)}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float | int]:
    """The spread of the ratios, pair by pair."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def write(name: str, command: str, result: Mapping[str, Any]) -> None:
    """Write a result with the machine it was measured on."""
    machine = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in ("torch", "onnxruntime", "numpy")},
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"command": command, "machine": machine, **result}, indent=1) + "\n")
    print(f"{path.relative_to(ROOT)} written", flush=True)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def rooms(buildings: int = 1, images: int = 200, size: int = 64) -> Path:
    """Rendered data sets of this size, made when they are not there yet; the folder of all buildings."""
    drawn = WORK / f"rooms-{buildings}-{images}-{size}"
    made = WORK / f"data-{buildings}-{images}-{size}"
    if not made.is_dir():
        shape = ["--buildings", str(buildings), "--images", str(images), "--size", str(size)]
        run_json(["-m", "broker_server", "rooms", "--out", str(drawn), *shape, "--json"])
        run_json(
            ["-m", "edge_runtime", "datasets", "import", str(drawn), "--out", str(made), "--size", str(size), "--json"]
        )
    return made


def bundle(source: str, *options: str) -> tuple[Path, dict[str, Any]]:
    """Compile a model, FILE.py:function, to a new bundle; return it and the exporter's summary."""
    folder = WORK / source.rpartition(":")[2]
    return folder, run_json(["-m", "export", "compile", source, "--out", str(folder), "--json", *options])


def write_section(path: Path, heading: str, text: str) -> None:
    """Replace a section of a Markdown file, or add it at the end; `heading` is its whole line, `## …`."""
    lines = path.read_text().splitlines(keepends=True)
    starts = [i for i, line in enumerate(lines) if line.startswith("## ")]
    begin = next((i for i in starts if lines[i].rstrip("\n") == heading), len(lines))
    end = next((i for i in starts if i > begin), len(lines))
    before = "".join(lines[:begin]).rstrip("\n")
    after = "".join(lines[end:])
    path.write_text(f"{before}\n\n{heading}\n\n{text.strip()}\n" + (f"\n{after}" if after else ""))
    print(f"{path.relative_to(ROOT)} written", flush=True)
