"""`make bench-server`: what one server bears, by the real protocol with many devices that train nothing.

Devices are those of light_devices.py, all in one process beside the server, which is a process as in the field: on its
own broker, and on Mosquitto. Each case is one federation: rounds of training, and one of measuring. CPU is the server
process's, of the training rounds alone and with its broker where that is its own; ingest is the updates' bytes over the
time from the first device's announcement to the last one's acknowledgement. In the same run the same bytes are written
as files, one after the other, with one fsync each.
"""

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.light_devices import Enrolled, Fleet, run
from benchmarks.measure import PYTHON, ROOT, WORK, bundle, write, write_section
from benchmarks.split import started
from broker_server.server.enrolments import Enrolments
from broker_server.server.keys import load_or_create, signing_key
from edge_runtime.wire import tokens
from edge_runtime.wire.bundle_folder import read_folder
from edge_runtime.wire.messages import Plan
from edge_runtime.wire.signing import public_hex

DOCUMENT = ROOT / "docs" / "link.md"
HEADING = "## Measured: `make bench-server`"
SOURCE = ROOT / "benchmarks" / "models" / "wide.py"
BUILDS = {1: "build", 10: "build_10", 50: "build_50"}
DEVICES, BROKERS = (10, 100, 1000), ("embedded", "mosquitto")
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
COLUMNS = (
    "broker", "devices", "MB", "updates", "sent", "round, s", "CPU, ms/MB", "broker's", "memory, MB (allowed)",
    "ingest, MB/s", "disk", "load",
)  # fmt: skip
ROUNDS = 2
MB = 1_000_000
LIMIT_S = 600.0
DISK_BYTES = 500 * MB
"""So much is written, at the most, to see how fast the disk is."""
SPARE_BYTES = 4 << 30
"""What of the disk is left alone."""
MOST_BYTES = 1_000 * MB
"""What all devices of a case send in a round, at the most, so that a run ends: more is left out and said so."""


