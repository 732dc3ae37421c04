"""experiment.toml: which federations are simulated, over which data, on which boards.

data = "../../runs/rooms8"            # a folder with a data set for each device; paths are relative to this file
model = "../../export/models/xception.py:build"   # compiled anew for each seed; or bundle = "…" for one that is there
seeds = [0, 1, 2]
reference = "MAS-2"                   # what the other methods are related to in a comparison; else one-by-one
devices = ["room-01", "room-03"]      # of the data sets in the folder, these alone; all where none is named

[settings.grouping]                   # tables of server.toml that all methods share
merged_rounds = 14
split_rounds = 6

[methods."MAS-2"]                     # by name: what is this method's own
grouping = { strategy = "mas", groups = 2 }

[methods."local only"]                # each device for itself, from the same weights, without any exchange
baseline = "local_training"
grouping.strategy = "all_in_one"

[methods."constant"]                  # blank inputs: what the best constant predictions lose
baseline = "constant"
grouping.strategy = "all_in_one"

[methods."MAS-2 over 3G"]             # other boards for this method
board = { up_bytes_per_s = 50_000.0, latency_s = 0.1 }

[tasks_of]                            # devices that have labels of some tasks alone; in a method, other ones for it
room-01 = ["depth"]

[sections]                            # tables of their own in a comparison; the other methods come first
ablations = ["MAS-2 from scratch"]

[fleet.board]                         # what the simulated boards have in common
speed = 0.2
[fleet.boards.room-03]                # and what one of them has of its own
speed = 0.1
[fleet.encoder_server]                # for methods whose encoder the server computes
speed = 4.0
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from broker_server.server.config import SETTINGS, ServerConfig, check
from broker_server.server.old_keys import renewed
from broker_server.simulation.fleet import Fleet
from broker_server.simulation.outline import Outline
from devices.cli.settings import ConfigInvalid, Tree, build, has, nearest, read_toml
from edge_runtime.wire.names import DeviceId, TaskName, is_device_id

MethodName = Annotated[str, Meta(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9 +._-]*\Z")]
SectionName = Annotated[str, Meta(min_length=1, max_length=60, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ,+._-]*\Z")]
NOT_HERE = (
    "federation",
    "state",
    "bundle",
    "seed",
    "broker",
    "rounds.min_devices",
    "split_learning.devices",
    "split_learning.idle_s",
    "split_learning.threads",
    "split_learning.provider",
    "split_learning.allow_reconstruction",
    "ort_training",
)
"""Keys of server.toml that a simulation decides itself."""
TasksOf = Annotated[dict[DeviceId, Annotated[tuple[TaskName, ...], Meta(min_length=1)]], Meta(max_length=100_000)]

_log = logging.getLogger(__name__)


class Conduct(msgspec.Struct, frozen=True, kw_only=True):
    """What a method says of its runs besides the keys of server.toml."""

    baseline: Literal["local_training", "constant"] | None = None
    """With local_training each device trains for itself, without any exchange; with constant every input is blank, so
    that nothing but constants can be predicted."""
    tasks_of: TasksOf | None = None
    """The tasks that devices have labels of, instead of the experiment's; {} for all."""
    board: dict[str, float | int] = {}
    """What all boards have in common, where it is not the experiment's."""

    @property
    def is_local(self) -> bool:
        """Whether each device trains for itself."""
        return self.baseline == "local_training"


