"""What a plan needs: its manifest, signed by the server, then the graphs and the weights that go with it.

Rules
- Nothing is allocated, on disk or in memory, before its size has been held against a cap.
- A manifest is used only if the pinned key signed it, and only for the tasks that the plan names.
- A file that is here is used only after its SHA-256 was checked once in this process: a power cut can leave a file
  with the right name and other bytes. A file that fails is fetched again.
- Manifests and graphs are kept for reuse, the least recently used ones dropped when together they pass the cap;
  weights are kept for the present plan alone.

All chunks of a plan's blobs, the graphs too, have the length that the plan's `bundle` says.
"""

import os
from collections.abc import Collection, Iterable
from typing import Literal

from edge_runtime.agent.state import State
from edge_runtime.agent.transfer import Wanted
from edge_runtime.agent.work import WorkRefused
from edge_runtime.wire import manifest as manifests
from edge_runtime.wire import signing
from edge_runtime.wire.blob import Assembly, Blob, BlobStore
from edge_runtime.wire.errors import BlobInvalid, BundleInvalid, SignatureInvalid, TensorsInvalid
from edge_runtime.wire.files import digest_file
from edge_runtime.wire.manifest import MAX_MANIFEST_BYTES, Manifest
from edge_runtime.wire.messages import Plan
from edge_runtime.wire.tensors import MAX_ENTRY_BYTES, Vector, unpack

Arrival = Literal["kept", "whole", "unasked", "corrupt"]


def check_plan(plan: Plan, max_bytes: int) -> None:
    """Raises WorkRefused if what the plan names is larger than may be fetched."""
    if plan.bundle.size_bytes > MAX_MANIFEST_BYTES:
        raise WorkRefused(
            "bundle", f"the manifest has {plan.bundle.size_bytes} bytes, at most {MAX_MANIFEST_BYTES} are allowed"
        )
    if plan.weights.size_bytes + plan.bundle.size_bytes > max_bytes:
        raise WorkRefused(
            "bundle",
            f"manifest and weights have {plan.weights.size_bytes + plan.bundle.size_bytes} bytes, this device fetches "
            f"at most {max_bytes} (max_download_bytes)",
        )


def check_manifest(data: bytes, plan: Plan, server_key: str, max_bytes: int, *, official: bool = False) -> Manifest:
    """The manifest in `data`, if it is the server's, fits the plan and the cap. Raises WorkRefused.

    For split training it is the part of the manifest that a device has.
    """
    try:
        signing.verify(server_key, data, plan.signature)
        manifest = manifests.decode(data)
    except (SignatureInvalid, BundleInvalid) as exc:
        raise WorkRefused("bundle", str(exc)) from exc
    if manifest.task_names != tuple(sorted(plan.tasks)):
        raise WorkRefused(
            "bundle", f"the manifest is for {', '.join(manifest.task_names)}, the plan for {', '.join(plan.tasks)}"
        )
    if plan.split_learning is not None:
        if manifest.embedding is None:
            raise WorkRefused("bundle", "the model has no stem, so its encoder cannot be computed elsewhere")
        manifest = manifest.local()
    header_bytes = plan.weights.size_bytes - 4 * manifest.table.size
    if not 8 <= header_bytes <= 8 + MAX_ENTRY_BYTES * (1 + len(manifest.tensors)):
        raise WorkRefused(
            "bundle",
            f"the weights have {plan.weights.size_bytes} bytes, the manifest's tensors {4 * manifest.table.size}",
        )
    total = sum(manifest.needs(ort_training=official).values()) + plan.weights.size_bytes + plan.bundle.size_bytes
    if total > max_bytes:
        raise WorkRefused(
            "bundle", f"the plan needs {total} bytes, this device fetches at most {max_bytes} (max_download_bytes)"
        )
    return manifest


def graph_blobs(manifest: Manifest, chunk_bytes: int, *, official: bool = False) -> tuple[Blob, ...]:
    """The manifest's graph files as blobs, each once, in the order of their digests."""
    sizes = manifest.needs(ort_training=official)
    return tuple(
        Blob(digest=digest, size_bytes=size, chunk_bytes=chunk_bytes) for digest, size in sorted(sizes.items())
    )


def surplus(held: Iterable[tuple[float, int, str]], keep: Collection[str], max_bytes: int) -> list[str]:
    """What to drop of `held`, (time of last use, bytes, digest), so that the rest is at most `max_bytes`.

    The least recently used go first; what is in `keep` stays, however large.
    """
    held = sorted(held)
    excess = sum(size for _, size, _ in held) - max_bytes
    dropped = []
    for _, size, digest in held:
        if excess > 0 and digest not in keep:
            dropped.append(digest)
            excess -= size
    return dropped


