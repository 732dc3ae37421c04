"""Wheels for a board, fetched on a workstation for the board's Python and C library: a board then needs no internet.

Our own wheel is built from the sources; pip chooses the others as it would on the board. pip evaluates environment
markers for the Python that runs it, so the wheels' requirements are evaluated here again, for the board, until none is
missing. `wheelhouse.json` states the board that the folder is for, `sbom.json` what is in it (CycloneDX 1.5).
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Literal

import msgspec
from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from devices.profile import Profile, System

NAME = "mas-edge"
EXTRA = "board"
MANIFEST = "wheelhouse.json"
BILL = "sbom.json"
_OLDEST_GLIBC = 17
_TIMEOUT_S = 1800.0
_LEAST_PYTHON = (3, 10)


class WheelhouseInvalid(Exception):
    """The wheels cannot be made, or are not for the board; the sentence states why."""


class WheelhouseManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The board that a folder of wheels is for. `files` maps each wheel to its SHA-256."""

    python: str
    architecture: Literal["aarch64", "x86_64"]
    glibc: str
    files: dict[str, str]


class Wheelhouse(msgspec.Struct, frozen=True, kw_only=True):
    """A checked folder of wheels. `digest` changes with any of them."""

    folder: Path
    python: str
    architecture: str
    files: tuple[Path, ...]
    digest: str

    @property
    def size_bytes(self) -> int:
        """The size of all wheels together."""
        return sum(path.stat().st_size for path in self.files)


def make(profile: Profile, system: System, out: Path, sources: Path) -> Wheelhouse:
    """Fetch and build the wheels into `out`. Raises WheelhouseInvalid."""
    version = tuple(int(part) for part in system.python.split("."))
    if version < _LEAST_PYTHON:
        raise WheelhouseInvalid(
            f"{system.title.partition(';')[0]} has Python {system.python} and 3.10 is needed: put a newer one beside "
            "it on the board, and make the wheels for that one with --python"
        )
    if not (sources / "pyproject.toml").is_file():
        raise WheelhouseInvalid(f"{sources} has no pyproject.toml: run this in the project's folder, or give --sources")
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob("*.whl"), out / MANIFEST]:
        old.unlink(missing_ok=True)
    _build(sources, out)
    target = platform_words(system.python, system.glibc, profile.architecture)
    _pip("download", *target, "--dest", str(out), "--find-links", str(out), f"{NAME}[{EXTRA}]", "pip")
    environment = board_environment(system.python, profile.architecture)
    while (found := closure(out, environment)).missing:
        _pip("download", *target, "--no-deps", "--dest", str(out), *sorted(found.missing))
    for path in out.glob("*.whl"):
        if path not in found.needed:  # this machine's Python would need it, the board's does not
            path.unlink()
    files = {path.name: _digest(path) for path in sorted(out.glob("*.whl"))}
    manifest = WheelhouseManifest(
        python=system.python, architecture=profile.architecture, glibc=system.glibc, files=dict(sorted(files.items()))
    )
    (out / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    (out / BILL).write_bytes(msgspec.json.format(msgspec.json.encode(bill(out, files))) + b"\n")
    return read(out)


def bill(folder: Path, files: Mapping[str, str]) -> dict[str, object]:
    """Return the software bill of materials of a folder's wheels, which `files` maps to their SHA-256 (CycloneDX 1.5).

    Raises WheelhouseInvalid.
    """
    components = []
    for name, digest in sorted(files.items()):
        headers = _metadata(folder / name)
        project, version = canonicalize_name(str(headers["Name"])), str(headers["Version"])
        about: dict[str, object] = {"type": "library", "name": project, "version": version}
        about["purl"] = f"pkg:pypi/{project}@{version}"
        about["hashes"] = [{"alg": "SHA-256", "content": digest}]
        if licence := headers["License-Expression"] or headers["License"]:
            about["licenses"] = [{"license": {"name": str(licence).splitlines()[0][:200]}}]
        components.append(about)
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components}


