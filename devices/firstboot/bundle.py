"""The folder that a first boot installs from: script, service, settings, agent.toml, certificates, data and wheels.

It is the same on a card's boot partition, in a Jetson's root file system, and over SSH.
"""

import hashlib
import shlex
from importlib import resources
from pathlib import Path

from devices.cli.run import UsageError
from devices.firstboot.agent import CA_NAME, AgentFile
from devices.firstboot.settings import BoardSettings
from devices.wheelhouse import Wheelhouse

Files = dict[str, bytes | Path]
"""Content, or the file that holds it, by relative name."""
FOLDER = "mas-edge"
MAX_DATA_BYTES = 1 << 30


def bundle(settings: BoardSettings, agent: AgentFile, wheels: Wheelhouse, data: Path | None = None) -> Files:
    """Return all files, by their name in the folder.

    Raises UsageError for a data set that is empty or too large.
    """
    files: Files = {
        "install.sh": _resource("install.sh"),
        "mas-edge.service": _resource("mas-edge.service"),
        "settings": shell_settings(settings, wheels),
        **{f"wheels/{path.name}": path for path in wheels.files},
        **_data(data),
    }
    if agent.ca is not None:
        files[CA_NAME] = agent.ca
    files["SHA256SUMS"] = sums(files)
    files["agent.toml"] = agent.content  # without a sum: install.sh moves it, and the rest can still be checked
    return files


def shell_settings(settings: BoardSettings, wheels: Wheelhouse) -> bytes:
    """Return the settings of install.sh, as a shell reads them."""
    entries = {
        "DEVICE": settings.device,
        "USER_NAME": settings.user,
        "PYTHON_VERSION": settings.python,
        "PYTHON_PATH": settings.python_path or "",
        "WHEELS_DIGEST": wheels.digest,
        "RESERVE_MIB": str(settings.reserve_mib),
        "MEMORY_MAX_MIB": "" if settings.memory_max_mib is None else str(settings.memory_max_mib),
        "NTP": settings.ntp or "",
        "SSH": "1" if settings.ssh_keys or settings.password_hash else "0",
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in entries.items()).encode()


def sums(files: Files) -> bytes:
    """Return the files' SHA-256 as `sha256sum --check` reads them."""
    return "".join(f"{_digest(data)}  {name}\n" for name, data in sorted(files.items())).encode()


def _digest(data: bytes | Path) -> str:
    state = hashlib.sha256()
    if isinstance(data, bytes):
        state.update(data)
    else:
        with data.open("rb") as file:
            while block := file.read(1 << 20):
                state.update(block)
    return state.hexdigest()


def _data(folder: Path | None) -> Files:
    if folder is None:
        return {}
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    if not found:
        raise UsageError(f"{folder} has no files: a data set is a folder with train, val and test in it")
    size_bytes = sum(path.stat().st_size for path in found)
    if size_bytes > MAX_DATA_BYTES:
        raise UsageError(
            f"{folder} has {size_bytes >> 20} MiB, and at most {MAX_DATA_BYTES >> 20} MiB can be included: "
            "copy it to the board later"
        )
    return {f"data/{path.relative_to(folder).as_posix()}": path for path in found}


def _resource(name: str) -> bytes:
    return resources.files("devices.firstboot").joinpath(name).read_bytes()
