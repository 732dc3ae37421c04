"""Downloads of a plan's files: its manifest, signed by the server, then the graphs and the weights that go with it.

Rules
- Nothing is allocated, on disk or in memory, before its size was compared with a limit.
- A manifest is used only if the pinned key signed it, and only for the tasks that the plan names.
- A file that is here is used only after its SHA-256 was checked once in this process: a power cut can leave a file
  with the right name and other bytes. A file that fails the check is downloaded again.
- Manifests, graphs and the first values of parts that are never sent are kept for reuse; the least recently used ones
  are dropped when together they pass the limit. Weights are kept for the present plan alone.

All chunks of a plan's blobs, the graphs too, have the length that the plan's `bundle` states.
"""

import os
from collections.abc import Collection, Iterable
from typing import Literal

import numpy as np

from edge_runtime.agent.limits import NO_LIMITS, PlanLimits
from edge_runtime.agent.missing import MissingBlob
from edge_runtime.agent.state import State
from edge_runtime.agent.work import WorkRefused
from edge_runtime.wire import manifest as manifests
from edge_runtime.wire import signing
from edge_runtime.wire.blob import Assembly, Blob, BlobStore
from edge_runtime.wire.errors import BlobInvalid, BundleInvalid, SignatureInvalid, TensorsInvalid
from edge_runtime.wire.files import digest_file
from edge_runtime.wire.manifest import MAX_MANIFEST_BYTES, Manifest
from edge_runtime.wire.messages import Plan
from edge_runtime.wire.personal import OwnParts, held_table, sent_table, unsent_parts
from edge_runtime.wire.tensors import MAX_ENTRY_BYTES, TensorTable, Vector, replaced, unpack

ChunkOutcome = Literal["kept", "complete", "unrequested", "corrupt"]


def check_plan(plan: Plan, max_bytes: int) -> None:
    """Raise WorkRefused if the plan's files are larger than `max_bytes`."""
    if plan.bundle.size_bytes > MAX_MANIFEST_BYTES:
        raise WorkRefused(
            "bundle", f"the manifest has {plan.bundle.size_bytes} bytes, at most {MAX_MANIFEST_BYTES} are allowed"
        )
    total = sum(blob.size_bytes for blob in plan.files)
    if total > max_bytes:
        raise WorkRefused(
            "bundle",
            f"manifest and weights have {total} bytes, this device downloads at most {max_bytes} (max_download_bytes)",
        )


def check_manifest(data: bytes, plan: Plan, server_key: str, max_bytes: int, *, ort_training: bool = False) -> Manifest:
    """Return the manifest in `data`. Raises WorkRefused unless it is signed and fits the plan and the limit.

    For split learning it is the device's part of the manifest: stem and heads.
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
            raise WorkRefused(
                "bundle", "the model has no stem, so its encoder cannot be computed by the encoder server"
            )
        manifest = manifest.local()
    try:
        table = sent_table(manifest.table, plan.personal)
        if plan.held is not None:
            held_table(manifest.table, plan.held)
    except BundleInvalid as exc:
        raise WorkRefused("bundle", str(exc)) from exc
    header_bytes = plan.weights.size_bytes - 4 * table.size
    if not 8 <= header_bytes <= 8 + MAX_ENTRY_BYTES * (1 + len(table.tensors)):
        raise WorkRefused(
            "bundle", f"the weights have {plan.weights.size_bytes} bytes, the manifest's tensors {4 * table.size}"
        )
    needed = manifest.needs(ort_training=ort_training) | {blob.digest: blob.size_bytes for blob in plan.files}
    total = sum(needed.values())
    if total > max_bytes:
        raise WorkRefused(
            "bundle", f"the plan needs {total} bytes, this device downloads at most {max_bytes} (max_download_bytes)"
        )
    return manifest


def graph_blobs(manifest: Manifest, chunk_bytes: int, *, ort_training: bool = False) -> tuple[Blob, ...]:
    """Return the manifest's graph files as blobs, each once, in the order of their digests."""
    sizes = manifest.needs(ort_training=ort_training)
    return tuple(
        Blob(digest=digest, size_bytes=size, chunk_bytes=chunk_bytes) for digest, size in sorted(sizes.items())
    )


def surplus(stored: Iterable[tuple[float, int, str]], keep: Collection[str], max_bytes: int) -> list[str]:
    """Return the digests to drop of `stored`, (time of last use, bytes, digest), to leave at most `max_bytes`.

    The least recently used go first; those in `keep` stay, however large.
    """
    stored = sorted(stored)
    excess = sum(size for _, size, _ in stored) - max_bytes
    dropped = []
    for _, size, digest in stored:
        if excess > 0 and digest not in keep:
            dropped.append(digest)
            excess -= size
    return dropped


