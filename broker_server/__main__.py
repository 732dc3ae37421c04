"""The server: `python -m broker_server`, and its commands; `--help` lists them.

Exit codes: 0 done · 2 wrong usage or configuration · 3 an input file or folder cannot be used · 4 a port, a folder or
a broker is not available · 5 the federation ended before its time, or the server
refuses a command · 130 stopped (Ctrl-C or SIGTERM); state is kept.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from broker_server import demo
from broker_server.comparison import command as comparison
from broker_server.comparison.comparison import ComparisonImpossible
from broker_server.grouping.search import Mode, SplitImpossible, search
from broker_server.report import energy_command
from broker_server.rounds.worker_pool import ClusterUnavailable, WorkerLost
from broker_server.server import methods_command, operator_command, report_command, settings_command
from broker_server.server.audit import AuditLog
from broker_server.server.brokers import aedes, mosquitto, nats, rabbitmq
from broker_server.server.brokers.access import PASSWORD, access
from broker_server.server.enrol import DEVICE_SETTINGS, EnrolmentRefused, enrol
from broker_server.server.enrolments import Enrolments
from broker_server.server.faults import FAULTS
from broker_server.server.keys import KEY, KeyInvalid, roll
from broker_server.server.serve import serve
from broker_server.server.state import StateFolder, existing
from broker_server.server.state_check import backup, problems
from broker_server.simulation import command as simulation
from broker_server.simulation.errors import SimulationFailed
from broker_server.simulation.rooms import command as rooms
from broker_server.simulation.rooms.building import RoomsInvalid
from devices.cli.log import LogSettings, log_to_stderr
from devices.cli.program import add_completion, called
from devices.cli.run import BAD_INPUT, DONE, FAILED, UNAVAILABLE, USAGE, interrupt_on_terminate
from devices.cli.run import run as run_command
from devices.cli.settings import add_flags, of_flags
from edge_runtime.agent.config import AgentConfig
from edge_runtime.agent.energy_totals import read_journal

_FAULTS = FAULTS | {
    RoomsInvalid: USAGE,
    ComparisonImpossible: BAD_INPUT,
    ClusterUnavailable: UNAVAILABLE,
    SimulationFailed: FAILED,
    WorkerLost: FAILED,
}

LOG_FORM = "%(levelname)s %(name)s: %(message)s"
BROKERS = {"aedes": aedes.write, "mosquitto": mosquitto.write, "nats": nats.write, "rabbitmq": rabbitmq.write}
"""Brokers of others whose configuration is written here."""
OTHER_FILES = {"agent.toml": AgentConfig}
"""Files of settings beside server.toml, for the document."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    options = _parser().parse_args(arguments)
    log_to_stderr(LogSettings(level="warning"), LOG_FORM)
    return run_command(
        partial(options.command, options),
        _FAULTS,
        stopped="stopped; the state is kept: the same command goes on from here",
    )


def _parser(*, is_full: bool = False) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called("broker_server"),
        usage="%(prog)s [--config server.toml] [SETTINGS]\n       %(prog)s COMMAND --help",
        description="Serve a federation: settings are keys of server.toml, and flags go over them.",
        epilog="--help-all shows every setting; `settings` prints the values in use and where each came from.",
        formatter_class=partial(argparse.HelpFormatter, max_help_position=32, width=118),
    )
    add_completion(parser, "broker_server", is_shown=is_full)
    _serve_options(parser, is_full=is_full)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", prog=parser.prog)

    _device_commands(commands)

    _state_commands(commands)

    operator_command.add_commands(commands)

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

    compared = commands.add_parser(
        "compare", help="tables and pictures of what `simulate` has run, or reports side by side"
    )
    comparison.add_arguments(compared)
    compared.set_defaults(command=_compare)

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
    report_command.add_arguments(report)
    report.set_defaults(command=report_command.run)

    known = commands.add_parser("methods", help="list the methods: paper, what is sent, what stays, an example")
    methods_command.add_arguments(known)
    known.set_defaults(command=methods_command.run)

    shown = commands.add_parser("settings", help="print the settings in use, and where each came from")
    settings_command.add_arguments(shown)
    shown.set_defaults(command=lambda options: settings_command.run(options, OTHER_FILES))
    return parser


