"""ONNX Runtime training artifacts of groups that were just decided, made while the federation waits for them.

Rules
- They are made by a process in the environment of onnxruntime-training, `python -m export split`: the server knows
  neither onnx nor onnxruntime. It leads a process group of its own, which is killed at the time limit and when the
  server ends.
- It writes to a fresh folder within the state folder. What the process of a server that was killed still writes to
  another one is deleted with the next start.
- What it wrote counts only when its manifest is the bundle's but for the artifacts, and every file is what it says.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from broker_server.rounds.presence import DeviceState
from edge_runtime.wire.bundle_folder import MANIFEST, artifact_path, check_file
from edge_runtime.wire.errors import BundleInvalid
from edge_runtime.wire.manifest import MAX_MANIFEST_BYTES, Artifacts, Manifest, decode
from edge_runtime.wire.names import Tasks, group_id

ROOT = Path(__file__).resolve().parents[2]
"""The folder of the packages: the environment of onnxruntime-training holds none of ours."""
MAX_PROBLEM_CHARACTERS = 300


class ArtifactsUnavailable(RuntimeError):
    """The artifacts cannot be made; one sentence says why."""


@dataclass(frozen=True)
class BuiltArtifacts:
    """A group's artifacts and where their files are, by name, until the builder is started or stopped again."""

    artifacts: Artifacts
    files: Mapping[str, Path]


@dataclass(frozen=True)
class _Running:
    process: subprocess.Popen[bytes]
    bundle: Manifest
    groups: tuple[Tasks, ...]
    out: Path
    until_s: float


class ArtifactBuilder:
    """Makes artifacts of a bundle's groups, some groups at a time. `folder` is its own and is emptied."""

    def __init__(self, *, python: Path, bundle: Path, folder: Path, limit_s: float) -> None:
        self._python = python
        self._bundle = bundle
        self._folder = folder
        self._limit_s = limit_s
        self._running: _Running | None = None
        shutil.rmtree(folder, ignore_errors=True)

    @property
    def busy(self) -> bool:
        """Return whether artifacts are being made."""
        return self._running is not None

    def start(self, bundle: Manifest, groups: Sequence[Tasks], now_s: float) -> None:
        """Begin to make the artifacts of some groups of the bundle. Raises ArtifactsUnavailable."""
        self.stop()
        if bundle.ort_training is None or bundle.ort_training.forward is None:
            raise ArtifactsUnavailable(
                "the bundle has no forward graph of all tasks: compile it with --ort-training auto"
            )
        text = ";".join(",".join(tasks) for tasks in groups)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            out = Path(tempfile.mkdtemp(dir=self._folder)).resolve()
            words = [
                "split",
                self._bundle.resolve(),
                "--groups",
                text,
                "--out",
                out,
                "--ort-training-python",
                self._python,
            ]
            with (out / "output").open("wb") as output:
                process = subprocess.Popen(
                    [str(self._python), "-m", "export", *map(str, words)],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except OSError as exc:
            raise ArtifactsUnavailable(f"{exc.filename or self._python}: {exc.strerror}") from exc
        self._running = _Running(process, bundle, tuple(groups), out, now_s + self._limit_s)

    def poll(self, now_s: float) -> dict[Tasks, BuiltArtifacts] | None:
        """Return the artifacts, once; None while they are not ready. Raises ArtifactsUnavailable."""
        running = self._running
        if running is None:
            return None
        code = running.process.poll()
        if code is None and now_s < running.until_s:
            return None
        self._end(running)
        if code is None:
            raise ArtifactsUnavailable(f"they were not ready after {self._limit_s:g} s (ort_training.limit_s)")
        try:
            if code != 0:
                raise ArtifactsUnavailable(
                    _last_line(running.out / "output") or f"{self._python} ended with code {code}"
                )
            return _checked(running)
        except (BundleInvalid, OSError) as exc:
            raise ArtifactsUnavailable(f"what {self._python} made cannot be used: {exc}") from exc

    def stop(self) -> None:
        """End the process, and delete what it has made."""
        if self._running is not None:
            self._end(self._running)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self, running: _Running) -> None:
        """End the process, and all that it has started."""
        self._running = None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()


def _checked(running: _Running) -> dict[Tasks, BuiltArtifacts]:
    with (running.out / MANIFEST).open("rb") as data:
        manifest = decode(data.read(MAX_MANIFEST_BYTES + 1))
    same = msgspec.structs.replace(manifest, ort_training=running.bundle.ort_training) == running.bundle
    found = manifest.ort_training.groups if manifest.ort_training is not None else {}
    if not same or (lacking := [group for group in map(group_id, running.groups) if group not in found]):
        raise BundleInvalid("it is of another bundle" if not same else f"it has nothing for {', '.join(lacking)}")
    made = {}
    for tasks in running.groups:
        artifacts = found[group_id(tasks)]
        files = {name: artifact_path(running.out, group_id(tasks), name) for name in artifacts.files}
        for name, file in artifacts.files.items():
            check_file(files[name], file)
        made[tasks] = BuiltArtifacts(artifacts, files)
    return made


def _last_line(output: Path) -> str:
    lines = output.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip()[:MAX_PROBLEM_CHARACTERS] if lines else ""


def artifact_users(devices: Mapping[str, DeviceState]) -> tuple[list[str], list[str]]:
    """Return the devices that ask for the artifacts, and those of them that train with nothing else, in order."""
    uses = {name: device.hello.ort_training for name, device in sorted(devices.items()) if device.hello is not None}
    return [name for name, use in uses.items() if use != "off"], [n for n, use in uses.items() if use == "require"]


def problem_sentence(groups: Iterable[Tasks], problem: str, requiring: Collection[str]) -> str:
    """Return one sentence about artifacts that cannot be made, and what follows from it."""
    named = ", ".join(map(group_id, groups))
    follows = "the devices train with the portable graphs"
    if requiring:
        left_out = ", ".join(requiring)
        follows = f"{left_out} ask for nothing else and are left out, the others train with the portable graphs"
    return f"no ONNX Runtime training artifacts for {named}: {problem}; {follows}"
