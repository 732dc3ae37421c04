"""`python -m export footprint`: what training a bundle takes of a device's memory, and the plan for a budget."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from devices.cli.values import names, size, whole_number
from edge_runtime.wire import bundle_folder
from edge_runtime.wire import manifest as wire
from edge_runtime.wire.budget import MemoryPlan, Prediction, Workload, choose_within, predict

BASE_BYTES = 57_000_000
"""Resident in a device's process before it loads the first graph, as measured on x86-64 with Python 3.11."""
STATE_VECTORS = {"sgd": 1, "adamw": 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `footprint`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--budget", type=size, metavar="SIZE", help="memory of the process, such as 220MiB")
    parser.add_argument("--batch", type=whole_number(1, 65536), default=8, help="samples in a step (default 8)")
    parser.add_argument("--tasks", type=names, help="tasks, with commas (default: all of the bundle)")
    parser.add_argument("--optimizer", choices=tuple(STATE_VECTORS), default="sgd", help="(default sgd)")
    parser.add_argument("--most-frozen", type=int, help="freeze no more than so many stages (default: any number)")
    parser.add_argument(
        "--base",
        type=size,
        default=BASE_BYTES,
        metavar="SIZE",
        help=f"of the device's process before it loads a graph (default {BASE_BYTES / 2**20:.0f}MiB)",
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON, and nothing else")


def run(args: argparse.Namespace) -> None:
    """Print the table, and the plan for the budget. Raises BundleInvalid or BudgetTooSmall."""
    manifest = bundle_folder.read_folder(args.bundle)
    if args.tasks:
        manifest = manifest.group(tuple(sorted(args.tasks)), manifest.weights)
    work = Workload(batch=args.batch, base_bytes=args.base, state_vectors=STATE_VECTORS[args.optimizer])
    rows = {name: [(plan, predict(manifest, plan, work)) for plan in plans] for name, plans in _shown(manifest, work)}
    if not args.json:
        _print_table(rows, work)
    chosen = None
    if args.budget is not None:
        chosen = choose_within(manifest, args.budget, work, most_frozen=args.most_frozen)
    if args.json:
        found = [_facts(plan, predicted) for column in rows.values() for plan, predicted in column]
        plan = None if chosen is None else _facts(chosen, predict(manifest, chosen, work))
        print(msgspec.json.encode({"work": work, "plans": found, "budget": args.budget, "plan": plan}).decode())
    elif chosen is not None:
        peak = predict(manifest, chosen, work).peak
        print(f"plan for {_mib(args.budget)} MiB: {chosen}; {_mib(peak)} MiB")


def _shown(manifest: wire.Manifest, work: Workload) -> Iterator[tuple[str, list[MemoryPlan]]]:
    """Yield the columns of the table by name."""
    stages, fixed = len(manifest.stages), manifest.fixed_stages
    none = (False,) * stages
    micro_batches = sorted({-(-work.batch // 2**i) for i in range(17)}, reverse=True)
    ways = {
        "all kept": (none[:fixed] + (True,) * (stages - fixed), fixed),
        "recomputed": (none, fixed),
        "half frozen": (none, max(fixed, stages // 2)),
        "all frozen": (none, stages),
    }
    for name, (saved, frozen) in ways.items():
        yield name, [MemoryPlan(micro_batch=batch, saved=saved, frozen=frozen) for batch in micro_batches]


def _facts(plan: MemoryPlan, predicted: Prediction) -> dict[str, Any]:
    parts = msgspec.to_builtins(predicted)
    return {**msgspec.to_builtins(plan), "peak_bytes": predicted.peak, "arena_bytes": predicted.arena_bytes} | {
        f"{name}_bytes": value for name, value in parts.items()
    }


def _print_table(rows: dict[str, list[tuple[MemoryPlan, Prediction]]], work: Workload) -> None:
    from rich.console import Console  # the environment of onnxruntime-training, which runs `split`, has none
    from rich.table import Table

    table = Table(title=f"Peak memory in MiB, steps of {work.batch} samples, {_mib(work.base_bytes)} MiB before")
    table.add_column("micro-batch", justify="right")
    for name in rows:
        table.add_column(name, justify="right")
    for line in zip(*rows.values(), strict=True):
        table.add_row(str(line[0][0].micro_batch), *(_mib(predicted.peak) for _, predicted in line))
    Console().print(table)


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f}"
