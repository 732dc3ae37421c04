"""experiment.toml: which federations are simulated, over which data, on which boards.

data = "../../runs/rooms8"            # a folder with a data set for each device; paths are relative to this file
model = "../../export/models/xception.py:build"   # compiled anew for each seed; or bundle = "…" for one that is there
seeds = [0, 1, 2]

[settings]                            # keys of server.toml that all methods share
merged_rounds = 14
split_rounds = 6

[methods."MAS-2"]                     # by name: what is this method's own
strategy = "mas"
groups = 2

[fleet.board]                         # what the simulated boards have in common
speed = 0.2
[fleet.boards.room-03]                # and what one of them has of its own
speed = 0.1
"""

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from broker_server.config import MAX_CONFIG_BYTES, ConfigInvalid, ServerConfig, check
from broker_server.simulation.fleet import Fleet
from edge_runtime.wire.names import is_device_id

MethodName = Annotated[str, Meta(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9 +._-]*\Z")]
NOT_HERE = {
    "federation",
    "state",
    "host",
    "port",
    "certificate",
    "key",
    "bundle",
    "seed",
    "min_devices",
    "official_python",
}
"""Keys of server.toml that a simulation decides itself."""


class Experiment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """experiment.toml."""

    data: str
    model: str | None = None
    bundle: str | None = None
    seeds: Annotated[tuple[Annotated[int, Meta(ge=0, le=2**53)], ...], Meta(min_length=1, max_length=1000)] = (0,)
    settings: dict[str, Any] = {}
    methods: Annotated[dict[MethodName, dict[str, Any]], Meta(min_length=1, max_length=1000)]
    fleet: Fleet = Fleet()
    title: str = ""

    def config(self, method: str, seed: int, devices: int) -> ServerConfig:
        """How one method is run with one seed on so many devices. Raises ConfigInvalid."""
        keys = self.settings | self.methods[method]
        if odd := sorted(NOT_HERE & keys.keys()):
            raise ConfigInvalid(f"methods.{method}: {odd[0]}: a simulation decides this itself")
        fixed = {"federation": "simulation", "seed": seed, "min_devices": devices}
        try:
            config = msgspec.convert(keys | fixed, ServerConfig)
            check(config)
        except (msgspec.ValidationError, ConfigInvalid) as exc:
            raise ConfigInvalid(f"methods.{method}: {exc}") from exc
        return config


def read_experiment(path: Path) -> Experiment:
    """The experiment in a file, its paths made absolute. Raises ConfigInvalid."""
    try:
        data = path.read_bytes()[: MAX_CONFIG_BYTES + 1]
        found = msgspec.toml.decode(data, type=Experiment)
    except OSError as exc:
        raise ConfigInvalid(f"{path} cannot be read: {exc.strerror}") from exc
    except (msgspec.MsgspecError, UnicodeDecodeError, ImportError) as exc:
        raise ConfigInvalid(f"{path}: {exc}") from exc
    if (found.model is None) == (found.bundle is None):
        raise ConfigInvalid(f"{path}: either a model to compile or a bundle is needed")
    if len(set(found.seeds)) != len(found.seeds):
        raise ConfigInvalid(f"{path}: seeds: one of them is there twice")
    home = path.resolve().parent
    try:
        for name in found.fleet.boards:
            found.fleet.of(name)
    except msgspec.ValidationError as exc:
        raise ConfigInvalid(f"{path}: fleet.boards: {exc}") from exc
    return msgspec.structs.replace(
        found,
        data=str(home / found.data),
        model=None if found.model is None else _model(home, found.model),
        bundle=None if found.bundle is None else str(home / found.bundle),
    )


def data_sets(folder: Path) -> dict[str, Path]:
    """The data sets in a folder, by name. Raises ConfigInvalid if there are none."""
    found = {path.parent.name: path.parent for path in sorted(folder.glob("*/train"))}
    if not found:
        raise ConfigInvalid(f"data: {folder} holds no data sets: make some with `python -m edge_runtime datasets`")
    if odd := [name for name in found if not is_device_id(name)]:
        raise ConfigInvalid(f"data: {folder / odd[0]} cannot name a device")
    return found


def _model(home: Path, model: str) -> str:
    """FILE.py:function with an absolute path."""
    file, colon, function = model.partition(":")
    return f"{home / file}{colon}{function}"
