"""`python -m broker_server demo`: the whole thing on one machine, as the processes that would run in the field.

Renders rooms for four buildings, compiles a bundle, starts the server and a device process for each building, waits
until the federation has finished, and writes report.json, report.html and models/. Running it again goes on where it
was stopped, or with --fresh starts again. Ctrl-C stops every process cleanly.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from broker_server.report import build as reports
from broker_server.report.summary import happened, worth
from broker_server.server.enrol import enrol
from broker_server.server.methods_command import STRATEGIES
from broker_server.server.state import URL, StateFolder, read_url
from devices.cli.run import DONE, FAILED, interrupt_on_terminate
from devices.cli.run import run as run_command
from edge_runtime.wire.names import group_id

METER = "model:0,15,process"
"""An estimate, which the report says of it: what each device's process adds to a small computer of 15 W at full work. A
meter of the machine would count all of it for each device."""
START_S = 60.0
STOP_S = 20.0
POLL_S = 0.2
SHOWN = 3
"""Buildings of which predictions are shown."""


LINEAR_DATA = {
    "mocha": "related",
    "dmtrl": "related",
    "proximal_mtl": "values",
    "amtl": "values",
    "online_primal_dual": "related",
    "mixed_effect": "values",
}
"""The data that is made for strategies of linear models."""


class DemoFailed(RuntimeError):
    """A process of the demo ended before its time; the sentence says which, and where its log is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `demo`."""
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder for everything (default: runs/demo)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the initial weights and the samples' order (default: 0)"
    )
    parser.add_argument("--fresh", action="store_true", help="start again instead of going on")
    parser.add_argument(
        "--data",
        type=Path,
        help="folder with a data set for each device (default: rooms are rendered), or what `datasets features` made",
    )
    parser.add_argument("--model", help="FILE.py:build to compile (default: the small Xception of MAS, five tasks)")
    parser.add_argument("--port", type=int, default=8883, help="where to listen; moved if it is in use (default: 8883)")
    parser.add_argument("--strategy", choices=STRATEGIES, default="mas", help="how tasks are grouped (default: mas)")
    parser.add_argument("--fixed-groups", default="", help="with strategy fixed: its groups, as a,b;c")
    parser.add_argument("--merged-rounds", type=int, default=12, help="(default: 12)")
    parser.add_argument("--split-rounds", type=int, default=8, help="rounds of each group (default: 8)")
    parser.add_argument("--groups", type=int, default=2, help="(default: 2)")
    parser.add_argument("--quiet", action="store_true", help="lines instead of a live view")


def run(args: argparse.Namespace) -> int:
    """Run the demo; the exit code: 0 done, 5 a process failed, 130 stopped."""
    interrupt_on_terminate()
    stopped = "stopped; the same command goes on from here, --fresh starts again"
    return run_command(Demo(args).run, {DemoFailed: FAILED}, stopped=stopped)


@dataclass
class Device:
    """A device process and where its files are."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def log(self) -> Path:
        """The output of the process."""
        return self.folder / "log.txt"


