"""Batches whose labels are all ignored, trained by the device's own loop beside PyTorch."""

import numpy as np
import pytest
import samples

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from edge_runtime.datasets.dataset import Split  # noqa: E402
from edge_runtime.datasets.fit import check_fits  # noqa: E402
from edge_runtime.training.engine import Engine  # noqa: E402
from edge_runtime.training.graph_cache import GraphCache  # noqa: E402
from edge_runtime.training.model import Model  # noqa: E402
from edge_runtime.training.schedule import batches, order  # noqa: E402
from edge_runtime.training.trainer import Trainer, evaluate  # noqa: E402
from edge_runtime.wire.manifest import Parity  # noqa: E402
from export import losses  # noqa: E402
from export.compile import compile_model, describe, named_tensors  # noqa: E402
from export.model import MultiTaskModel  # noqa: E402

pytestmark = pytest.mark.workstation

SETTINGS = samples.training(epochs=2, batch=2, lr=0.1, momentum=0.9, weight_decay=0.01, seed=5)


def made(loss):
    torch.manual_seed(0)
    return MultiTaskModel(
        encoder=nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh()),
        heads={"s": nn.Conv2d(6, 5, 1)},
        losses={"s": loss},
        example_input=torch.rand(4, 3, 8, 8),
        example_targets={"s": torch.randint(0, 5, (4, 4, 4))},
    )


def data():
    random = np.random.default_rng(1)
    labels = random.integers(0, 5, (6, 4, 4)).astype(np.uint8)
    labels[order(SETTINGS.seed, 0, 6)[:2]] = 255  # the first batch of the first epoch
    return Split(inputs={"image": random.random((6, 3, 8, 8), np.float32)}, labels={"s": labels})


def by_pytorch(model, split):
    parameters = [p for part in model.parts().values() for p in part.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=SETTINGS.lr, momentum=0.9, weight_decay=0.01)
    for epoch in range(SETTINGS.epochs):
        for chosen in batches(order(SETTINGS.seed, epoch, len(split)), SETTINGS.batch):
            inputs, labels = split.batch(chosen)
            optimizer.zero_grad()
            prediction = model.heads["s"](model.encoder(torch.from_numpy(inputs["image"])))
            model.losses["s"](prediction, torch.from_numpy(labels["s"].astype(np.int64))).backward()
            optimizer.step()
    return named_tensors(model)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(ignore_index=255), losses.cross_entropy(ignore=255)])
def test_batch_whose_labels_are_all_ignored_moves_weights_as_in_pytorch(loss, tmp_path):
    model, split = made(loss), data()
    compiled = compile_model(model)
    manifest = describe(compiled, "m", Parity(max_relative_error=0.0, worst="", compared=0))
    for name, graph in compiled.graphs.items():
        (tmp_path / name).write_bytes(graph)
    check_fits(manifest, split)
    device = Model(manifest, GraphCache(Engine()).of(manifest, lambda name, _: tmp_path / name), compiled.weights)
    done = Trainer(device, split).train(SETTINGS, np.zeros(len(compiled.weights), np.float32))
    assert np.isfinite(done.loss["s"])
    for name, expected in by_pytorch(model, split).items():
        np.testing.assert_allclose(compiled.table.views(device.weights)[name], expected.detach(), rtol=1e-4, atol=1e-6)
    nothing = Split(inputs=split.inputs, labels={"s": np.full((6, 4, 4), 255, np.uint8)})
    assert evaluate(device, nothing, 4) == {"s": 0.0}
    assert (
        device.loss("s", device.encode({"x": split.batch([0])[0]["image"]}), np.full((1, 4, 4), 255, np.int64)) == 0.0
    )