class Downloads:
    """The blobs of one plan after another, in the stores of a state folder."""

    def __init__(self, state: State, *, server_key: str, max_bytes: int, official: bool = False) -> None:
        """`official`: the device's engine wants the official training model too."""
        self._blobs, self._weights = state.blobs, state.weights
        self._server_key = server_key
        self._max_bytes = max_bytes
        self._official = official
        self._assemblies: dict[str, Assembly] = {}
        self._verified: set[str] = set()

    def wanted(self, plan: Plan) -> tuple[Wanted, ...]:
        """What the plan needs and is not here: at first the manifest, then graphs and weights, then nothing.

        Ends the transfers of any other plan and drops what only closed rounds used. Raises WorkRefused.
        """
        self._assemblies.clear()
        check_plan(plan, self._max_bytes)
        try:
            return self._wanted(plan)
        except OSError as exc:
            raise WorkRefused("error", f"the state folder cannot be used: {exc.strerror}") from exc

    def accept(self, digest: str, index: int, data: bytes | memoryview) -> Arrival:
        """Take a chunk that came.

        `corrupt` says that it made the blob complete, but with another digest, and that all of it was dropped.
        Raises BlobInvalid for a chunk that cannot be, and WorkRefused if it cannot be written.
        """
        assembly = self._assemblies.get(digest)
        if assembly is None:
            return "unasked"
        blob = assembly.blob
        try:
            whole = assembly.accept(index, data)
        except BlobInvalid:
            if index < blob.chunks and len(data) == blob.length(index):
                return "corrupt"
            raise
        except OSError as exc:
            raise WorkRefused("error", f"a chunk cannot be written to the state folder: {exc.strerror}") from exc
        if not whole:
            return "kept"
        self.stop(digest)
        self._verified.add(digest)
        return "whole"

    def stop(self, digest: str) -> None:
        """A blob's chunks are no longer wanted; what has come of it stays until another plan's needs are looked at."""
        self._assemblies.pop(digest, None)

    def load(self, plan: Plan) -> tuple[Manifest, Vector]:
        """The manifest and the weights of a plan that needs nothing more. Raises WorkRefused."""
        try:
            manifest = self._check(plan)
            return manifest, unpack(manifest.table, self._weights.read(plan.weights.digest))
        except TensorsInvalid as exc:
            raise WorkRefused("bundle", f"the weights of round {plan.round}: {exc}") from exc
        except (BlobInvalid, OSError) as exc:
            raise WorkRefused("error", f"the plan's files cannot be read: {exc}") from exc

    def _wanted(self, plan: Plan) -> tuple[Wanted, ...]:
        self._keep_only(self._weights, {plan.weights.digest})
        bundle = self._missing(self._blobs, [plan.bundle])
        if bundle:
            self._drop_partial({plan.bundle.digest})
            return bundle
        try:
            manifest = self._check(plan)
        except WorkRefused:
            self._blobs.discard(plan.bundle.digest)
            raise
        graphs = graph_blobs(manifest, plan.bundle.chunk_bytes, official=self._official)
        used = {plan.bundle.digest, *(blob.digest for blob in graphs)}
        self._drop_partial(used)
        wanted = self._missing(self._blobs, graphs) + self._missing(self._weights, [plan.weights])
        if not wanted:
            self._drop_surplus(used)
        return wanted

    def _check(self, plan: Plan) -> Manifest:
        data = self._blobs.read(plan.bundle.digest)
        return check_manifest(data, plan, self._server_key, self._max_bytes, official=self._official)

    def _missing(self, store: BlobStore, blobs: Iterable[Blob]) -> tuple[Wanted, ...]:
        wanted = []
        for blob in blobs:
            if self._intact(store, blob):
                continue
            assembly = Assembly(store, blob)
            self._assemblies[blob.digest] = assembly
            wanted.append(Wanted(blob, assembly.missing()))
        return tuple(wanted)

    def _intact(self, store: BlobStore, blob: Blob) -> bool:
        if blob.digest not in store:
            return False
        path = store.path(blob.digest)
        same_size = path.stat().st_size == blob.size_bytes
        if same_size and (blob.digest in self._verified or digest_file(path) == blob.digest):
            self._verified.add(blob.digest)
            return True
        store.discard(blob.digest)
        return False

    def _keep_only(self, store: BlobStore, keep: Collection[str]) -> None:
        for digest in list(store.digests()):
            if digest not in keep:
                store.discard(digest)
                self._verified.discard(digest)

    def _drop_partial(self, keep: Collection[str]) -> None:
        for digest in list(self._blobs.digests()):
            if digest not in self._blobs and digest not in keep:
                self._blobs.discard(digest)

    def _drop_surplus(self, used: Collection[str]) -> None:
        held = []
        for digest in self._blobs.digests():
            path = self._blobs.path(digest)
            if digest in used:
                os.utime(path)
            status = path.stat()
            held.append((status.st_mtime, status.st_size, digest))
        for digest in surplus(held, used, self._max_bytes):
            self._blobs.discard(digest)
            self._verified.discard(digest)
