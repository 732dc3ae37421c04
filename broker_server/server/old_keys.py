"""Keys of server.toml and of experiments as they were before tables: read for one version, each with a sentence.

Keys stood flat, and the flags were named like them, so the setting of an old key is the one whose flag has its name;
RENAMED has those whose name has changed, too. With the next version this module goes.
"""

# coverage: every branch

import argparse
import logging
from collections.abc import Iterable, Sequence

from devices.cli.settings import Setting, Tree, put

RENAMED = {
    "local_epochs": "training.epochs",
    "merging": "training.gradient_combination",
    "choice": "grouping.method",
    "stems": "local_stems",
    "general": "split_learning.encoder",
    "general_precision": "split_learning.precision",
    "general_parts": "split_learning.parts",
    "general_devices": "split_learning.devices",
    "general_idle_s": "split_learning.idle_s",
    "general_threads": "split_learning.threads",
    "general_provider": "split_learning.provider",
    "official_python": "ort_training.python",
    "official_limit_s": "ort_training.limit_s",
    "aggregation": "aggregation.rule",
}
"""The setting of an old key whose name has changed."""
WORDS = {
    ("choice", "worth"): "training_cost",
    ("stems", "own"): True,
    ("stems", "shared"): False,
    ("general", "host"): "server",
}
"""Old keys' values that are called something else today."""
_MOVED = {"local_epochs", "seed", "probe", "probe_every", "merging"}
"""Keys that stood in the table [training]."""
_log = logging.getLogger(__name__)


def renewed(source: str, tree: Tree, settings: Sequence[Setting]) -> Tree:
    """Return a file's keys with the old ones among them at their places of today, and log a sentence for each."""
    by_key = {each.key: each for each in settings}
    by_flag = {each.flag.removeprefix("--").replace("-", "_"): each for each in settings}
    tables = {each.path[0] for each in settings if each.table}
    made: Tree = {}

    def move(old: str, value: object, shown: str) -> bool:
        found = by_key[RENAMED[old]] if old in RENAMED else by_flag.get(old)
        if found is None:
            return False
        _log.warning("%s: %s is called %s now; the old key is read for one more version", source, shown, found.key)
        put(made, found.path, WORDS.get((old, value), value) if isinstance(value, str) else value)
        return True

    for name, value in tree.items():
        if name == "training" and isinstance(value, dict):
            for key, each in value.items():
                if key not in _MOVED or not move(key, each, f"training.{key}"):
                    put(made, ("training", key), each)
        elif name in by_key or (name in tables and isinstance(value, dict)) or not move(name, value, name):
            made[name] = _joined(made.get(name), value)
    if tree.get("aggregation") == "cagrad" and "cagrad_c" in made.get("training", {}):  # one key was for both
        put(made, ("aggregation", "cagrad_c"), made["training"]["cagrad_c"])
    return made


def _joined(there: object, value: object) -> object:
    """Return a table with the keys that were moved into it before."""
    return {**there, **value} if isinstance(there, dict) and isinstance(value, dict) else value


def add_old_flags(parser: argparse.ArgumentParser, settings: Iterable[Setting]) -> None:
    """Take the flags of before as well, without showing them."""
    by_key = {each.key: each for each in settings}
    taken = {each.flag for each in by_key.values()}
    for old, key in RENAMED.items():
        if (flag := f"--{old.replace('_', '-')}") not in taken:
            parser.add_argument(flag, action=_OldFlag, old=old, setting=by_key[key], help=argparse.SUPPRESS)


class _OldFlag(argparse.Action):
    """Stores the value of today's flag, and logs its name."""

    def __init__(self, *, old: str, setting: Setting, **options: object) -> None:
        super().__init__(**options, default=argparse.SUPPRESS)  # type: ignore[arg-type]
        self._old, self._setting = old, setting
        self.dest = setting.key

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, text: object, _flag: str | None = None
    ) -> None:
        """Parse the value as today's flag does."""
        setting = self._setting
        value = WORDS.get((self._old, str(text)))
        try:
            setattr(namespace, setting.key, setting.parse(str(text)) if value is None else value)
        except argparse.ArgumentTypeError as exc:
            parser.error(f"argument {self.option_strings[0]}: {exc}")
        _log.warning("%s is called %s now; it is taken for one more version", self.option_strings[0], setting.flag)
