"""The server: `python -m broker_server`, and its commands; `--help` lists them.

Exit codes: 0 done · 2 wrong usage or configuration · 3 an input file or folder cannot be used · 4 a port, a folder or
a broker is not available · 5 the federation ended before its time · 130 stopped (Ctrl-C or SIGTERM); state is kept.
"""

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args, get_origin

import msgspec

from broker_server import demo
from broker_server.comparison import command as comparison
from broker_server.comparison.comparison import ComparisonImpossible
from broker_server.grouping.search import Mode, SplitImpossible, search
from broker_server.mqtt.broker import BrokerNotStarted
from broker_server.report import energy_command
from broker_server.report.build import ReportImpossible
from broker_server.rounds.federation import FederationChanged
from broker_server.rounds.journal import JournalInvalid
from broker_server.server.config import ConfigInvalid, ServerConfig
from broker_server.server.config_file import PATHS, read
from broker_server.server.dispatcher import BrokerRefused
from broker_server.server.enrol import EnrolmentRefused, enrol
from broker_server.server.keys import KeyInvalid
from broker_server.server.serve import serve, write_report
from broker_server.server.state import StateBusy, StateFolder
from broker_server.simulation import command as simulation
from broker_server.simulation.errors import SimulationFailed
from broker_server.simulation.rooms import command as rooms
from broker_server.simulation.rooms.building import RoomsInvalid
from broker_server.simulation.worker_pool import ClusterUnavailable, WorkerLost
from devices.cli import values
from devices.cli.run import BAD_INPUT, DONE, FAILED, UNAVAILABLE, USAGE, interrupt_on_terminate
from devices.cli.run import run as run_command
from edge_runtime.agent.energy_totals import read_journal
from edge_runtime.wire.errors import BundleInvalid, TensorsInvalid, TokenRefused
from edge_runtime.wire.mqtt import LinkInvalid

