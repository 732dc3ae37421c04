"""`python -m broker_server simulate`: run an experiment."""

import argparse
import contextlib
import os
import sys
from pathlib import Path

import msgspec

from broker_server.rounds.worker_pool import local_workers, ray_workers
from broker_server.simulation.experiment import Experiment, read_experiment
from broker_server.simulation.output import OUTLINE, SUMMARY, write_json
from broker_server.simulation.show import RunBars, RunLines
from devices.cli import values
from devices.cli.settings import ConfigInvalid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `simulate`."""
    parser.add_argument("experiment", type=Path, help="experiment.toml")
    parser.add_argument("--out", type=Path, required=True, help="folder for all results; runs that are there go on")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="worker processes (default: %(default)s)"
    )
    parser.add_argument("--ray", metavar="ADDRESS", help="work on a Ray cluster instead: auto, or host:port")
    parser.add_argument("--methods", type=values.names, help="a,b,…: these of the experiment's alone")
    parser.add_argument("--seeds", type=values.numbers, help="0,1,…: these instead of the experiment's")
    parser.add_argument("--devices", type=values.names, help="a,b,…: these data sets instead of the experiment's")
    parser.add_argument("--quiet", action="store_true", help="lines instead of bars")


def run(args: argparse.Namespace) -> int:
    """Run an experiment. Raises what run_grid and the workers raise."""
    from broker_server.simulation.grid import run_grid  # brings the engine

    whole = read_experiment(args.experiment)
    experiment = _chosen(whole, args)
    with contextlib.ExitStack() as stack:
        show: RunBars | RunLines = (
            RunLines() if args.quiet or not sys.stderr.isatty() else stack.enter_context(RunBars())
        )
        out = args.out.resolve()  # workers elsewhere have another working folder
        write_json(out / OUTLINE, whole.outline(args.experiment.stem))
        pool = stack.enter_context(ray_workers(args.ray) if args.ray else local_workers(max(1, args.workers)))
        run_grid(experiment, out, pool.executor, show, at_once=pool.processors + 1)
    print(args.out / SUMMARY)
    return 0


def _chosen(experiment: Experiment, args: argparse.Namespace) -> Experiment:
    if args.seeds is not None:
        experiment = msgspec.structs.replace(experiment, seeds=args.seeds)
    if args.devices is not None:
        experiment = msgspec.structs.replace(experiment, devices=args.devices)
    if args.methods is not None:
        if odd := [name for name in args.methods if name not in experiment.methods]:
            raise ConfigInvalid(f"--methods: the experiment has no {odd[0]!r}; it has {', '.join(experiment.methods)}")
        chosen = {name: experiment.methods[name] for name in args.methods}
        experiment = msgspec.structs.replace(experiment, methods=chosen)
    return experiment