def _device_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    one = commands.add_parser("enrol", help="write a device's configuration, with its token")
    one.add_argument("device", help="the device's name: letters, digits, . _ -")
    one.add_argument("--out", type=Path, required=True, help="the file to write, for the device: agent.toml")
    one.add_argument("--url", help="where the device finds the broker: mqtt://host:port (default: this machine)")
    one.add_argument(
        "--days",
        type=float,
        default=365.0,
        help="how long the token is good for on a broker of others; on ours until the device has come (default: 365)",
    )
    settings_command.add_state(one, "federation")
    one.add_argument("--force", action="store_true", help="replace the file if it exists")
    add_flags(one, DEVICE_SETTINGS, {"": "settings of the device, in agent.toml"})
    one.set_defaults(command=_enrol)

    revoked = commands.add_parser("revoke", help="let a device in no more, from now on; `enrol` lets it in again")
    revoked.add_argument("device", help="the device's name")
    settings_command.add_state(revoked)
    revoked.set_defaults(command=_revoke)

    fleet = commands.add_parser("devices", help="list the devices that are enrolled")
    settings_command.add_state(fleet)
    fleet.set_defaults(command=_devices)


def _state_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    keys = commands.add_parser("roll-key", help="make a new key that signs commands; devices learn it by the old one")
    settings_command.add_state(keys)
    keys.set_defaults(command=_roll_key)

    made = commands.add_parser("broker-config", help="write a broker's configuration for this federation")
    made.add_argument("kind", choices=sorted(BROKERS), help="the broker")
    made.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where its files go")
    made.add_argument("--listen", type=int, default=8883, metavar="PORT", help="where it listens (default: 8883)")
    made.add_argument("--name", action="append", required=True, help="its host name or address; may be repeated")
    made.add_argument("--cluster", action="store_true", help="each --name is a node of a cluster: rabbitmq and nats")
    settings_command.add_state(made, "federation", "broker.client_certificates")
    made.set_defaults(command=_broker_config)

    checked = commands.add_parser("check", help="look for damage in a state folder, while no server runs")
    settings_command.add_state(checked)
    checked.add_argument("--repair", action="store_true", help="mend what can be")
    checked.set_defaults(command=_check)

    copied = commands.add_parser("backup", help="copy a state folder, while its server runs or not")
    copied.add_argument("out", type=Path, help="the folder to make; it holds the server's keys")
    settings_command.add_state(copied)
    copied.set_defaults(command=_backup)


def _serve_options(parser: argparse.ArgumentParser, *, is_full: bool) -> None:
    parser.set_defaults(command=_serve)
    parser.add_argument("--help-all", action=_HelpAll, nargs=0, help="show every setting, and exit")
    parser.add_argument("--broker", metavar="URL", help="use this broker instead of starting one: mqtt://host:port")
    parser.add_argument(
        "--ca-file",
        dest="broker_ca_file",
        type=Path,
        metavar="FILE",
        help="certificates to trust, with --broker mqtts://…",
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="the server's password for --broker (default: a token signed with its own key)",
    )
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="aggregate rounds on the processors of this Ray cluster: auto, or host:port"
    )
    parser.add_argument("--new", action="store_true", help="begin a new federation; the old one's weights are deleted")
    parser.add_argument("--exit-when-finished", "--once", action="store_true", help="end with the federation")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="where the report goes (default: in the state)")
    parser.add_argument("--quiet", action="store_true", help="lines instead of a live view")
    settings_command.add_settings(parser, shown=True if is_full else None)


class _HelpAll(argparse.Action):
    """Prints the help with every setting."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print and end."""
        _parser(is_full=True).print_help()
        parser.exit()


