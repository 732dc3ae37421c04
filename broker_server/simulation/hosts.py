"""Where a simulation's work is done: worker processes of this machine, or of a Ray cluster."""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any


class ClusterUnavailable(RuntimeError):
    """There is no Ray, or no cluster where one was said to be."""


@contextlib.contextmanager
def local_hosts(workers: int) -> Iterator[Executor]:
    """So many worker processes of this machine."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            yield pool
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
def ray_hosts(address: str) -> Iterator[Executor]:
    """The processors of a Ray cluster; `address` is `auto`, or ray://host:port. Raises ClusterUnavailable.

    Data sets and the folder of the results must be at the same paths on all nodes, as on a shared file system.
    """
    try:
        import ray
    except ImportError as exc:
        raise ClusterUnavailable("Ray is not installed: pip install '.[cluster]'") from exc
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as exc:
        raise ClusterUnavailable(f"no Ray cluster at {address!r}: {exc}") from exc
    try:
        yield _RayExecutor(ray)
    finally:
        ray.shutdown()


class _RayExecutor(Executor):
    """Each call is a task on one processor of the cluster."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._remote: dict[Callable[..., Any], Any] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Run `fn` somewhere."""
        if fn not in self._remote:
            self._remote[fn] = self._ray.remote(num_cpus=1, max_retries=3)(fn)
        future: Future[Any] = self._remote[fn].remote(*args, **kwargs).future()
        return future