def read(folder: Path) -> Wheelhouse:
    """Read a folder of wheels and check each against its digest. Raises WheelhouseInvalid."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=WheelhouseManifest)
    except OSError as exc:
        raise WheelhouseInvalid(
            f"{folder} holds no wheels for a board ({exc.strerror}): make them with `python -m devices wheelhouse`"
        ) from exc
    except msgspec.DecodeError as exc:
        raise WheelhouseInvalid(f"{folder / MANIFEST} cannot be used: {exc}") from exc
    for name, digest in manifest.files.items():
        if "/" in name or not name.endswith(".whl"):
            raise WheelhouseInvalid(f"{folder / MANIFEST} names {name!r}, which is no wheel")
        if not (folder / name).is_file() or _digest(folder / name) != digest:
            raise WheelhouseInvalid(f"{folder / name} is missing or has changed: make the wheels again")
    if not any(name.startswith("pip-") for name in manifest.files):
        raise WheelhouseInvalid(f"{folder} has no wheel of pip, which installs the others: make the wheels again")
    whole = hashlib.sha256(msgspec.json.encode(sorted(manifest.files.items()))).hexdigest()
    files = tuple(folder / name for name in sorted(manifest.files))
    return Wheelhouse(
        folder=folder, python=manifest.python, architecture=manifest.architecture, files=files, digest=whole
    )


def platform_words(python: str, glibc: str, architecture: str) -> list[str]:
    """Return pip's options for wheels of a platform: every manylinux tag up to the C library's version."""
    minor = int(glibc.split(".")[1])
    tags = [f"manylinux_2_{n}_{architecture}" for n in range(minor, _OLDEST_GLIBC - 1, -1)]
    tags += [f"manylinux2014_{architecture}", f"linux_{architecture}"]
    words = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for tag in tags:
        words += ["--platform", tag]
    return words


def board_environment(python: str, architecture: str) -> dict[str, str]:
    """Return the board's values of environment markers (PEP 508)."""
    return {
        **{name: str(value) for name, value in default_environment().items()},
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": architecture,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


@dataclass(frozen=True, kw_only=True)
class Closure:
    """The wheels of a folder that a board needs, and the requirements that no wheel there meets."""

    needed: frozenset[Path]
    missing: frozenset[str]


def closure(folder: Path, environment: dict[str, str]) -> Closure:
    """Return the wheels that the agent, and pip, need on a board with that environment. Raises WheelhouseInvalid."""
    wheels = {
        canonicalize_name(str((headers := _metadata(path))["Name"])): (path, headers) for path in folder.glob("*.whl")
    }
    needed: set[Path] = set()
    missing: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(f"{NAME}[{EXTRA}]"), Requirement("pip")]
    while waiting:
        need = waiting.pop()
        name = canonicalize_name(need.name)
        if name not in wheels:
            missing.add(f"{need.name}{need.specifier}")
        elif (name, frozenset(need.extras)) not in seen:
            seen.add((name, frozenset(need.extras)))
            path, headers = wheels[name]
            needed.add(path)
            waiting += _requirements(path, headers, environment, need.extras)
    return Closure(needed=frozenset(needed), missing=frozenset(missing))


def _requirements(path: Path, headers: Message, environment: dict[str, str], extras: set[str]) -> list[Requirement]:
    """Return a wheel's requirements in that environment."""
    found = []
    for text in headers.get_all("Requires-Dist", []):
        try:
            need = Requirement(text)
        except InvalidRequirement as exc:
            raise WheelhouseInvalid(f"{path.name} states a requirement that cannot be read: {text!r}") from exc
        if need.marker is None or any(need.marker.evaluate({**environment, "extra": e}) for e in ("", *extras)):
            found.append(need)
    return found


def _build(sources: Path, out: Path) -> None:
    """Build our own wheel, from a copy: a build in place would keep files that are gone from the sources."""
    with tempfile.TemporaryDirectory() as scratch:
        for path in sources.iterdir():
            if path.is_dir() and (path / "__init__.py").is_file():
                shutil.copytree(path, Path(scratch) / path.name, ignore=shutil.ignore_patterns("__pycache__"))
            elif path.is_file() and path.suffix in {".toml", ".md", ""} and not path.name.startswith("."):
                shutil.copy(path, scratch)
        _pip("wheel", "--no-deps", "--wheel-dir", str(out), scratch)


def _metadata(path: Path) -> Message:
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.count("/") == 1 and n.endswith(".dist-info/METADATA"))
            return HeaderParser().parsestr(archive.read(name).decode("utf-8", "replace"))
    except (OSError, zipfile.BadZipFile, StopIteration) as exc:
        raise WheelhouseInvalid(f"{path} is no wheel") from exc


def _pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "PIP_NO_INPUT": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise WheelhouseInvalid(f"pip {words[0]} took over {_TIMEOUT_S:.0f} s") from exc
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error")]
        raise WheelhouseInvalid(f"pip {words[0]} failed: {(errors or lines or ['it printed no reason'])[0][:400]}")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
