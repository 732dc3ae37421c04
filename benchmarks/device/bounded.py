"""Some rounds of training as the agent does them, within a memory budget, as a process that may be under a hard limit.

`python -m benchmarks.device.bounded BUNDLE DATA STATE BUDGET BATCH ROUNDS` prints JSON: for each round what was
planned, what was predicted and what was measured; or why the device declined.
"""

import json
import sys
from pathlib import Path

import msgspec

from edge_runtime.agent.work import WorkRefused
from edge_runtime.training.worker import LocalWorker
from edge_runtime.wire import manifest as wire
from edge_runtime.wire.blob import BlobStore, describe
from edge_runtime.wire.messages import Plan, Training
from edge_runtime.wire.sizes import parse_size
from edge_runtime.wire.tensors import unpack


def main(arguments: list[str]) -> None:
    bundle, data, state = map(Path, arguments[:3])
    budget, batch, rounds = parse_size(arguments[3]), int(arguments[4]), int(arguments[5])
    worker = LocalWorker(data, state, memory_budget_bytes=budget, checkpoint_s=1e6)
    manifest = wire.read_folder(bundle)
    store = BlobStore(state / "blobs")
    for name in manifest.graphs:
        store.add(wire.graph_path(bundle, name).read_bytes())
    weights = unpack(manifest.table, (bundle / wire.WEIGHTS).read_bytes())
    blob = describe(b"weights")
    found = []
    for number in range(1, rounds + 1):
        plan = Plan(
            work="train",
            round=number,
            phase="merged",
            group="+".join(manifest.task_names),
            tasks=manifest.task_names,
            bundle=blob,
            signature="0" * 128,
            weights=blob,
            training=Training(
                epochs=1,
                first_epoch=number,
                batch=batch,
                lr=0.001,
                momentum=0.9,
                weight_decay=1e-4,
                seed=0,
                probe_every=0,
            ),
            data_split=None,
            deadline_s=6000.0,
        )
        try:
            result = worker.train(plan, manifest, store, weights, lambda *_: None)
        except WorkRefused as refusal:
            print(json.dumps({"declined": str(refusal)}))
            return
        found.append({"peak_bytes": result.peak_rss_bytes, **msgspec.to_builtins(result.memory)})
    print(json.dumps({"rounds": found}))


if __name__ == "__main__":
    main(sys.argv[1:])
