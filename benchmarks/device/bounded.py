"""Some rounds as the agent does them, within a memory budget, as a process that may be under a hard limit.

`python -m benchmarks.device.bounded BUNDLE DATA STATE BUDGET BATCH ROUNDS [PROBE SCHEME]` prints JSON: for each round
what was planned, what was predicted and what was measured; or why the device declined. The second batch of a round is
probed by PROBE, and its update is written by SCHEME with the residual of the round before (fp32).
"""

import json
import sys
from pathlib import Path

import msgspec

from devices.cli.values import parse_size
from edge_runtime.agent.carried_state import CarriedState
from edge_runtime.agent.work import DownloadedPlan, WorkRefused
from edge_runtime.training.process_memory import peak_rss_bytes
from edge_runtime.wire import bundle_folder
from edge_runtime.wire.blob import BlobStore, describe
from edge_runtime.wire.compression import Updates, choose, encode
from edge_runtime.wire.messages import Plan, Training
from edge_runtime.wire.tensors import unpack
from edge_runtime.worker import LocalWorker


def main(arguments: list[str]) -> None:
    bundle, data, state = map(Path, arguments[:3])
    budget, batch, rounds = parse_size(arguments[3]), int(arguments[4]), int(arguments[5])
    probe, scheme = arguments[6:8] or (None, "fp32")
    updates = msgspec.convert({"scheme": scheme}, Updates)
    worker = LocalWorker(data, state, memory_budget_bytes=budget, checkpoint_s=1e6)
    manifest = bundle_folder.read_folder(bundle)
    store = BlobStore(state / "blobs")
    for name in manifest.graphs:
        store.add(bundle_folder.graph_path(bundle, name).read_bytes())
    weights = unpack(manifest.table, (bundle / bundle_folder.WEIGHTS).read_bytes())
    blob = describe(b"weights")
    residuals = CarriedState(state / "residual")
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
            training=msgspec.convert(
                {
                    "epochs": 1,
                    "first_epoch": number,
                    "batch": batch,
                    "lr": 0.001,
                    "momentum": 0.9,
                    "weight_decay": 1e-4,
                    "seed": 0,
                    "probe_every": 2 if probe else 0,
                    "probe": probe or "exact",
                },
                Training,
            ),
            updates=updates,
            data_split=None,
            deadline_s=6000.0,
        )
        try:
            result = worker.train(
                DownloadedPlan(plan=plan, manifest=manifest, weights=weights, graphs=store), lambda *_: None
            )
        except WorkRefused as refusal:
            print(json.dumps({"declined": str(refusal)}))
            return
        file, residual = encode(
            manifest.table,
            received=weights,
            trained=result.weights,
            residual=residuals.load(manifest.table.parameters, number - 1),
            scheme=choose(updates, None),
            topk_fraction=updates.topk_fraction,
        )
        residuals.save(manifest.table.parameters, residual, number)
        probed = 0 if result.affinity is None else result.affinity.count
        peak = {"peak_bytes": peak_rss_bytes(), "update_bytes": len(file), "probed": probed}
        found.append({**peak, **msgspec.to_builtins(result.memory)})
    print(json.dumps({"rounds": found}))


if __name__ == "__main__":
    main(sys.argv[1:])
