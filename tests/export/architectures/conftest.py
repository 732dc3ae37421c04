"""Trains a multi-task model on the engine and in PyTorch, side by side."""

import itertools

import numpy as np
import pytest


class SideBySide:
    """A model compiled and loaded as a device does it, and a copy that PyTorch trains."""

    def __init__(self, model, folder):
        import copy

        from edge_runtime.engine import Engine
        from edge_runtime.training.model import GraphShelf, Model
        from edge_runtime.wire.manifest import Parity
        from export.compile import compile_model, describe

        self.compiled = compile_model(model)
        self.reference = copy.deepcopy(model)
        manifest = describe(self.compiled, "test", Parity(max_relative_error=0.0, worst="", compared=0))
        for name, data in self.compiled.graphs.items():
            (folder / f"{name}.onnx").write_bytes(data)
        self.engine = Engine()
        graphs = GraphShelf(self.engine).of(manifest, lambda name, _: folder / f"{name}.onnx")
        self.device = Model(manifest, graphs, self.compiled.weights)

    def train(self, steps, lr):
        """The losses of the engine, of PyTorch, and of PyTorch in float64, (steps, T) each."""
        import copy

        import torch

        from edge_runtime.training.optimizer import Sgd

        device = self.device
        sgd = Sgd(lr=lr, momentum=0.9, weight_decay=1e-4)
        velocity = np.zeros_like(device.gradient)
        targets = {task: y.numpy() for task, y in self.reference.example_targets.items()}
        exact = Eager(copy.deepcopy(self.reference), torch.float64, lr)
        eager = Eager(self.reference, torch.float32, lr)
        ours, theirs, exactly = [], [], []
        for step in range(steps):
            noise = torch.randn(self.reference.example_input.shape, generator=torch.Generator().manual_seed(step))
            x = self.reference.example_input + 0.1 * noise
            done = device.forward(x.numpy())
            z = done.z
            total, dz = tuple(map(np.zeros_like, z)), tuple(map(np.empty_like, z))
            ours.append([])
            for task in device.tasks:
                ours[-1].append(device.step(task, z, targets[task], dz))
                for summed, one in zip(total, dz, strict=True):
                    np.add(summed, one, out=summed)
            device.backward(done, total)
            sgd.step(device.parameters, device.gradient, velocity)
            theirs.append(eager.step(x))
            exactly.append(exact.step(x))
        return np.array(ours), np.array(theirs), np.array(exactly)


class Eager:
    """PyTorch's own training of a model, in one precision."""

    def __init__(self, model, dtype, lr):
        import torch

        self.model, self.dtype = model, dtype
        parts = model.parts().values()
        for part in parts:
            part.to(dtype).train()
        parameters = list(itertools.chain.from_iterable(part.parameters() for part in parts))
        self.optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-4)
        self.targets = {task: y.to(dtype) if y.is_floating_point() else y for task, y in model.example_targets.items()}

    def step(self, x):
        """One step; the losses before it."""
        model = self.model
        self.optimizer.zero_grad()
        z = model.encoder(x.to(self.dtype))
        losses = [model.losses[task](model.heads[task](z), self.targets[task]) for task in model.tasks]
        sum(losses).backward()
        self.optimizer.step()
        return [loss.item() for loss in losses]


@pytest.fixture
def side_by_side(tmp_path):
    return lambda model: SideBySide(model, tmp_path)


@pytest.fixture
def run_graph_bytes(tmp_path):
    """Runs a graph's bytes on the engine that devices use."""
    from edge_runtime.engine import Engine

    engine = Engine()

    def call(graph, inputs):
        path = tmp_path / "graph.onnx"
        path.write_bytes(graph)
        return engine.load(path).call(inputs)

    return call
