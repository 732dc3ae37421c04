"""Setup of a running board over SSH: the same folder as on a card, sent as a tar stream, and its install.sh.

One connection examines the board, one sends the folder, one installs. The board needs nothing of this project before.
"""

import io
import re
import shlex
import subprocess
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from devices.firstboot.bundle import Files

_HOST = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_.-]*@)?[A-Za-z0-9\[][A-Za-z0-9.:\]_-]*\Z")
_FOLDER = re.compile(r"/[A-Za-z0-9_./-]+\Z")
_LOOK = (
    "uname -m; for p in {python} python{version} python3; do "
    "command -v $p > /dev/null && $p -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])' && break; done; mktemp -d"
)
_RUN = (
    'if [ "$(id -u)" = 0 ] || [ -n "${{MAS_EDGE_ROOT:-}}" ]; then sh {script}; else sudo -n sh {script}; fi; '
    "code=$?; rm -rf {folder}; exit $code"
)
_LOOK_S, _SEND_S, _INSTALL_S = 60.0, 3600.0, 3600.0
_SECRET = {"agent.toml": 0o600}


class HostUnusable(Exception):
    """The board cannot be set up over SSH; the sentence states why."""


@dataclass(frozen=True, kw_only=True)
class SshHost:
    """A destination of ssh: `user@host`, the port, and a configuration file of ssh."""

    name: str
    port: int | None = None
    config: Path | None = None

    def __post_init__(self) -> None:
        """Raise HostUnusable for a name that is no host's, or that ssh would take for an option."""
        if _HOST.match(self.name) is None:
            raise HostUnusable(f"{self.name[:80]!r} is no host: write it as in me@pi-01.local")

    def command(self, remote: str) -> list[str]:
        """Return the command line that runs `remote` there."""
        words = ["ssh", "-o", "ConnectTimeout=15"]
        if self.config is not None:
            words += ["-F", str(self.config)]
        if self.port is not None:
            words += ["-p", str(self.port)]
        return [*words, "--", self.name, remote]


@dataclass(frozen=True, kw_only=True)
class RemoteBoard:
    """A board over SSH: its processor, the first Python found there, and a new folder."""

    machine: str
    python: str
    folder: str


def look(host: SshHost, python: str, python_path: str | None) -> RemoteBoard:
    """Examine the board. Raises HostUnusable."""
    remote = _LOOK.format(python=shlex.quote(python_path or f"python{python}"), version=python)
    lines = _run(host, remote, _LOOK_S).splitlines()
    if len(lines) != 3 or _FOLDER.match(lines[2]) is None:
        raise HostUnusable(f"{host.name} does not answer as a Linux board with Python does: {' / '.join(lines)[:99]!r}")
    return RemoteBoard(machine=lines[0], python=lines[1], folder=lines[2])


def send(host: SshHost, folder: str, files: Files) -> None:
    """Put the files into the folder there. Raises HostUnusable."""
    command = host.command(f"umask 077; tar -x -f - -C {shlex.quote(folder)}")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        try:
            with process.stdin as pipe:
                _tar(pipe, files)
        except BrokenPipeError:
            pass  # the reason is on its standard error
        errors = process.stderr.read().decode("utf-8", "replace")
        code = process.wait(_SEND_S)
    if code != 0:
        raise HostUnusable(f"the files could not be sent to {host.name}: {_last(errors) or code}")


def run_script(host: SshHost, folder: str, name: str, word: str = "") -> str:
    """Run a script of the folder there, as root, remove the folder, and return its last line. Raises HostUnusable."""
    quoted = shlex.quote(folder)
    return _last(_run(host, _RUN.format(script=f"{quoted}/{name} {word}", folder=quoted), _INSTALL_S))


def output_of(host: SshHost, remote: str) -> str:
    """Return what a short command there prints. Raises HostUnusable."""
    return _run(host, remote, _LOOK_S)


def discard(host: SshHost, folder: str) -> None:
    """Remove the folder there, if the board still answers."""
    with suppress(HostUnusable):
        _run(host, f"rm -rf {shlex.quote(folder)}", _LOOK_S)


def _tar(pipe: IO[bytes], files: Files) -> None:
    with tarfile.open(fileobj=pipe, mode="w|", format=tarfile.GNU_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode = _SECRET.get(name, 0o644)
            entry.size = len(data) if isinstance(data, bytes) else data.stat().st_size
            if isinstance(data, bytes):
                archive.addfile(entry, io.BytesIO(data))
            else:
                with data.open("rb") as file:
                    archive.addfile(entry, file)


def _run(host: SshHost, remote: str, limit_s: float) -> str:
    try:
        done = subprocess.run(
            host.command(remote), stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s, check=False
        )
    except FileNotFoundError as exc:
        raise HostUnusable("ssh is not installed: install an SSH client") from exc
    except subprocess.TimeoutExpired as exc:
        raise HostUnusable(f"{host.name} did not answer within {limit_s:.0f} s") from exc
    if done.returncode != 0:
        problem = _last(done.stderr.decode("utf-8", "replace") or done.stdout.decode("utf-8", "replace"))
        if "sudo" in problem and "password" in problem:
            problem = "sudo asks for a password there: log in as root, or allow this user sudo without one"
        raise HostUnusable(f"{host.name}: {problem or f'ssh ended with {done.returncode}'}")
    return done.stdout.decode("utf-8", "replace")


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
