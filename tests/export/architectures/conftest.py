"""Trains a multi-task model on the engine and in PyTorch, side by side."""

from dataclasses import replace

import numpy as np
import pytest

from edge_runtime.wire.tensors import part_of


class SideBySide:
    """A model compiled and loaded as a device does it, and a copy that PyTorch trains."""

    def __init__(self, model, folder):
        from edge_runtime.training.engine import Engine
        from edge_runtime.training.graph_cache import GraphCache
        from edge_runtime.training.model import Model
        from edge_runtime.wire.manifest import Parity
        from export.compile import compile_model, describe

        self.compiled = compile_model(model)
        self.reference = model
        manifest = describe(self.compiled, "test", Parity(max_relative_error=0.0, worst="", compared=0))
        for name, data in self.compiled.files.items():
            (folder / f"{name}.onnx").write_bytes(data)
        self.engine = Engine()
        graphs = GraphCache(self.engine).of(manifest, lambda name, _: folder / f"{name}.onnx")
        self.device = Model(manifest, graphs, self.compiled.weights)

    def train(self, steps, lr):
        """The losses of the engine, of PyTorch, and of PyTorch in float64, (steps, T) each, each on its own way."""
        from edge_runtime.training.optimizer import Sgd

        sgd = Sgd(lr=lr, momentum=0.9, weight_decay=1e-4)
        velocity = np.zeros_like(self.device.gradient)
        eager, exact = Eager(self.reference, lr=lr), Eager(self.reference, lr=lr, double=True)
        ours, theirs, exactly = [], [], []
        for step in range(steps):
            x = near(self.reference, step)
            ours.append(self._learn(x))
            sgd.step(self.device.parameters, self.device.gradient, velocity)
            theirs.append(eager.step(x))
            exactly.append(exact.step(x))
        return np.array(ours), np.array(theirs), np.array(exactly)

    def follow(self, steps, lr, run):
        """PyTorch trains; at each step all graphs are held to it, with its weights and state, by export.parity.check.

        Gives for each step the losses of PyTorch, how far each tensor is from PyTorch's, and, at the first and the
        last, how far the gradients that a device computes are from those of the graphs.
        """
        from export.parity.check import differences, outputs

        eager = Eager(self.reference, lr=lr)
        for step in range(steps):
            x = near(self.reference, step)
            self._take_over(eager.model)
            compiled = replace(self.compiled, model=eager.model, weights=self.device.weights.copy())
            apart = 0.0
            if step in (0, steps - 1):
                found = outputs(compiled, lambda name, inputs: run(self.compiled.graphs[name], inputs), {"x": x})
                apart = self._apart(found, x)
            errors = differences(compiled, run, {"x": x})
            yield eager.step(x), errors, apart

    def _take_over(self, model):
        from export.compile import named_tensors

        held = named_tensors(model)
        for name, view in self.device.table.views(self.device.weights).items():
            view[...] = held[name].numpy()

    def _learn(self, x):
        device = self.device
        targets = {task: y.numpy() for task, y in self.reference.example_targets.items()}
        done = device.forward({"x": x.numpy()})
        total, dz = tuple(map(np.zeros_like, done.z)), tuple(map(np.empty_like, done.z))
        losses = []
        for task in device.tasks:
            losses.append(device.step(task, done.z, targets[task], dz))
            for summed, one in zip(total, dz, strict=True):
                np.add(summed, one, out=summed)
        device.backward(done, total)
        return losses

    def _apart(self, found, x):
        self._learn(x)
        largest = 0.0
        for name, gradient in self.device.table.parameters.views(self.device.gradient).items():
            part = part_of(name)
            graph = f"{part}.{'step' if part.startswith('head.') else 'backward'}"
            expected = found[graph][f"grad.{name.removeprefix(f'{part}.')}"]
            largest = max(largest, np.abs(gradient - expected).max() / np.abs(self.device.gradient).max())
        return largest


def near(model, seed):
    """The example batch, a little changed."""
    return model.example_input + 0.1 * drawn(model, seed)


def drawn(model, seed):
    import torch

    return torch.randn(model.example_input.shape, generator=torch.Generator().manual_seed(seed))


class Eager:
    """PyTorch's own training of a copy of a model, in one precision."""

    def __init__(self, model, *, lr, double=False):
        import copy

        import torch

        encoder, heads, stem = copy.deepcopy((model.encoder, dict(model.heads), model.stem))
        self.model, self.lr, self.dtype = replace(model, encoder=encoder, heads=heads, stem=stem), lr, torch.float32
        if double:
            self.dtype = torch.float64
        self.parts = self.model.parts()
        for part in self.parts.values():
            part.to(self.dtype).train()
        self.parameters = {
            name: value for part, module in self.parts.items() for name, value in module.named_parameters(prefix=part)
        }
        self.optimizer = torch.optim.SGD(self.parameters.values(), lr=lr, momentum=0.9, weight_decay=1e-4)
        targets = model.example_targets.items()
        self.targets = {task: y.to(self.dtype) if y.is_floating_point() else y for task, y in targets}

    def _losses(self, x):
        model = self.model
        self.optimizer.zero_grad()
        z = model.encode({"x": x.to(self.dtype)})
        losses = [model.losses[task](model.heads[task](z), self.targets[task]) for task in model.tasks]
        sum(losses).backward()
        return [loss.item() for loss in losses]

    def step(self, x):
        """One step; the losses before it."""
        losses = self._losses(x)
        self.optimizer.step()
        return losses


@pytest.fixture(autouse=True)
def one_thread():
    """These networks are too small for PyTorch to share them out: its threads would only wait for one another."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def side_by_side(tmp_path):
    return lambda model: SideBySide(model, tmp_path)


@pytest.fixture
def run_graph_bytes(tmp_path):
    """Runs a graph's bytes on the engine that devices use."""
    from edge_runtime.training.engine import Engine

    engine, loaded = Engine(), {}

    def call(graph, inputs):
        if graph not in loaded:
            path = tmp_path / "graph.onnx"
            path.write_bytes(graph)
            loaded[graph] = engine.load(path)
        return loaded[graph].call(inputs)

    return call
