"""One round of training as the agent does it, to be killed: with a checkpoint after every step, and a pause to hit.

`python -m benchmarks.device.round BUNDLE DATA STATE PLAN OUT PAUSE_S` prints each step; OUT gets the weights, the
losses and the affinities, in bytes that are the same for the same training.
"""

import sys
import time
from pathlib import Path

import msgspec

from edge_runtime.agent.work import DownloadedPlan
from edge_runtime.wire import bundle_folder
from edge_runtime.wire.blob import BlobStore
from edge_runtime.wire.messages import Plan, WorkStage
from edge_runtime.wire.tensors import unpack
from edge_runtime.worker import LocalWorker


def main(arguments: list[str]) -> None:
    *paths, pause = arguments
    bundle, data, state, plan, out = map(Path, paths)
    pause_s = float(pause)
    manifest = bundle_folder.read_folder(bundle)
    store = BlobStore(state / "blobs")
    for name in manifest.graphs:
        store.add(bundle_folder.graph_path(bundle, name).read_bytes())
    weights = unpack(manifest.table, (bundle / bundle_folder.WEIGHTS).read_bytes())

    def report(stage: WorkStage, done: int, _: int) -> None:
        if stage == "train" and done:
            print(done, flush=True)
            time.sleep(pause_s)

    worker = LocalWorker(data, state, 1, checkpoint_s=0)
    downloaded = DownloadedPlan(
        plan=msgspec.json.decode(plan.read_bytes(), type=Plan), manifest=manifest, weights=weights, graphs=store
    )
    result = worker.train(downloaded, report)
    out.write_bytes(result.weights.tobytes() + msgspec.json.encode([result.train_loss, result.affinity]))


if __name__ == "__main__":
    main(sys.argv[1:])