@dataclass
class Watched:
    """A process that is watched: CPU seconds when a round begins, and the most memory."""

    pid: int
    peak_rss_bytes: int = 0
    at_s: dict[int, float] = field(default_factory=dict)
    is_over: threading.Event = field(default_factory=threading.Event)

    @property
    def cpu_s(self) -> float:
        """Return its CPU seconds so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def mark(self, number: int) -> None:
        """Keep the CPU seconds at the begin of a round."""
        self.at_s[number] = self.cpu_s

    def watch(self) -> None:
        """Look at its memory until it is over."""
        while not self.is_over.wait(0.2):
            with contextlib.suppress(OSError):
                found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
                if found is not None:  # a process that has ended has none
                    self.peak_rss_bytes = 1024 * int(found[1])


@contextlib.contextmanager
def watched(pid: int) -> Iterator[Watched]:
    """Watch a process until the end of the block."""
    one = Watched(pid)
    thread = threading.Thread(target=one.watch, daemon=True)
    thread.start()
    try:
        yield one
    finally:
        one.is_over.set()
        thread.join()


def enrolled(state: Path, number: int) -> list[Enrolled]:
    """Enrol so many devices, each with a code and a token."""
    key, enrolments, made = load_or_create(state), Enrolments(state), []
    for index in range(number):
        name = f"light{index:04}"
        one = enrolments.enrol(name)
        token = tokens.issue(
            key, name=name, federation="home", role="device", lifetime_s=86_400, generation=one.generation
        )
        made.append(Enrolled(name, token, bytes.fromhex(one.code)))
    return made


def measure(kind: str, devices: int, megabytes: int, folder: Path, port: int) -> dict[str, Any]:
    """Run one federation; return what it took."""
    root = WORK / f"server-{kind}-{devices}-{megabytes}"
    shutil.rmtree(root, ignore_errors=True)
    state = root / "state"
    state.mkdir(parents=True)
    fleet_of = enrolled(state, devices)
    manifest = read_folder(folder)
    settings = {
        "state": state, "bundle": folder, "host": "127.0.0.1", "port": port, "strategy": "all_in_one",
        "merged_rounds": 1, "split_rounds": ROUNDS - 1, "min_devices": devices, "quorum": devices,
        "round_deadline_s": LIMIT_S, "clients": devices + 8,
    }  # fmt: skip
    flags = [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    command = [PYTHON, "-m", "broker_server", *flags, "--exit-when-finished", "--quiet"]
    with contextlib.ExitStack() as stack:
        broker = None
        if kind == "mosquitto":
            conf = root / "mosquitto.conf"
            conf.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_inflight_messages 20\n")
            log = stack.enter_context((root / "mosquitto.log").open("wb"))
            broker = stack.enter_context(started([str(MOSQUITTO), "-c", str(conf)], log))
            command += ["--broker", f"mqtt://127.0.0.1:{port}"]
        log = stack.enter_context((root / "server.log").open("wb"))
        serving = stack.enter_context(started(command, log))
        while "a device joins" not in (root / "server.log").read_text():
            time.sleep(0.1)
            assert serving.poll() is None, (root / "server.log").read_text()
        server = stack.enter_context(watched(serving.pid))
        beside = stack.enter_context(watched(broker.pid)) if broker is not None else None

        def on_plan(plan: Plan) -> None:
            server.mark(plan.round)
            if beside is not None:
                beside.mark(plan.round)

        fleet = Fleet(
            host="127.0.0.1",
            port=port,
            federation="home",
            server_key=bytes.fromhex(public_hex(signing_key(state))),
            tasks=tuple(task.name for task in manifest.tasks),
            on_plan=on_plan,
        )
        began_s, load = time.monotonic(), os.getloadavg()[0]
        asyncio.run(asyncio.wait_for(run(fleet, fleet_of), LIMIT_S))
        took_s = time.monotonic() - began_s
        serving.wait(60)
    result = _result(fleet, server, beside, devices, manifest.weights.size_bytes)
    shutil.rmtree(root)
    return {"broker": kind, "devices": devices, "megabytes": megabytes, "load": load, "wall_s": took_s, **result}


def _result(fleet: Fleet, server: Watched, broker: Watched | None, devices: int, size: int) -> dict[str, Any]:
    trained = sorted(fleet.began_s)
    after = {number: min(other for other in fleet.rounds if other > number) for number in trained}
    updates = sum(len(fleet.accepted_s.get(number, [])) for number in trained)

    def cpu_s(of: Watched) -> float:
        return sum(of.at_s[after[number]] - of.at_s[number] for number in trained)

    ingest = [size * devices / (max(fleet.accepted_s[number]) - fleet.first_update_s[number]) for number in trained]
    rounds_s = [max(fleet.accepted_s[number]) - fleet.began_s[number] for number in trained]
    return {
        "updates": updates,
        "wanted": devices * len(trained),
        "faults": dict(fleet.counts),
        "sent_ratio": (fleet.down_bytes + fleet.up_bytes) / (fleet.needed_down_bytes + fleet.needed_up_bytes),
        "round_s": max(rounds_s),
        "server_cpu_ms_per_mb": 1e3 * cpu_s(server) / updates / (size / MB),
        "broker_cpu_ms_per_mb": None if broker is None else 1e3 * cpu_s(broker) / updates / (size / MB),
        "peak_rss_bytes": server.peak_rss_bytes,
        "rss_allowed_bytes": 150 * MB + 2 * size + 50_000 * devices,
        "ingest_bytes_per_s": max(ingest),
    }


def disk_bytes_per_s(size: int, most: int) -> float:
    """Return how fast files of this size are written here, one after the other, with one fsync each."""
    root = WORK / "server-disk"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    data, number = os.urandom(size), max(3, min(most, DISK_BYTES // size))
    began_s = time.monotonic()
    for index in range(number):
        with (root / str(index)).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    took_s = time.monotonic() - began_s
    shutil.rmtree(root)
    return number * size / took_s


def why_not(kind: str, devices: int, megabytes: int) -> str | None:
    """Return why a case does not fit this machine; None if it does."""
    if kind == "mosquitto" and MOSQUITTO is None:
        return "Mosquitto is not installed"
    sent = devices * megabytes * MB
    if shutil.disk_usage(WORK).free - sent < SPARE_BYTES:
        return f"{sent / 1e9:g} GB a round do not fit the disk"
    if sent > MOST_BYTES:
        return f"{sent / 1e9:g} GB a round would take too long here"
    return None


def document(result: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        f"Each case is a federation of {ROUNDS} rounds of training and one of measuring, without TLS; devices train",
        "nothing and run in one process beside the server, on the same cores. *Sent* is bytes of files that crossed in",
        "relation to those needed, both ways; *CPU* is the server's for an update of 1 MB and the download before it,",
        "with its own broker in it; *disk* is how fast the same files are written with one fsync each, and *load* the",
        "machine's load before the case. Aimed at are 1.05 sent, 4 ms/MB and 0.6 of the disk.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for row in result["cases"]:
        broker = "" if row["broker_cpu_ms_per_mb"] is None else f"{row['broker_cpu_ms_per_mb']:.1f}"
        cells = (
            row["broker"],
            row["devices"],
            row["megabytes"],
            f"{row['updates']} of {row['wanted']}",
            f"{row['sent_ratio']:.3f}",
            f"{row['round_s']:.1f}",
            f"{row['server_cpu_ms_per_mb']:.1f}",
            broker,
            f"{row['peak_rss_bytes'] / MB:.0f} ({row['rss_allowed_bytes'] / MB:.0f})",
            f"{row['ingest_bytes_per_s'] / MB:.0f}",
            f"{row['disk_bytes_per_s'] / MB:.0f}",
            f"{row['load']:.1f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    if result["left_out"]:
        lines += ["", "Left out on this machine: " + "; ".join(result["left_out"]) + "."]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, action="append", help="so many devices alone; may be repeated")
    parser.add_argument("--megabytes", type=int, action="append", choices=sorted(BUILDS), help="this model alone")
    parser.add_argument("--broker", action="append", choices=BROKERS, help="this broker alone")
    parser.add_argument("--port", type=int, default=18_830, help="where brokers listen (default: 18830)")
    args = parser.parse_args(arguments)
    WORK.mkdir(parents=True, exist_ok=True)
    cases, left_out = [], []
    for megabytes in args.megabytes or BUILDS:
        folder, _ = bundle(f"{SOURCE}:{BUILDS[megabytes]}")
        for devices in args.devices or DEVICES:
            for kind in args.broker or BROKERS:
                if why := why_not(kind, devices, megabytes):
                    left_out.append(f"{devices} × {megabytes} MB on {kind} ({why})")
                    continue
                try:
                    row = measure(kind, devices, megabytes, folder, args.port)
                except (ConnectionError, TimeoutError) as exc:
                    left_out.append(f"{devices} × {megabytes} MB on {kind} (did not end: {exc or 'too slow'})")
                    print(left_out[-1], flush=True)
                    continue
                row["disk_bytes_per_s"] = disk_bytes_per_s(read_folder(folder).weights.size_bytes, devices)
                cases.append(row)
                print(row, flush=True)
    result = {"cases": cases, "left_out": left_out}
    if not (args.devices or args.megabytes or args.broker):
        write("server", "make bench-server", result)
        write_section(DOCUMENT, HEADING, document(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
