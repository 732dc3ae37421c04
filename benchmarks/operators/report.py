"""The entries in groups, as JSON and as a table of docs/operators.md."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.operators.outcome import NOTHING, PASS

EDGE = tuple(Path(__file__).with_name("edge.txt").read_text().split())
"""What the forward passes and losses of models for boards are made of: entries by name."""

LINALG = (
    *("cholesky", "cholesky_inverse", "cholesky_solve", "geqrf", "lu", "lu_solve", "lu_unpack", "ormqr", "pinverse"),
    *("qr", "svd", "svd_lowrank", "pca_lowrank", "triangular_solve", "logdet", "matrix_exp", "lobpcg"),
)
SPECIAL = ("polygamma", "mvlgamma", "igamma", "lgamma", "digamma", "i0")
COMPLEX = ("complex", "view_as_complex", "polar", "real", "imag", "angle", "cfloat", "cdouble", "chalf")
VECTORS = ("linalg.vector_norm", "linalg.vecdot", "linalg.cross")
GROUPS = (
    "operators of models for boards",
    "torch.nn modules",
    "torch.nn.functional",
    "differentiable operators, without fft, linalg, special, masked, sparse, complex",
)


def of_group(group: str, names: Sequence[str]) -> list[str]:
    """Return those of the entries that a group counts."""
    modules = [n for n in names if n.startswith("nn.") and not n.startswith("nn.functional.")]
    if group == GROUPS[0]:
        return [name for name in EDGE if name in names]
    if group == GROUPS[1]:
        return modules
    if group == GROUPS[2]:
        return [n for n in names if n.startswith("nn.functional.")]
    return [n for n in names if n not in modules and not _apart(n)]


def shares(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return for each group how many entries it has and how many pass."""
    found = {}
    for group in GROUPS:
        counted = [n for n in of_group(group, list(entries)) if entries[n]["result"] != NOTHING]
        passed = sum(entries[n]["result"] == PASS for n in counted)
        found[group] = {"entries": len(counted), "pass": passed, "percent": round(100 * passed / len(counted), 1)}
    return found


def table(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the groups, and what of them does not pass and why, in Markdown."""
    lines = ["| group | entries | pass | |", "|---|---|---|---|"]
    for group, row in shares(entries).items():
        lines.append(f"| {group} | {row['entries']} | {row['pass']} | {row['percent']} % |")
    lines += ["", "What does not pass:", "", "| entry | result | what is said |", "|---|---|---|"]
    counted = {name for group in GROUPS for name in of_group(group, list(entries))}
    for name in sorted(counted):
        entry = entries[name]
        if entry["result"] not in (PASS, NOTHING):
            said = entry["message"].replace("|", "\\|").replace("\n", " ")[:200]
            lines.append(f"| `{name}` | {entry['result']} | {said} |")
    return "\n".join(lines)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of a file of results."""
    found: dict[str, dict[str, Any]] = json.loads(path.read_text())["entries"]
    return found


def _apart(name: str) -> bool:
    if name in VECTORS:
        return False
    first = name.partition(".")[0]
    return (
        first in ("fft", "linalg", "special", "masked", *LINALG, *COMPLEX)
        or first.startswith(SPECIAL)
        or first in ("stft", "istft")
        or "sparse" in name
    )
