"""`python -m broker_server rooms`: render indoor scenes with labels for nine tasks, in Taskonomy's form."""

import argparse
from pathlib import Path

import msgspec

from broker_server.simulation.rooms.building import Settings, draw_buildings
from edge_runtime.datasets.progress import progress


def add_arguments(rooms: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    rooms.add_argument("--out", type=Path, required=True, help="folder to write a folder for each building in")
    rooms.add_argument("--buildings", type=int, default=4, help="buildings, each of its own style (default 4)")
    rooms.add_argument("--images", type=int, default=200, help="views of each building (default 200)")
    rooms.add_argument("--size", type=int, default=64, help="pixels a side (default 64)")
    rooms.add_argument("--seed", type=int, default=0, help="the same seed draws the same rooms (default 0)")
    rooms.add_argument("--processes", type=int, choices=(1, 2), default=2, help="processes to draw with (default 2)")
    rooms.add_argument("--json", action="store_true", help="print a summary as JSON, and nothing else")


def run(args: argparse.Namespace) -> int:
    """Do what `add_arguments` parsed; the exit code. Raises RoomsInvalid, OSError."""
    settings = Settings(buildings=args.buildings, images=args.images, size=args.size, seed=args.seed)
    with progress(quiet=args.json) as bar:
        drawn = draw_buildings(
            args.out,
            settings,
            processes=args.processes,
            report=lambda done, total: bar.show("rooms", done, total),
        )
    if args.json:
        summary = {"folders": [str(folder) for folder in drawn.folders], "images": args.images, "new": drawn.new}
        print(msgspec.json.encode(summary).decode())
    else:
        there = args.buildings * args.images - drawn.new
        print(f"{drawn.new} views drawn, {there} were there: {args.buildings} buildings in {args.out}")
    return 0
