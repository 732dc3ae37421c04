"""The other side of the benchmarks: plain PyTorch training the same model on the same batches.

Prints JSON: train_loss by task, step_ms_median, peak_rss_bytes.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch

from edge_runtime.datasets.dataset import Dataset, convert
from edge_runtime.training.process_memory import peak_rss_bytes
from edge_runtime.training.schedule import batches, learning_rate, order
from edge_runtime.wire.graph_names import input_of
from export.model import tensors
from export.model_file import build_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--threads", type=int, help="default: one for each core")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    model = build_model(args.model, seed=0)
    parameters = [p for module in model.parts().values() for p in module.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=args.lr, momentum=0.9, weight_decay=1e-4)
    split = Dataset.open(args.data).train
    wanted = {t: "int64" if model.example_targets[t].dtype == torch.int64 else "float32" for t in model.tasks}
    share = 1 / math.sqrt(len(model.tasks))
    steps_ms = []
    sums: dict[str, float] = {}
    for epoch in range(args.epochs):
        sums = dict.fromkeys(model.tasks, 0.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args.lr, epoch, args.epochs)
        for chosen in batches(order(0, epoch, len(split)), args.batch):
            started = time.perf_counter()
            inputs, labels = split.batch(chosen, model.tasks)
            optimizer.zero_grad()
            z = model.encode({name: torch.from_numpy(inputs[input_of(name)]) for name in model.inputs})
            for value in tensors(z):
                if value.requires_grad:
                    value.register_hook(lambda gradient: gradient * share)  # type: ignore[no-untyped-call]
            total = torch.zeros(())
            for task in model.tasks:
                target = torch.from_numpy(convert(labels[task], wanted[task], split.factors.get(task)))  # type: ignore[arg-type]
                loss = model.losses[task](model.heads[task](z), target)
                total = total + loss
                sums[task] += loss.item() * len(chosen)
            torch.autograd.backward(total)
            optimizer.step()
            steps_ms.append(1000 * (time.perf_counter() - started))
    print(
        json.dumps(
            {
                "train_loss": {task: value / len(split) for task, value in sums.items()},
                "step_ms_median": statistics.median(steps_ms),
                "peak_rss_bytes": peak_rss_bytes(),
            }
        )
    )


if __name__ == "__main__":
    main()
