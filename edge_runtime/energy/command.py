"""`python -m edge_runtime energy [record|calibrate]`: the energy of a command or of the idle machine, and recordings.

Exit codes: with a command its own, 128 + n if signal n ended it, 127 if it was not found and 126 if it could not be
run; without one 0, also where nothing measures: the energy is then null and the reasons are given. 2 for a wrong
command line, 130 after Ctrl-C while the idle machine is measured. `record` and `calibrate` end with 0, 2, or 3 for a
board without a meter and a file that cannot be used.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from devices.cli.run import BAD_INPUT, DONE, USAGE
from devices.cli.run import run as run_command
from devices.health import Health, HealthProbe
from devices.profile import ProfileInvalid
from edge_runtime.energy.measurement import measure, words
from edge_runtime.energy.meter import MeterUnusable, Open, opener
from edge_runtime.energy.meter import add_arguments as add_meter_arguments
from edge_runtime.energy.recording import command as recording
from edge_runtime.energy.recording.calibration import CalibrationInvalid
from edge_runtime.energy.recording.plots import PlotImpossible
from edge_runtime.energy.recording.sheet import SheetInvalid

MAX_SECONDS = 86_400.0

_FAULTS: dict[type[Exception], int] = {
    ProfileInvalid: USAGE,
    CalibrationInvalid: USAGE,
    SheetInvalid: USAGE,
    MeterUnusable: BAD_INPUT,
    PlotImpossible: BAD_INPUT,
    OSError: BAD_INPUT,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `energy`; the command behind `--` is taken off before they are parsed (see `split`)."""
    parser.set_defaults(energy_command=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    record = commands.add_parser("record", help="record a board's power into a CSV file")
    recording.add_record_arguments(record)
    record.set_defaults(energy_command=recording.run_record)
    calibrate = commands.add_parser("calibrate", help="fit a meter's readings to known loads")
    recording.add_calibrate_arguments(calibrate)
    calibrate.set_defaults(energy_command=lambda args, _open: recording.run_calibrate(args))
    parser.usage = "%(prog)s [--source SOURCE] [--seconds S] [--json] [-- COMMAND …]"
    parser.epilog = __doc__.partition("\n\n")[2]
    parser.add_argument(
        "--source",
        default="auto",
        help="auto (default), none, rapl, hwmon[:CHIP], iio, pmic, i2c:ina226@0x40,bus=1,shunt=0.1, "
        "model:IDLE_W,FULL_W[,process] (estimated), or mqtt://HOST[:PORT]/TOPIC[?every=S][#JSON.PATH]",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        metavar="S",
        help="how long the idle machine is measured: alone, or before the command as its baseline (default 10)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON, and nothing else: the command's own output goes to stderr"
    )
    add_meter_arguments(parser)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before the first `--`, and the command after it."""
    at = list(arguments).index("--") if "--" in arguments else len(arguments)
    return list(arguments[:at]), list(arguments[at + 1 :])


def run(
    args: argparse.Namespace,
    command: Sequence[str],
    open_: Open | None = None,
    health: Callable[[], Health] | None = None,
) -> int:
    """Run `energy` or its command and return the exit code; tests give a meter and a board's health."""
    open_ = open_ or opener(args)
    if args.energy_command is not None:
        return run_command(partial(args.energy_command, args, open_), _FAULTS)
    return run_command(partial(_measure, args, command, open_, health or HealthProbe(args.root)), _FAULTS)


def _measure(args: argparse.Namespace, command: Sequence[str], open_: Open, health: Callable[[], Health]) -> int:
    recording.check_seconds("--seconds", args.seconds, 0.0 if command else 0.1, MAX_SECONDS)
    found = measure(command, args.seconds, open_(args.source), health, quiet=args.json)
    if args.json:
        print(msgspec.json.encode(found).decode(), flush=True)
    else:
        print(words(found), file=sys.stderr if command else sys.stdout, flush=True)
    return DONE if found.exit_code is None else found.exit_code
