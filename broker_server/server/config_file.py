"""server.toml: the keys of ServerConfig in a file. Each has a default; a flag of the command line overrides its key.

federation = "home"
bundle = "bundle"             # paths are relative to this file
merged_rounds = 70
groups = 3

[training]                    # how devices train; these keys may also stand above
optimizer = "adamw"
lr = 1e-3

[updates]                     # how devices send what they trained: fp32, fp16, int8, topk, or auto, by the link's speed
scheme = "int8"               # above, or as a flag: update_scheme
"""

import os
import re
import stat
from pathlib import Path
from typing import Any

import msgspec

from broker_server.server.config import ConfigInvalid, ServerConfig, check

MAX_CONFIG_BYTES = 64 * 1024
PATHS = ("state", "bundle", "certificate", "key", "official_python")
"""The keys that are paths."""
_TRAINING = (
    "local_epochs",
    "batch",
    "lr",
    "momentum",
    "weight_decay",
    "seed",
    "probe",
    "probe_every",
    "optimizer",
    "beta2",
    "epsilon",
    "clip_norm",
    "proximal_mu",
    "weighting",
    "task_weights",
    "gradnorm_alpha",
    "weighting_lr",
    "merging",
    "cagrad_c",
)
TABLES = {
    "training": {key: key for key in _TRAINING},
    "updates": {"scheme": "update_scheme", "topk_fraction": "topk_fraction"},
}
"""The tables of the file: which key each of their keys stands for."""
_KEY = re.compile(r"`\$\.?([^`]*)`")


def read(path: Path | None, **flags: object) -> ServerConfig:
    """The configuration in a file, or the default one, with `flags` that are not None over it.

    Paths in the file are relative to it, those of flags to the working folder. Raises ConfigInvalid.
    """
    keys: dict[str, object] = {}
    if path is not None:
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise ConfigInvalid(f"{path} is not a file")
            data = path.read_bytes()[: MAX_CONFIG_BYTES + 1]
            keys = msgspec.toml.decode(data)
        except OSError as exc:
            raise ConfigInvalid(f"{path} cannot be read: {exc.strerror}") from exc
        except (msgspec.DecodeError, UnicodeDecodeError, ImportError) as exc:
            raise ConfigInvalid(f"{path} is not TOML: {exc}") from exc
        keys = _flat(path, keys)
        for key in PATHS:
            if isinstance(keys.get(key), str):
                keys[key] = os.path.normpath(path.resolve().parent / str(keys[key]))
    given = {
        name: str(value) if isinstance(value, Path) else value for name, value in flags.items() if value is not None
    }
    try:
        config = msgspec.convert({**keys, **given}, ServerConfig, dec_hook=_decode)
    except msgspec.ValidationError as exc:
        raise ConfigInvalid(_sentence(path, str(exc))) from exc
    check(config)
    return config


def _flat(path: Path, keys: dict[str, Any]) -> dict[str, Any]:
    """The keys with those of the file's tables among them."""
    for name, known in TABLES.items():
        table = keys.pop(name, {})
        if not isinstance(table, dict):
            raise ConfigInvalid(f"{path}: {name}: a table of keys is needed")
        if odd := sorted(table.keys() - known.keys()):
            raise ConfigInvalid(f"{path}: {name}.{odd[0]}: no key of this name may stand there")
        found = {known[key]: value for key, value in table.items()}
        if twice := sorted(found.keys() & keys.keys()):
            raise ConfigInvalid(f"{path}: {twice[0]}: it is there twice, in the table [{name}] and above it")
        keys |= found
    return keys


def _decode(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError("Expected a path as `str`")


def _sentence(path: Path | None, problem: str) -> str:
    where = _KEY.search(problem)
    source = f"{path}: " if path else ""
    if where is None or not where.group(1):
        return f"{source}{problem}"
    return f"{source}{where.group(1)}: {problem[: where.start()].removesuffix(' - at ')}"