class Demo:
    """The steps, each a process as a user would start it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.out: Path = args.out
        self.console = Console(stderr=True, highlight=False)
        self.state = self.out / "server"
        self.bundle = self.out / "bundle"
        self.is_linear = args.strategy in LINEAR_DATA

    def run(self) -> int:
        """Do everything; the exit code. Raises DemoFailed, KeyboardInterrupt."""
        begun = time.monotonic()
        if self.args.fresh:
            for name in ("server", "devices", "bundle", "models", "predictions"):
                shutil.rmtree(self.out / name, ignore_errors=True)
        self.out.mkdir(parents=True, exist_ok=True)
        data = self._data()
        devices = [Device(name=folder.name, folder=self.out / "devices" / folder.name) for folder in data]
        self._compile()
        self._federation(devices, data)
        report = self._results(data)
        self._say(f"done in {time.monotonic() - begun:.0f} s")
        for sentence in (happened(report), worth(report), f"Open {self.out / 'report.html'}"):
            print(sentence)
        return DONE

    def _data(self) -> list[Path]:
        if self.is_linear:
            return self._features()
        if self.args.data is not None:
            found = _data_sets(self.args.data)
            if not found:
                raise DemoFailed(
                    f"{self.args.data} holds no data sets: import some with `edge_runtime datasets import`"
                )
            return found
        rendered, made = self.out / "rooms", self.out / "data"
        if not _data_sets(made):
            self._say("rendering four buildings with labels for nine tasks")
            self._python("broker_server", "rooms", "--out", str(rendered))
            self._python("edge_runtime", "datasets", "import", str(rendered), "--out", str(made))
        return _data_sets(made)

    def _features(self) -> list[Path]:
        """Return the data sets of a linear model, whose bundle is beside them."""
        made = self.args.data or self.out / "features"
        if self.args.data is None and not _data_sets(made / "devices"):
            self._say("making data sets of features for eight devices")
            self._python("edge_runtime", "datasets", "features", LINEAR_DATA[self.args.strategy], "--out", str(made))
        self.bundle = made / "bundle"
        found = _data_sets(made / "devices")
        if not found or not self.bundle.is_dir():
            raise DemoFailed(f"{made} has no devices and bundle: make them with `edge_runtime datasets features`")
        return found

    def _compile(self) -> None:
        if (self.bundle / "manifest.json").is_file():
            return
        self._say("compiling the training graphs and comparing them with PyTorch")
        source = [self.args.model] if self.args.model else []
        self._python("export", "compile", *source, "--out", str(self.bundle), "--seed", str(self.args.seed))

    def _federation(self, devices: list[Device], data: list[Path]) -> None:
        (self.state / URL).unlink(missing_ok=True)
        with ExitStack() as stack:
            server = self._server(len(devices))
            stack.callback(_stop, server)
            self._wait_for_server(server)
            for device, folder in zip(devices, data, strict=True):
                stack.callback(self._stop_device, device)
                self._start_device(device, folder)
            while server.poll() is None:
                time.sleep(POLL_S)
                for device in devices:
                    assert device.process is not None
                    if code := device.process.poll():  # every round waits for all of them
                        raise DemoFailed(f"device {device.name} ended with exit code {code}: see {device.log}")
            if server.returncode != 0:
                raise DemoFailed(
                    f"the server ended with exit code {server.returncode}: where {self.out} is of an older version, "
                    "--fresh starts again"
                )

    def _server(self, devices: int) -> "subprocess.Popen[bytes]":
        options = {
            "state": self.state,
            "bundle": self.bundle,
            "host": "127.0.0.1",
            "port": self.args.port,
            "tls": "always",
            "federation": "demo",
            "strategy": self.args.strategy,
            "fixed-groups": self.args.fixed_groups,
            "merged-rounds": self.args.merged_rounds,
            "probe-rounds": self.args.merged_rounds,
            "probe-every": 5,
            "split-rounds": self.args.split_rounds,
            "groups": self.args.groups,
            "min-devices": devices,
            "lr": 0.05,
            "seed": self.args.seed,
            "report": self.out,
        }
        if self.args.strategy == "amtl":
            options |= {"round-mode": "buffered", "buffer-size": 1, "max-staleness": devices}
        flags = [part for name, value in options.items() if value != "" for part in (f"--{name}", str(value))]
        if self.args.quiet:
            flags.append("--quiet")
        return _start("broker_server", "--exit-when-finished", *flags)

    def _wait_for_server(self, server: "subprocess.Popen[bytes]") -> None:
        until_s = time.monotonic() + START_S
        while read_url(self.state) is None:
            if server.poll() is not None or time.monotonic() > until_s:
                raise DemoFailed(f"the server did not start (exit code {server.poll()})")
            time.sleep(POLL_S)

    def _start_device(self, device: Device, data: Path) -> None:
        """Enrol a device again, with the address where the server listens now, and start its process."""
        file = device.folder / "agent.toml"
        enrol(
            device.name,
            file,
            state=self.state,
            federation="demo",
            data=str(data.resolve()),
            threads=1,  # the devices share one machine
            meter=METER,
            meter_idle_s=0.0,
            force=True,
        )
        with device.log.open("ab") as log:
            device.process = _start("edge_runtime", "run", "--config", str(file), log=log.fileno())

    @staticmethod
    def _stop_device(device: Device) -> None:
        if device.process is not None:
            _stop(device.process)

    def _results(self, data: list[Path]) -> reports.Report:
        from broker_server.report import html as report_html
        from broker_server.report import pictures  # matplotlib is slow to import, and needed at the end alone

        self._say("writing the report" if self.is_linear else "writing models and predictions")
        state = StateFolder(self.state)
        with ExitStack() as stack:
            stack.callback(state.close)
            journal, _ = state.open()
            stack.callback(journal.close)
            built, affinities, groups = reports.build(journal), reports.affinities(journal), reports.trained(journal)
        found: dict[str, dict[str, pictures.Array]] = {folder.name: {} for folder in data[:SHOWN]}
        for tasks in () if self.is_linear else groups:
            group = group_id(tasks)
            model = self.out / "models" / f"{group}.onnx"
            options = ["--weights", str(model.with_suffix(".safetensors")), "--tasks", ",".join(tasks)]
            self._python("export", "deploy", str(self.bundle), *options, "--out", str(model))
            for folder in data[:SHOWN]:
                arrays = self.out / "predictions" / f"{group}-{folder.name}.npz"
                command = ["predict", "--model", str(model), "--data", str(folder), "--count", "1"]
                self._python("edge_runtime", *command, "--out", str(arrays))
                found[folder.name].update(pictures.load(arrays))
        report_html.write(self.out, built, affinities=affinities, predictions=pictures.rows(found))
        return built

    def _python(self, module: str, *arguments: str) -> None:
        done = subprocess.run([sys.executable, "-m", module, *arguments], check=False)
        if done.returncode != 0:
            raise DemoFailed(f"`python -m {module} {arguments[0]}` ended with exit code {done.returncode}")

    def _say(self, text: str) -> None:
        self.console.print(f"[bold]demo[/] {text}")


def _data_sets(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/train"))


def _start(module: str, *arguments: str, log: int | None = None) -> "subprocess.Popen[bytes]":
    """Start a process in its own session: Ctrl-C reaches the demo alone, which stops the others in order."""
    return subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=log, stderr=log, start_new_session=True)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End a process cleanly, or after a while by force."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        pass
    finally:  # also when Ctrl-C is pressed again
        process.kill()
        process.wait()
