"""agent.toml: which device this is, which federation it joins, and where its data and its state are.

device = "kitchen"
federation = "rooms"
url = "mqtt://server.lan:1883"
token = "eyJ…"                # keep this file readable by its owner alone
code = "1c9e…"
server_key = "9f2c…"
data = "data/kitchen"         # paths are relative to this file
state = "state/kitchen"
memory_budget = "220MiB"

`python -m broker_server enrol` writes it; docs/settings.md has every key.
"""

import logging
import stat
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from devices.cli.log import LogFormat, LogLevel
from devices.cli.settings import beside, build, read_toml
from devices.cli.values import SIZE_PATTERN, parse_size
from edge_runtime.agent.limits import PlanLimits
from edge_runtime.wire.blob import MAX_BLOB_BYTES, MESSAGE_BYTES
from edge_runtime.wire.messages import OrtTrainingUse
from edge_runtime.wire.names import DeviceId, FederationName, TaskName

_log = logging.getLogger(__name__)
SECRETS = {"token", "code", "certificate"}


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device's configuration. Paths are as the file has them until `read` has made them absolute."""

    device: Annotated[DeviceId, Meta(description="the device's name")]
    federation: Annotated[FederationName, Meta(description="the federation's name")]
    url: Annotated[str, Meta(min_length=1, max_length=500, description="the broker: mqtt://host:port or mqtts://…")]
    token: Annotated[
        str,
        Meta(min_length=1, max_length=4096, description="the device's JSON Web Token", extra={"secret": True}),
    ]
    code: Annotated[
        str,
        Meta(
            pattern=r"^[0-9a-f]{32}\Z",
            description="the code of its enrolment, good once: for the key that the device makes at its first start",
            extra={"secret": True},
        ),
    ]
    certificate: Annotated[
        Annotated[str, Meta(max_length=10_000)] | None,
        Meta(
            description="its first certificate and the key to that (PEM), for brokers that ask for one",
            extra={"secret": True},
        ),
    ] = None
    server_key: Annotated[
        str,
        Meta(pattern=r"^[0-9a-f]{64}\Z", description="the server's Ed25519 key, which signs all that the device does"),
    ]
    data: Annotated[Path, Meta(description="folder of the device's data set")]
    state: Annotated[Path, Meta(description="folder for what the device keeps")]
    engine: Annotated[
        Literal["portable", "auto", "ort_training"],
        Meta(description="ort_training: train with onnxruntime-training alone; auto: where it can"),
    ] = "portable"
    threads: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Meta(description="threads that compute (default: the engine decides)"),
    ] = None
    ca: Annotated[
        Annotated[str, Meta(max_length=100_000)] | None, Meta(description="the server's own CA (PEM), as enrolled")
    ] = None
    ca_file: Annotated[Path | None, Meta(description="certificates to trust for mqtts://, in place of `ca`")] = None
    insecure: Annotated[
        bool, Meta(description="go to mqtt:// on another machine: the token and weights cross the network in the clear")
    ] = False
    memory_budget: Annotated[
        Annotated[str, Meta(pattern=SIZE_PATTERN)] | None,
        Meta(description="most memory that the process may take, as 220MiB (default: what is free, less a reserve)"),
    ] = None
    checkpoint_s: Annotated[
        float,
        Meta(ge=0, le=1e6, description="time between checkpoints: a power cut loses what came after the last one"),
    ] = 120.0
    max_download_bytes: Annotated[int, Meta(ge=1, le=2**50, description="most that one plan may need")] = MAX_BLOB_BYTES
    chunk_bytes: Annotated[
        int,
        Meta(
            ge=4096,
            le=1 << 20,
            description="most bytes of a file in one message; halved by itself for a broker that takes less",
        ),
    ] = MESSAGE_BYTES
    max_epochs: Annotated[
        Annotated[int, Meta(ge=1, le=1000)] | None,
        Meta(description="most epochs that a round may ask for (default: any)"),
    ] = None
    max_work_s: Annotated[
        Annotated[float, Meta(gt=0, le=1e9)] | None,
        Meta(description="longest that the work of a round takes: training then sends what it has done (default: any)"),
    ] = None
    tasks: Annotated[
        tuple[TaskName, ...],
        Meta(description="tasks that the device works for; a plan with others is declined (default: all)"),
    ] = ()
    split_learning: Annotated[
        bool,
        Meta(
            description="take part in split learning: what the stem makes of the data is sent to the server, "
            "where it can often be turned back into the data"
        ),
    ] = False
    log_level: Annotated[LogLevel, Meta(description="the least that is worth a line in the log")] = "info"
    log_format: Annotated[
        LogFormat, Meta(description="human: lines for people; json: an object a line, for programs")
    ] = "human"
    allow_reconstruction: Annotated[
        bool,
        Meta(
            description="take part in it with a stem from whose embeddings the exporter has made the inputs again, or "
            "was not tried"
        ),
    ] = False
    meter: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=500,
            description="what measures energy: auto, none, or a source as `energy --source` takes",
        ),
    ] = "auto"
    meter_user: Annotated[str, Meta(min_length=1, max_length=200, description="user at a metering plug's broker")] = (
        "energy"
    )
    meter_password_file: Annotated[Path | None, Meta(description="file with the password for it")] = None
    meter_ca_file: Annotated[Path | None, Meta(description="certificates to trust for a plug at mqtts://")] = None
    meter_calibration: Annotated[
        Path | None, Meta(description="from `python -m edge_runtime energy calibrate`: corrects the readings")
    ] = None
    meter_root: Annotated[
        Path, Meta(description="where the sensors' /sys, /proc and /dev are, in a container that has others")
    ] = Path("/")
    meter_idle_s: Annotated[
        float, Meta(ge=0, le=600, description="how long the idle board is measured before it works; 0 for not at all")
    ] = 10.0

    @property
    def memory_budget_bytes(self) -> int | None:
        """The most that the process may take; None where it is not set."""
        return None if self.memory_budget is None else parse_size(self.memory_budget)

    @property
    def limits(self) -> PlanLimits:
        """What the device does for no server."""
        return PlanLimits(
            split_learning=self.split_learning,
            reconstruction=self.allow_reconstruction,
            epochs=self.max_epochs,
            work_s=self.max_work_s,
            tasks=self.tasks,
        )

    @property
    def ort_training(self) -> OrtTrainingUse:
        """Whether the engine trains with ONNX Runtime training artifacts."""
        uses: dict[str, OrtTrainingUse] = {"portable": "off", "auto": "auto", "ort_training": "require"}
        return uses[self.engine]

    def __repr__(self) -> str:
        """Show everything but the secrets."""
        shown = (f"{name}={'***' if name in SECRETS else repr(getattr(self, name))}" for name in self.__struct_fields__)
        return f"{type(self).__name__}({', '.join(shown)})"


def read(path: Path) -> AgentConfig:
    """Return the configuration in a file, its paths made absolute. Raises ConfigInvalid.

    Logs a warning if others may read the file, because the token is in it.
    """
    tree = read_toml(path)
    if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        _log.warning("%s holds the device's token and others may read it: chmod 600 %s", path, path)
    if tree.get("engine") == "official":
        _log.warning("%s: the engine official is called ort_training now; the old word is read for one version", path)
        tree["engine"] = "ort_training"
    return build(AgentConfig, [(str(path), beside(path, tree, AgentConfig))]).value