class PlanDownloads:
    """The blobs of one plan after another, in the stores of a state folder."""

    def __init__(
        self,
        state: State,
        *,
        server_key: str,
        max_bytes: int,
        ort_training: bool = False,
        limits: PlanLimits = NO_LIMITS,
    ) -> None:
        """With `ort_training` the graphs include the ONNX Runtime training artifacts."""
        self._blobs, self._weights = state.blobs, state.weights
        self.server_key = server_key
        self._max_bytes = max_bytes
        self._ort_training = ort_training
        self._limits = limits
        self._assemblies: dict[str, Assembly] = {}
        self._verified: set[str] = set()

    def missing(self, plan: Plan) -> tuple[MissingBlob, ...]:
        """Return the plan's blobs that are not here: at first the manifest, then graphs and weights, then none.

        Ends the transfers of any other plan and drops the files that only closed rounds used. Raises WorkRefused.
        """
        self._assemblies.clear()
        check_plan(plan, self._max_bytes)
        try:
            return self._missing_of(plan)
        except OSError as exc:
            raise WorkRefused("error", f"the state folder cannot be used: {exc.strerror}") from exc

    def accept(self, digest: str, index: int, data: bytes | memoryview) -> ChunkOutcome:
        """Store a run of chunks that arrived, from chunk `index` on.

        `corrupt` means that the blob was complete, but with another digest, and that all of it was dropped.
        Raises BlobInvalid for an index or length that is not the blob's, and WorkRefused if it cannot be written.
        """
        assembly = self._assemblies.get(digest)
        if assembly is None:
            return "unrequested"
        blob = assembly.blob
        try:
            is_complete = assembly.accept(index, data)
        except BlobInvalid:
            blob.run_at(index, len(data))
            return "corrupt"
        except OSError as exc:
            raise WorkRefused(
                "error", f"a part of a file cannot be written to the state folder: {exc.strerror}"
            ) from exc
        if not is_complete:
            return "kept"
        self.stop(digest)
        self._verified.add(digest)
        return "complete"

    def stop(self, digest: str) -> None:
        """End a blob's transfer; its chunks stay until another plan's files are checked."""
        self._assemblies.pop(digest, None)

    def load(self, plan: Plan) -> tuple[Manifest, Vector]:
        """Return the manifest and the weights (D,) of a plan none of whose files is missing. Raises WorkRefused.

        Parts that are never sent have their first values.
        """
        try:
            manifest = self._check(plan)
            table, sent = manifest.table, sent_table(manifest.table, plan.personal)
            received = unpack(sent, self._weights.read(plan.weights.digest))
            if not isinstance(plan.personal, OwnParts) or sent.size == table.size:
                return manifest, received
            own = table.select(unsent_parts(table, plan.personal))
            start = unpack(own, self._blobs.read(plan.personal.start.digest))
            empty = np.empty(table.size, np.float32)
            return manifest, replaced(table, replaced(table, empty, own, start), sent, received)
        except TensorsInvalid as exc:
            raise WorkRefused("bundle", f"the weights of round {plan.round}: {exc}") from exc
        except (BlobInvalid, OSError) as exc:
            raise WorkRefused("error", f"the plan's files cannot be read: {exc}") from exc

    def centre(self, plan: Plan, table: TensorTable, weights: Vector) -> Vector | None:
        """Return what a plan holds weights (D,) to: these, with the centre in place of what is held; None for nothing.

        Raises WorkRefused.
        """
        if plan.held is None:
            return None
        try:
            held = held_table(table, plan.held)
            return replaced(table, weights, held, unpack(held, self._weights.read(plan.held.centre.digest)))
        except TensorsInvalid as exc:
            raise WorkRefused("bundle", f"the centre of round {plan.round}: {exc}") from exc
        except (BlobInvalid, OSError) as exc:
            raise WorkRefused("error", f"the plan's files cannot be read: {exc}") from exc

    def _missing_of(self, plan: Plan) -> tuple[MissingBlob, ...]:
        own = (plan.weights,) if plan.held is None else (plan.weights, plan.held.centre)
        self._keep_only(self._weights, {blob.digest for blob in own})
        bundle = self._begin_missing(self._blobs, [plan.bundle])
        if bundle:
            self._drop_partial({plan.bundle.digest})
            return bundle
        try:
            manifest = self._check(plan)
        except WorkRefused:
            self._blobs.discard(plan.bundle.digest)
            raise
        graphs = graph_blobs(manifest, plan.bundle.chunk_bytes, ort_training=self._ort_training)
        if isinstance(plan.personal, OwnParts):
            graphs += (plan.personal.start,)
        used = {plan.bundle.digest, *(blob.digest for blob in graphs)}
        self._drop_partial(used)
        missing = self._begin_missing(self._blobs, graphs) + self._begin_missing(self._weights, own)
        if not missing:
            self._drop_surplus(used)
        return missing

    def _check(self, plan: Plan) -> Manifest:
        data = self._blobs.read(plan.bundle.digest)
        manifest = check_manifest(data, plan, self.server_key, self._max_bytes, ort_training=self._ort_training)
        if fault := self._limits.manifest_fault(plan, manifest):
            raise WorkRefused("limits", fault)
        return manifest

    def _begin_missing(self, store: BlobStore, blobs: Iterable[Blob]) -> tuple[MissingBlob, ...]:
        missing = []
        for blob in blobs:
            if self._is_intact(store, blob):
                continue
            assembly = Assembly(store, blob)
            self._assemblies[blob.digest] = assembly
            missing.append(MissingBlob(blob, assembly.missing()))
        return tuple(missing)

    def _is_intact(self, store: BlobStore, blob: Blob) -> bool:
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
        stored = []
        for digest in self._blobs.digests():
            path = self._blobs.path(digest)
            if digest in used:
                os.utime(path)
            status = path.stat()
            stored.append((status.st_mtime, status.st_size, digest))
        for digest in surplus(stored, used, self._max_bytes):
            self._blobs.discard(digest)
            self._verified.discard(digest)
