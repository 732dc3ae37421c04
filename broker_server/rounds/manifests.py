"""The manifests of a bundle's groups, with the graphs and the ONNX Runtime training artifacts that they name."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from broker_server.rounds.journal import FederationJournal
from broker_server.rounds.ort_training_process import BuiltArtifacts
from edge_runtime.wire.blob import Blob, BlobStore, describe
from edge_runtime.wire.bundle_folder import WEIGHTS, artifact_path, graph_path
from edge_runtime.wire.manifest import TRAINING, Artifacts, File, Manifest, OrtTrainingArtifacts
from edge_runtime.wire.names import Tasks, group_id
from edge_runtime.wire.tensors import TensorTable, Vector, pack, transfer, unpack


class GroupManifests:
    """The groups of a bundle in `folder`, all of whose `tasks` are trained."""

    def __init__(
        self, bundle: Manifest, folder: Path, tasks: Tasks, *, journal: FederationJournal, blobs: BlobStore
    ) -> None:
        self.bundle = bundle
        self._journal = journal
        self._blobs = blobs
        self._initial = unpack(bundle.table, (folder / WEIGHTS).read_bytes())
        self._manifests: dict[Tasks, Manifest] = {}
        self._artifacts = self._complete_artifacts()
        names = bundle.group(tasks, bundle.weights).files
        self._graphs = tuple(blobs.add(graph_path(folder, name).read_bytes()) for name in names)
        if bundle.ort_training is not None:
            self._graphs += tuple(
                blobs.add(artifact_path(folder, group, TRAINING).read_bytes()) for group in bundle.ort_training.groups
            )

    @property
    def graphs(self) -> tuple[Blob, ...]:
        """The files of graphs, fixed tensors and ONNX Runtime training models, to be offered to devices."""
        made = (artifacts.training_model for artifacts in self._artifacts.values())
        return self._graphs + tuple(Blob(digest=file.digest, size_bytes=file.size_bytes) for file in made)

    @property
    def digests(self) -> set[str]:
        """The digests of all files that manifests name, but weights."""
        files = {file.digest for artifacts in self._artifacts.values() for file in artifacts.files.values()}
        return files | {blob.digest for blob in self.graphs}

    def of(self, tasks: Tasks) -> Manifest:
        """Return a group's manifest. It names the bundle's weights, so that it is the same in every phase and round.

        It changes when ONNX Runtime training artifacts have been made for the group: between two rounds.
        """
        if tasks in self._manifests:
            return self._manifests[tasks]
        table = self.bundle.group(tasks, self.bundle.weights).table
        initial = describe(pack(table, self.initial_weights(table)))
        manifest = self.bundle.group(tasks, File(digest=initial.digest, size_bytes=initial.size_bytes))
        if made := self._artifacts.get(group_id(tasks)):
            manifest = msgspec.structs.replace(
                manifest, ort_training=OrtTrainingArtifacts(groups={group_id(tasks): made})
            )
        return self._manifests.setdefault(tasks, manifest)

    def initial_weights(self, table: TensorTable) -> Vector:
        """Return the bundle's weights, laid out by a group's table."""
        return transfer(self.bundle.table, self._initial, table)

    def add_artifacts(self, built: Mapping[Tasks, BuiltArtifacts]) -> None:
        """Put ONNX Runtime training artifacts into the manifests of their groups from now on, and journal them."""
        for each in built.values():
            for path in each.files.values():
                self._blobs.add(path.read_bytes())
        self._journal.set_ort_training({group_id(tasks): each.artifacts for tasks, each in built.items()})
        self._artifacts = self._complete_artifacts()
        for tasks in built:
            self._manifests.pop(tasks, None)

    def add_problem(self, groups: Iterable[Tasks], problem: str) -> None:
        """Journal why groups have no ONNX Runtime training artifacts."""
        self._journal.set_ort_training({group_id(tasks): problem for tasks in groups})

    def _complete_artifacts(self) -> dict[str, Artifacts]:
        """Return the artifacts that were made in this federation and are here with all their files, by group."""
        made = {group: each for group, each in self._journal.ort_training().items() if isinstance(each, Artifacts)}
        return {
            group: each for group, each in made.items() if all(f.digest in self._blobs for f in each.files.values())
        }
