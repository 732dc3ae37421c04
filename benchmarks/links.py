"""The time of a round on links of several speeds, as a table: of an experiment whose methods have boards of their own.

    python -m benchmarks.links docs/experiments/fedbone-links.toml runs/fedbone-links \\
        --out benchmarks/results/fedbone-links/links.md

The last round of training of each method's first seed, which has no graphs to download. Methods are named by what they
are and, last, by their link.
"""

import argparse
from pathlib import Path

import msgspec

from broker_server.comparison.markdown import table
from broker_server.comparison.results import read_costs
from broker_server.report.build import REPORT, Report, RoundReport
from broker_server.simulation.experiment import Experiment, read_experiment
from broker_server.simulation.fleet import Board, WorkCosts
from broker_server.simulation.output import RUNS, SUMMARY
from broker_server.simulation.summary import Summary
from edge_runtime.wire.files import write_atomic

HEAD = (
    "link",
    "the encoder",
    "s a round (simulated)",
    "MB up",
    "MB down",
    "J a device (by rule)",
    "× time",
    "× energy",
)


def last_rounds(out: Path, seed: int) -> dict[str, RoundReport]:
    """The last round of each method that has finished."""
    found = {}
    for path in sorted((out / RUNS).glob(f"*/{seed}/{SUMMARY}")):
        summary = msgspec.json.decode(path.read_bytes(), type=Summary)
        report = msgspec.json.decode((path.parent / REPORT).read_bytes(), type=Report)
        found[summary.method] = report.rounds[-1]
    return found


def tables(experiment: Experiment, out: Path) -> str:
    """The table, and what its times are reckoned from."""
    rounds = last_rounds(out, experiment.seeds[0])
    rows: list[tuple[str, ...]] = []
    first: tuple[str, float, float] | None = None
    for method in experiment.methods:
        if method not in rounds:
            continue
        how, _, _ = method.rpartition(" ")
        found, link = rounds[method], _link(experiment.fleet_of(method).board)
        energy_j = (found.energy.energy_j or 0.0) / len(found.clients)
        if first is None or first[0] != link:
            first = (link, found.wall_s, energy_j)
        rows.append(
            (
                link,
                how,
                f"{found.wall_s:.2f}",
                *("–" if size is None else f"{size / 1e6:.2f}" for size in (found.bytes_up, found.bytes_down)),
                f"{energy_j:.1f}",
                f"{found.wall_s / first[1]:.2f}",
                f"{energy_j / first[2]:.2f}",
            )
        )
    costs = read_costs(out)
    return f"{table(HEAD, rows)}\n\n{'' if costs is None else _reckoned(experiment, costs)}"


def _link(board: Board) -> str:
    return f"{8 * board.up_bytes_per_s / 1e6:g} Mbit/s, {1e3 * board.latency_s:g} ms"


def _reckoned(experiment: Experiment, costs: WorkCosts) -> str:
    fleet, stem_s = experiment.fleet, costs.train_stem_s or 0.0
    heads_s = list(costs.train_head_s.values())
    return (
        f"A sample costs {1e3 * stem_s:.2f} ms in the stem, {1e3 * (costs.train_s - stem_s):.2f} ms in the encoder and "
        f"{1e3 * min(heads_s):.2f} to {1e3 * max(heads_s):.2f} ms in a head, measured as CPU time on one core of the "
        f"simulating machine; boards have {fleet.board.speed:g} of its speed, the encoder server "
        f"{fleet.encoder_server.speed:g}. Joules are modelled: {fleet.board.busy_w:g} W at work, "
        f"{fleet.board.idle_w:g} W waiting; the encoder server's are not in them.\n"
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("experiment", type=Path, help="experiment.toml")
    parser.add_argument("folder", type=Path, help="the folder that `simulate --out` has filled")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    options = parser.parse_args()
    made = tables(read_experiment(options.experiment), options.folder)
    print(made)
    if options.out is not None:
        write_atomic(options.out, f"# {options.experiment.stem}\n\n{made}".encode())


if __name__ == "__main__":
    main()
