"""Counts what signatures and TLS take in a process: on PYTHONPATH it is imported before everything else.

CPU seconds and number of the calls, and the CPU seconds of the process, are written to the folder in MAS_COST when the
process ends.
"""

import atexit
import functools
import importlib.abc
import importlib.util
import json
import os
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

SIGNING = "edge_runtime.wire.envelope"
WRAPPED = ("seal_command", "open_command", "seal_event", "check_event")
_found: dict[str, list[float]] = {}
_lock = threading.Lock()


def _timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def run(*args: Any, **more: Any) -> Any:
        begun_s = time.thread_time()
        try:
            return call(*args, **more)
        finally:
            spent_s = time.thread_time() - begun_s
            with _lock:
                each = _found.setdefault(name, [0.0, 0])
                each[0] += spent_s
                each[1] += 1

    return run


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the functions of the module of envelopes when it is imported."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname != SIGNING:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            for function in WRAPPED:
                setattr(module, function, _timed(f"sign.{function}", getattr(module, function)))

        setattr(spec.loader, "exec_module", exec_module)  # noqa: B010
        return spec


def _write() -> None:
    found = {"argv": sys.argv, "cpu_s": time.process_time(), "calls": _found}
    (Path(os.environ["MAS_COST"]) / f"{os.getpid()}.json").write_text(json.dumps(found))


if os.environ.get("MAS_COST"):
    sys.meta_path.insert(0, _Finder())
    for kind, methods in ((ssl.SSLObject, ("read", "write")), (ssl.SSLSocket, ("recv", "send"))):
        for method in ("do_handshake", *methods):
            setattr(kind, method, _timed(f"tls.{method}", vars(kind)[method]))
    atexit.register(_write)
