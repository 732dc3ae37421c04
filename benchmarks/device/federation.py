"""A whole federation as the processes that run in the field, its traffic counted on the wire."""

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import PYTHON, ROOT
from broker_server.server.state import read_url

START_S = 120.0
STOP_S = 30.0
READ_BYTES = 1 << 16


class CountingProxy:
    """Passes TCP connections on, and counts the bytes of each direction: all of MQTT, without TCP's own headers."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self.bytes_up = self.bytes_down = 0

    def forward(self, port: int) -> None:
        """Pass all connections on to a port of this machine, until the proxy is closed."""
        threading.Thread(target=self._accept, args=(port,), daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self, port: int) -> None:
        with suppress(OSError):
            while True:
                device, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", port))
                for source, target, up in ((device, server, True), (server, device, False)):
                    threading.Thread(target=self._pass, args=(source, target, up), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, up: bool) -> None:
        with suppress(OSError):
            while data := source.recv(READ_BYTES):
                with self._lock:
                    if up:
                        self.bytes_up += len(data)
                    else:
                        self.bytes_down += len(data)
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a federation: its report.json and its traffic."""

    report: dict[str, Any]
    bytes_up: int
    bytes_down: int


def run(out: Path, bundle: Path, data: Sequence[Path], settings: Mapping[str, object]) -> Outcome:
    """A federation of one device process for each data set, from its beginning to its end, in the folder `out`.

    `settings` are the server's flags. Raises RuntimeError if a process fails.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    state, proxy = out / "server", CountingProxy()
    flags = {"state": state, "bundle": bundle, "host": "127.0.0.1", "port": 0, "min-devices": len(data)} | {
        name.replace("_", "-"): value for name, value in settings.items()
    }
    given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    with ExitStack() as stack:
        stack.callback(proxy.close)
        server = _start(stack, out / "server.log", "broker_server", *given, "--exit-when-finished", "--quiet")
        until_s = time.monotonic() + START_S
        while (url := read_url(state)) is None:
            if server.poll() is not None or time.monotonic() > until_s:
                raise RuntimeError(f"the server did not start: see {out / 'server.log'}")
            time.sleep(0.1)
        proxy.forward(int(url.rpartition(":")[2]))
        for folder in data:
            config = out / folder.name / "agent.toml"
            options = ["--state", state, "--data", folder.resolve(), "--url", f"mqtt://127.0.0.1:{proxy.port}"]
            command = [PYTHON, "-m", "broker_server", "enrol", folder.name, "--out", config, *options, "--threads", 1]
            subprocess.run([*map(str, command)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            _start(stack, out / f"{folder.name}.log", "edge_runtime", "run", "--config", str(config))
        if code := server.wait():
            raise RuntimeError(f"the server ended with exit code {code}: see {out / 'server.log'}")
    report = json.loads((state / "report" / "report.json").read_text())
    return Outcome(report=report, bytes_up=proxy.bytes_up, bytes_down=proxy.bytes_down)


def _start(stack: ExitStack, log: Path, module: str, *arguments: str) -> "subprocess.Popen[bytes]":
    with log.open("wb") as file:
        process = subprocess.Popen([PYTHON, "-m", module, *arguments], cwd=ROOT, stdout=file, stderr=file)
    stack.callback(_stop, process)
    return process


def _stop(process: "subprocess.Popen[bytes]") -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)  # the devices end by themselves when the federation has
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