class Experiment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """experiment.toml."""

    data: str
    model: str | None = None
    bundle: str | None = None
    seeds: Annotated[tuple[Annotated[int, Meta(ge=0, le=2**53)], ...], Meta(min_length=1, max_length=1000)] = (0,)
    settings: dict[str, Any] = {}
    methods: Annotated[dict[MethodName, dict[str, Any]], Meta(min_length=1, max_length=1000)]
    reference: MethodName | None = None
    """The method that the others are related to in a comparison; one-by-one where none is named."""
    fleet: Fleet = Fleet()
    title: Annotated[str, Meta(max_length=100)] = ""
    devices: Annotated[tuple[DeviceId, ...], Meta(max_length=100_000)] = ()
    """The data sets that take part; all of the folder's where none is named."""
    tasks_of: TasksOf = {}
    """The tasks that a device has labels of, where not all that its data set has. Losses count on these alone."""
    sections: Annotated[dict[SectionName, tuple[MethodName, ...]], Meta(max_length=100)] = {}
    """Methods that are compared in tables of their own."""

    def outline(self, name: str) -> Outline:
        """Return the outline of the runs, under the name of the experiment's file."""
        methods = tuple(self.methods)
        return Outline(
            name=name,
            title=self.title,
            methods=methods,
            seeds=self.seeds,
            sections=self.sections,
            reference=self.reference or "",
        )

    def conduct(self, method: str) -> Conduct:
        """Return how a method is run, with the experiment's tasks_of where it has none of its own.

        Raises ConfigInvalid.
        """
        try:
            found = msgspec.convert(self.methods[method], Conduct)
        except msgspec.ValidationError as exc:
            raise ConfigInvalid(f"methods.{method}: {exc}") from exc
        return msgspec.structs.replace(found, tasks_of=self.tasks_of if found.tasks_of is None else found.tasks_of)

    def fleet_of(self, method: str) -> Fleet:
        """Return the boards of a method. Raises ConfigInvalid."""
        try:
            return self.fleet.having(self.conduct(method).board)
        except msgspec.ValidationError as exc:
            raise ConfigInvalid(f"methods.{method}: board: {exc}") from exc

    def config(self, method: str, seed: int, devices: int) -> ServerConfig:
        """How one method is run with one seed on so many devices. Raises ConfigInvalid."""
        conduct = self.conduct(method)
        own = {key: value for key, value in self.methods[method].items() if key not in Conduct.__struct_fields__}
        source = f"methods.{method}"
        layers = [("settings", renewed("settings", self.settings, SETTINGS)), (source, renewed(source, own, SETTINGS))]
        fixed: Tree = {
            "federation": "simulation",
            "seed": seed,
            "rounds": {"min_devices": 1 if conduct.is_local else devices},
        }
        found = build(ServerConfig, [*layers, ("simulation", fixed)])
        for name, layer in layers:
            if odd := [key for key in NOT_HERE if has(layer, key)]:
                raise ConfigInvalid(f"{name}: {odd[0]}: a simulation decides this itself")
        config = found.value
        try:
            check(config)
        except ConfigInvalid as exc:
            raise ConfigInvalid(f"{source}: {exc}") from exc
        if conduct.is_local and config.grouping.strategy != "all_in_one":
            raise ConfigInvalid(
                f"{source}: baseline: a device by itself trains its tasks together: "
                "give grouping.strategy = 'all_in_one'"
            )
        if conduct.is_local and config.is_apart:
            raise ConfigInvalid(
                f"{source}: baseline: a device by itself has the encoder: give split_learning.encoder = 'device'"
            )
        return config


def read_experiment(path: Path) -> Experiment:
    """Return the experiment in a file, its paths made absolute. Raises ConfigInvalid."""
    try:
        tree = read_toml(path)
        _rename_old_keys(path, tree)
        if odd := [key for key in tree if key not in Experiment.__struct_fields__]:
            known = nearest(odd[0], Experiment.__struct_fields__)
            raise ConfigInvalid(f"{path}: {odd[0]}: there is no such key{known}")
        found = msgspec.convert(tree, Experiment)
    except msgspec.ValidationError as exc:
        raise ConfigInvalid(f"{path}: {exc}") from exc
    if (found.model is None) == (found.bundle is None):
        raise ConfigInvalid(f"{path}: either a model to compile or a bundle is needed")
    if len(set(found.seeds)) != len(found.seeds):
        raise ConfigInvalid(f"{path}: seeds: one of them is there twice")
    placed = [method for methods in found.sections.values() for method in methods]
    if odd := [method for method in placed if method not in found.methods]:
        raise ConfigInvalid(f"{path}: sections: there is no method {odd[0]!r}")
    if found.reference is not None and found.reference not in found.methods:
        raise ConfigInvalid(f"{path}: reference: there is no method {found.reference!r}")
    if len(set(placed)) != len(placed):
        raise ConfigInvalid(f"{path}: sections: a method stands in two of them, or twice in one")
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


def _rename_old_keys(path: Path, tree: Tree) -> None:
    """Give the experiment's own keys of before their names of today, each with a sentence."""
    old = "%s: %s is called %s now; the old key is read for one more version"
    fleet, methods = tree.get("fleet"), tree.get("methods")
    if isinstance(fleet, dict) and "host" in fleet:
        _log.warning(old, path, "fleet.host", "fleet.encoder_server")
        fleet["encoder_server"] = fleet.pop("host")
    for name, method in methods.items() if isinstance(methods, dict) else ():
        if isinstance(method, dict) and isinstance(method.get("alone"), bool):
            _log.warning(old, path, f"methods.{name}.alone", "baseline")
            if method.pop("alone"):
                method["baseline"] = "local_training"


def data_sets(folder: Path, devices: Sequence[str] = ()) -> dict[str, Path]:
    """Return the data sets in a folder by name, those of `devices` alone where any is named.

    Raises ConfigInvalid if there are none, or one that is named is not there.
    """
    found = {path.parent.name: path.parent for path in sorted(folder.glob("*/train"))}
    if not found:
        raise ConfigInvalid(f"data: {folder} holds no data sets: make some with `python -m edge_runtime datasets`")
    if odd := [name for name in found if not is_device_id(name)]:
        raise ConfigInvalid(f"data: {folder / odd[0]} cannot name a device")
    if absent := [name for name in devices if name not in found]:
        raise ConfigInvalid(f"devices: {folder} has no data set {absent[0]!r}; it has {', '.join(found)}")
    return {name: found[name] for name in devices} if devices else found


def _model(home: Path, model: str) -> str:
    """FILE.py:function with an absolute path."""
    file, colon, function = model.partition(":")
    return f"{home / file}{colon}{function}"
