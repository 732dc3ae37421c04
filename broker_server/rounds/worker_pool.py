"""Where work is done beside the process that asks for it: worker processes of this machine, or of a Ray cluster."""

import contextlib
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

RETRIES = 3
REACH_S = 5.0


class ClusterUnavailable(RuntimeError):
    """There is no Ray, or no cluster where one was said to be."""


class WorkerLost(RuntimeError):
    """What did the work is gone. What has been done is kept."""


@dataclass(frozen=True, kw_only=True)
class WorkerPool:
    """Where work is done, and how much of it at once."""

    executor: Executor
    processors: int


@contextlib.contextmanager
def local_workers(workers: int) -> Iterator[WorkerPool]:
    """Yield worker processes of this machine. Raises WorkerLost."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            yield WorkerPool(executor=pool, processors=workers)
        except BrokenProcessPool as exc:
            raise WorkerLost("a worker process was ended from outside, perhaps for want of memory") from exc
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """Let this worker process end when the simulation's has ended, however that was."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def ray_workers(address: str) -> Iterator[WorkerPool]:
    """Yield the processors of a Ray cluster; `address` is `auto`, or host:port.

    Raises ClusterUnavailable, WorkerLost.

    The nodes have this software, and data sets and the folder of the results at the same paths, as on a shared file
    system. Work whose process or node dies is done again, three times; then the cluster counts as lost.
    """
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as exc:
        raise ClusterUnavailable("Ray is not installed: pip install '.[cluster]'") from exc
    _reach((os.environ.get("RAY_ADDRESS") or address) if address == "auto" else address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as exc:
        raise ClusterUnavailable(f"no Ray cluster at {address!r}: {exc}") from exc
    try:
        yield WorkerPool(executor=_RayExecutor(ray), processors=int(ray.cluster_resources().get("CPU", 1)))
    except RayTaskError as exc:
        raise exc.cause from exc  # what the work itself raised, as it would come from a process of this machine
    except RayError as exc:
        raise WorkerLost(f"the Ray cluster did not do its work: {exc}") from exc
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Ray waits a minute for a cluster that is not there, and then ends the process. Raises ClusterUnavailable."""
    host, colon, port = address.rpartition(":")
    if address == "auto":
        return
    if not colon or not port.isdecimal():
        raise ClusterUnavailable(f"no Ray cluster at {address!r}: an address is `auto` or host:port")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
    except (OSError, OverflowError) as exc:
        raise ClusterUnavailable(f"no Ray cluster at {address!r}: {exc}") from exc


class _RayExecutor(Executor):
    """Each call is a task on one processor of the cluster."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._remote: dict[Callable[..., Any], Any] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Run `fn` somewhere."""
        if fn not in self._remote:
            self._remote[fn] = self._ray.remote(num_cpus=1, max_retries=RETRIES)(fn)
        future: Future[Any] = self._remote[fn].remote(*args, **kwargs).future()
        return future