_FAULTS: dict[type[Exception], int] = {
    ConfigInvalid: USAGE,
    EnrolmentRefused: USAGE,
    FederationChanged: USAGE,
    TokenRefused: USAGE,
    LinkInvalid: USAGE,
    KeyInvalid: BAD_INPUT,
    JournalInvalid: BAD_INPUT,
    BundleInvalid: BAD_INPUT,
    TensorsInvalid: BAD_INPUT,
    SplitImpossible: BAD_INPUT,
    ReportImpossible: BAD_INPUT,
    RoomsInvalid: USAGE,
    ComparisonImpossible: BAD_INPUT,
    StateBusy: UNAVAILABLE,
    BrokerNotStarted: UNAVAILABLE,
    BrokerRefused: UNAVAILABLE,
    ClusterUnavailable: UNAVAILABLE,
    SimulationFailed: FAILED,
    WorkerLost: FAILED,
    OSError: UNAVAILABLE,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    return run_command(
        partial(options.command, options),
        _FAULTS,
        stopped="stopped; the state is kept: the same command goes on from here",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m broker_server", description=(__doc__ or "").partition("\n")[0])
    _serve_options(parser)
    commands = parser.add_subparsers(title="commands")

    one = commands.add_parser("enrol", help="write a device's configuration, with its token")
    one.add_argument("device", help="the device's name: letters, digits, . _ -")
    one.add_argument("--out", type=Path, required=True, help="the file to write, for the device: agent.toml")
    one.add_argument("--url", help="where the device finds the broker: mqtt://host:port (default: this machine)")
    one.add_argument("--data", default="data", help="the device's data set, relative to the file (default: data)")
    one.add_argument("--days", type=float, default=365.0, help="how long the token is good for (default: 365)")
    one.add_argument("--threads", type=int, help="threads that the device computes with (default: it decides)")
    one.add_argument("--ca-file", help="the device's file of certificates to trust, for mqtts://, relative to the file")
    one.add_argument(
        "--engine",
        choices=("portable", "auto", "official"),
        help="what the device trains with: official is onnxruntime-training alone, auto where it can (portable)",
    )
    one.add_argument("--meter", help="what measures the device's energy: auto, none or a source (default: auto)")
    one.add_argument("--state", type=Path, default=None, help="the server's state folder")
    one.add_argument("--federation", default=None, help="the federation's name (default: home)")
    one.add_argument("--config", type=Path, default=None, help="server.toml")
    one.add_argument("--force", action="store_true", help="replace the file if it exists")
    one.set_defaults(command=_enrol)

    split = commands.add_parser("split", help="find the best groups for a table of affinities")
    split.add_argument("--affinity", type=Path, required=True, help='JSON: {"tasks": […], "values": [[…]]}, i→j')
    split.add_argument("--groups", type=int, required=True)
    mode = split.add_mutually_exclusive_group()
    mode.add_argument("--at-most", action="store_true", help="that many groups or fewer")
    mode.add_argument("--overlap", action="store_true", help="a task may be in several groups")
    split.add_argument("--json", action="store_true", help="print JSON")
    split.set_defaults(command=_split)

    show = commands.add_parser("demo", help="server and four devices on this machine, from rendered rooms to a report")
    demo.add_arguments(show)
    show.set_defaults(command=demo.run)

    simulated = commands.add_parser("simulate", help="whole federations on this machine, by experiment.toml")
    simulation.add_arguments(simulated)
    simulated.set_defaults(command=_simulate)

    compared = commands.add_parser("compare", help="tables and pictures of what `simulate` has run")
    comparison.add_arguments(compared)
    compared.set_defaults(command=comparison.run)

    drawn = commands.add_parser(
        "rooms", help="render indoor scenes with labels for nine tasks, in Taskonomy's form, for trials"
    )
    rooms.add_arguments(drawn)
    drawn.set_defaults(command=rooms.run)

    costs = commands.add_parser(
        "energy-report", help="joules of a federation by group, phase and task, and for what was gained"
    )
    energy_command.add_arguments(costs)
    costs.set_defaults(command=lambda options: energy_command.run(options, read_journal))

    report = commands.add_parser("report", help="write the report of a federation: report.json, report.html, models/")
    report.add_argument("--state", type=Path, default=None, help="the server's state folder")
    report.add_argument("--config", type=Path, default=None, help="server.toml")
    report.add_argument("--out", type=Path, default=None, help="the folder to write (default: report in the state)")
    report.set_defaults(command=_report)
    return parser


def _serve_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_serve)
    parser.add_argument("--config", type=Path, help="server.toml; a flag goes over its key")
    parser.add_argument("--broker", metavar="URL", help="use this broker instead of starting one: mqtt://host:port")
    parser.add_argument("--ca-file", type=Path, help="certificates to trust, with --broker mqtts://…")
    parser.add_argument("--token", help="the server's token for --broker (default: one signed with its own key)")
    parser.add_argument("--new", action="store_true", help="begin a new federation; what the old one learnt is deleted")
    parser.add_argument("--exit-when-finished", "--once", action="store_true", help="end with the federation")
    parser.add_argument("--report", type=Path, help="where the report goes (default: report in the state folder)")
    parser.add_argument("--quiet", action="store_true", help="lines instead of a live view")
    settings = parser.add_argument_group("settings, also keys of server.toml")
    for field in msgspec.structs.fields(ServerConfig):
        flag = f"--{field.name.replace('_', '-')}"
        default = "" if field.default in {None, ()} else f"(default: {field.default})"
        if field.name == "tasks":
            settings.add_argument(flag, type=values.names, help="a,b,… (default: all)")
        elif field.name == "fixed_groups":
            settings.add_argument(flag, type=values.groups, help="a,b;c;… (the strategy `fixed` alone)")
        elif field.name == "task_weights":
            settings.add_argument(flag, type=values.by_task, help="a=2,b=0.5,… (default: 1 for each)")
        elif isinstance(field.default, bool):
            settings.add_argument(flag, action="store_true", default=None)
        elif get_origin(field.type) is Literal:
            settings.add_argument(flag, choices=get_args(field.type), default=None, help=default)
        else:
            kind = Path if field.name in PATHS else type(field.default)
            settings.add_argument(flag, type=kind, default=None, help=default)


def _settings(options: argparse.Namespace) -> ServerConfig:
    names = {field.name for field in msgspec.structs.fields(ServerConfig)}
    return read(options.config, **{name: value for name, value in vars(options).items() if name in names})


def _enrol(options: argparse.Namespace) -> int:
    config = read(options.config, state=options.state, federation=options.federation)
    enrol(
        options.device,
        options.out,
        state=config.state,
        federation=config.federation,
        url=options.url,
        data=options.data,
        days=options.days,
        threads=options.threads,
        ca_file=options.ca_file,
        engine=options.engine,
        meter=options.meter,
        force=options.force,
    )
    print(f"{options.out} is for {options.device} alone: copy it there and run")
    print(f"  python -m edge_runtime run --config {options.out.name}")
    return DONE


class _AffinityFile(msgspec.Struct, frozen=True):
    tasks: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


def _split(options: argparse.Namespace) -> int:
    try:
        given = msgspec.json.decode(options.affinity.read_bytes(), type=_AffinityFile)
    except OSError as exc:
        raise SplitImpossible(f"{options.affinity} cannot be read: {exc.strerror}") from exc
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise SplitImpossible(f'{options.affinity} is not {{"tasks": […], "values": [[…]]}}: {exc}') from exc
    mode: Mode = "at_most" if options.at_most else "overlap" if options.overlap else "exactly"
    found = search(given.tasks, given.values, options.groups, mode)
    if options.json:
        print(json.dumps({"groups": found.groups, "score": found.score, "mode": found.mode}))
    else:
        print("  ".join("+".join(group) for group in found.groups))
        print(f"score {found.score:.5f}, {mode.replace('_', ' ')} {options.groups} groups")
    return DONE


def _simulate(options: argparse.Namespace) -> int:
    interrupt_on_terminate()
    return simulation.run(options)


def _report(options: argparse.Namespace) -> int:
    config = read(options.config, state=options.state)
    if not config.state.is_dir():
        raise ReportImpossible(f"{config.state} is not a state folder")
    folder = StateFolder(config.state)
    with contextlib.closing(folder):
        journal, blobs = folder.open()
        with contextlib.closing(journal):
            print(write_report(options.out or config.state / "report", journal, blobs))
    return DONE


def _serve(options: argparse.Namespace) -> int:
    interrupt_on_terminate()
    served = serve(
        _settings(options),
        broker=options.broker,
        ca_file=options.ca_file,
        token=options.token,
        is_new=options.new,
        is_once=options.exit_when_finished,
        is_quiet=options.quiet,
        report=options.report,
    )
    return DONE if served else FAILED


if __name__ == "__main__":
    sys.exit(main())
