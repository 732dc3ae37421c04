"""agent.toml: which device this is, which federation it joins, and where its data and its state are.

device = "kitchen"
federation = "rooms"
url = "mqtt://server.lan:1883"
token = "eyJ…"                # the device's JSON Web Token: keep this file readable by its owner alone
server_key = "9f2c…"          # hexadecimal Ed25519 key whose signature a manifest must carry
data = "data/kitchen"         # paths are relative to this file
state = "state/kitchen"
engine = "portable"           # optional: "official" trains with onnxruntime-training alone, "auto" where it can
threads = 2                   # optional: for the computation; the engine decides where it is not given
ca_file = "ca.pem"            # optional: certificates to trust for mqtts://
memory_budget = "220MiB"      # optional: the most memory that the process may take; by default what the board has
                              #   free when the agent starts, less a reserve
checkpoint_s = 120            # optional: seconds between checkpoints of training; a power cut loses what came after
                              #   the last one, and each writes the model and its momentum to the card
max_download_bytes = 500000000  # optional: the most that one plan may need
meter = "auto"                # optional: what measures energy: the best that is here, "none", or a source as
                              #   `energy --source` takes it: "rapl", "i2c:ina226@0x40,bus=1,shunt=0.1",
                              #   "model:2.7,6.4" (estimated), "mqtt://plugs.lan/tele/desk/SENSOR#ENERGY.Power" …
meter_user = "energy"         # optional: user at a metering plug's broker
meter_password_file = "plug"  # optional: file with the password for it
meter_ca_file = "plugs.pem"   # optional: certificates to trust for a plug at mqtts://
meter_calibration = "pmic.toml"  # optional: from `python -m edge_runtime energy calibrate`, for true readings
meter_root = "/host"          # optional: where the sensors' /sys, /proc and /dev are, in a container that has others
meter_idle_s = 10             # optional: how long the idle board is measured before it works; 0 for not at all
"""

import logging
import re
import stat
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from devices.cli.values import parse_size
from edge_runtime.wire.blob import MAX_BLOB_BYTES
from edge_runtime.wire.messages import OrtTrainingUse
from edge_runtime.wire.names import DeviceId, FederationName

MAX_CONFIG_BYTES = 64 * 1024

_log = logging.getLogger(__name__)
_KEY = re.compile(r"`\$\.?([^`]*)`")


class ConfigInvalid(ValueError):
    """The configuration cannot be used; the sentence names the file and the key."""


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device's configuration. Paths are as the file has them until `read` has made them absolute."""

    device: DeviceId
    federation: FederationName
    url: Annotated[str, Meta(min_length=1, max_length=500)]
    token: Annotated[str, Meta(min_length=1, max_length=4096)]
    server_key: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    data: Path
    state: Path
    engine: Literal["portable", "auto", "official"] = "portable"
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None
    ca_file: Path | None = None
    memory_budget: Annotated[str, Meta(pattern=r"^[1-9][0-9]{0,14} ?(KiB|MiB|GiB|)\Z")] | None = None
    checkpoint_s: Annotated[float, Meta(ge=0, le=1e6)] = 120.0
    max_download_bytes: Annotated[int, Meta(ge=1, le=2**50)] = MAX_BLOB_BYTES
    meter: Annotated[str, Meta(min_length=1, max_length=500)] = "auto"
    meter_user: Annotated[str, Meta(min_length=1, max_length=200)] = "energy"
    meter_password_file: Path | None = None
    meter_ca_file: Path | None = None
    meter_calibration: Path | None = None
    meter_root: Path = Path("/")
    meter_idle_s: Annotated[float, Meta(ge=0, le=600)] = 10.0

    @property
    def memory_budget_bytes(self) -> int | None:
        """The most that the process may take; None where it is not set."""
        return None if self.memory_budget is None else parse_size(self.memory_budget)

    @property
    def official(self) -> OrtTrainingUse:
        """Whether the engine is the official one."""
        uses: dict[str, OrtTrainingUse] = {"portable": "off", "auto": "auto", "official": "require"}
        return uses[self.engine]

    def __repr__(self) -> str:
        """Everything but the token."""
        shown = (f"{name}={'***' if name == 'token' else repr(getattr(self, name))}" for name in self.__struct_fields__)
        return f"{type(self).__name__}({', '.join(shown)})"


def read(path: Path) -> AgentConfig:
    """The configuration in a file, its paths made absolute. Raises ConfigInvalid.

    Logs a warning if others may read the file, because the token is in it.
    """
    try:
        with path.open("rb") as file:
            mode = path.stat().st_mode
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as exc:
        raise ConfigInvalid(f"{path} cannot be read: {exc.strerror}") from exc
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigInvalid(f"{path} is over {MAX_CONFIG_BYTES} bytes: it is not an agent's configuration")
    try:
        config = msgspec.toml.decode(data, type=AgentConfig, dec_hook=_path)
    except msgspec.ValidationError as exc:
        raise ConfigInvalid(_sentence(path, str(exc))) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ConfigInvalid(f"{path} is not TOML: {exc}") from exc
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        _log.warning("%s holds the device's token and others may read it: chmod 600 %s", path, path)
    folder = path.resolve().parent
    return msgspec.structs.replace(
        config,
        data=folder / config.data,
        state=folder / config.state,
        ca_file=_beside(folder, config.ca_file),
        meter_password_file=_beside(folder, config.meter_password_file),
        meter_ca_file=_beside(folder, config.meter_ca_file),
        meter_calibration=_beside(folder, config.meter_calibration),
        meter_root=folder / config.meter_root,
    )


def _beside(folder: Path, path: Path | None) -> Path | None:
    return None if path is None else folder / path


def _path(_kind: type, value: object) -> Path:
    """The one type here that msgspec does not know."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("Expected a path")
    return Path(value)


def _sentence(path: Path, problem: str) -> str:
    """What msgspec says, with the key in front where it names one by its path `$.key`."""
    where = _KEY.search(problem)
    if where is None or not where.group(1):
        return f"{path}: {problem}"
    return f"{path}, key {where.group(1)}: {problem[: where.start()].removesuffix(' - at ')}"