def _enrol(options: argparse.Namespace) -> int:
    config = settings_command.settings(options).value
    enrol(
        options.device,
        options.out,
        state=config.state,
        federation=config.federation,
        url=options.url,
        days=options.days,
        force=options.force,
        **of_flags(options, DEVICE_SETTINGS),
    )
    print(f"{options.out} is for {options.device} alone: copy it there and run")
    print(f"  python -m edge_runtime run --config {options.out.name}")
    return DONE


def _revoke(options: argparse.Namespace) -> int:
    state = settings_command.settings(options).value.state
    if not Enrolments(state).revoke(options.device):
        raise EnrolmentRefused(f"{options.device[:80]!r} is not enrolled in {state}: `devices` lists those that are")
    AuditLog(state).add("revoked", device=options.device)
    print(f"{options.device} is revoked: the server hears it no more; `enrol` makes a new file for it")
    return DONE


def _devices(options: argparse.Namespace) -> int:
    enrolments = Enrolments(settings_command.settings(options).value.state)
    for name in enrolments.names():
        found = enrolments.find(name)
        state = "its file is damaged: enrol it again"
        if found is not None:
            key = "waits for its first message" if found.key is None else f"key {found.key[:16]}"
            state = "revoked" if found.revoked else f"enrolled, {key}"
        print(f"{name}  {state}")
    return DONE


def _roll_key(options: argparse.Namespace) -> int:
    state = settings_command.settings(options).value.state
    if not (state / KEY).is_file():
        raise KeyInvalid(f"{state} has no {KEY}: start the server once, or enrol a device")
    folder = StateFolder(state)
    with contextlib.closing(folder):
        made = roll(state)
    AuditLog(state).add("configured", why=f"new key {made[:16]}")
    print(f"the key that signs commands is {made[:16]}… from the next start on; devices learn it by the one before")
    return DONE


def _broker_config(options: argparse.Namespace) -> int:
    config = settings_command.settings(options).value
    allowed = access(
        config.state,
        federation=config.federation,
        port=options.listen,
        names=options.name,
        is_cluster=options.cluster,
        client_certificates=config.broker.client_certificates,
    )
    commands = BROKERS[options.kind](options.out.resolve(), allowed)
    AuditLog(config.state).add("configured", why=f"{options.kind} in {options.out}")
    print(
        f"{options.out} has the configuration, with a password for each device that is enrolled; make it again for more"
    )
    for command in commands:
        print(f"  {command}")
    url = f"mqtts://{','.join(f'{node}:{options.listen}' for node in allowed.nodes)}"
    trust = f"--ca-file {config.state / 'tls/ca.pem'} --token-file {config.state / PASSWORD}"
    print(f"  python -m broker_server --broker {url} {trust}")
    return DONE


def _check(options: argparse.Namespace) -> int:
    state = existing(settings_command.settings(options).value.state)
    folder = StateFolder(state)
    with contextlib.closing(folder):
        found = problems(folder, repair=options.repair)
    for sentence in found:
        print(sentence)
    print(f"{state}: {'nothing is wrong' if not found else f'{len(found)} found'}")
    return BAD_INPUT if found and not options.repair else DONE


def _backup(options: argparse.Namespace) -> int:
    backup(settings_command.settings(options).value.state, options.out)
    print(f"{options.out} is a copy; to go on from it, name it with --state")
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


def _compare(options: argparse.Namespace) -> int:
    if options.experiment is None and report_command.are_reports(options.folder):
        return report_command.compare(options.folder, options.out)
    return comparison.run(options)


def _simulate(options: argparse.Namespace) -> int:
    interrupt_on_terminate()
    return simulation.run(options)


def _serve(options: argparse.Namespace) -> int:
    interrupt_on_terminate()
    config = settings_command.settings(options).value
    log_to_stderr(config.log, LOG_FORM)
    served = serve(
        config,
        broker=options.broker,
        ca_file=options.broker_ca_file,
        token=None if options.token_file is None else options.token_file.read_text().strip(),
        is_new=options.new,
        is_once=options.exit_when_finished,
        is_quiet=options.quiet,
        report=options.report,
        ray=options.ray,
    )
    return DONE if served else FAILED


if __name__ == "__main__":
    sys.exit(main())
