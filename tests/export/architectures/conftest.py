"""Trains a multi-task model on the engine and in PyTorch, side by side."""

import numpy as np
import pytest

TOLERANCE = 1e-4
DRAWS = 4


class SideBySide:
    """A model compiled and loaded as a device does it, and a copy that PyTorch trains."""

    def __init__(self, model, folder):
        from edge_runtime.engine import Engine
        from edge_runtime.training.model import GraphShelf, Model
        from edge_runtime.wire.manifest import Parity
        from export.compile import compile_model, describe

        self.compiled = compile_model(model)
        self.reference = model
        manifest = describe(self.compiled, "test", Parity(max_relative_error=0.0, worst="", compared=0))
        for name, data in self.compiled.graphs.items():
            (folder / f"{name}.onnx").write_bytes(data)
        self.engine = Engine()
        graphs = GraphShelf(self.engine).of(manifest, lambda name, _: folder / f"{name}.onnx")
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

    def follow(self, steps, lr):
        """PyTorch trains; the engine computes from PyTorch's weights and state at each step.

        Gives for each step the losses of PyTorch, and how far each loss and gradient is from PyTorch's, as
        export.parity tells it: relative, or to what PyTorch itself differs by when it rounds otherwise.
        """
        eager = Eager(self.reference, lr=lr)
        for step in range(steps):
            self._take_over(eager.model)
            errors = {}
            for draw in range(DRAWS):
                x = near(self.reference, step) + 0.01 * draw * drawn(self.reference, steps + draw)
                for name, error in self._errors(eager, x).items():
                    errors[name] = min(errors.get(name, error), error)
                if max(errors.values()) <= TOLERANCE:
                    break
            yield eager.step(x), errors

    def _take_over(self, model):
        from export.compile import named_tensors

        held = named_tensors(model)
        for name, view in self.device.table.views(self.device.weights).items():
            view[...] = held[name].numpy()

    def _learn(self, x):
        device = self.device
        targets = {task: y.numpy() for task, y in self.reference.example_targets.items()}
        done = device.forward(x.numpy())
        total, dz = tuple(map(np.zeros_like, done.z)), tuple(map(np.empty_like, done.z))
        losses = []
        for task in device.tasks:
            losses.append(device.step(task, done.z, targets[task], dz))
            for summed, one in zip(total, dz, strict=True):
                np.add(summed, one, out=summed)
        device.backward(done, total)
        return losses

    def _errors(self, eager, x):
        state = self.device.weights.copy()
        ours = by_part(self.device.tasks, self._learn(x), self.device.table.parameters.views(self.device.gradient))
        self.device.weights[:] = state
        expected = eager.gradients(x)
        errors, others = differences(ours, expected, []), []
        for other in eager.rounded_otherwise():
            if max(errors.values()) <= TOLERANCE:
                break
            others.append(other.gradients(x))
            errors = differences(ours, expected, others)
        return errors


def near(model, seed):
    """The example batch, a little changed."""
    return model.example_input + 0.1 * drawn(model, seed)


def drawn(model, seed):
    import torch

    return torch.randn(model.example_input.shape, generator=torch.Generator().manual_seed(seed))


def by_part(tasks, losses, gradients):
    """Losses and gradients by part and name."""
    found = {
        "encoder": {},
        **{f"head.{task}": {"loss": np.array(loss)} for task, loss in zip(tasks, losses, strict=True)},
    }
    for name, gradient in gradients.items():
        part = next((part for part in found if name.startswith(f"{part}.")), "stem")
        found.setdefault(part, {})[name] = np.array(gradient)
    return found


def differences(ours, expected, others):
    from export.parity import relative_errors

    return {
        f"{part} {name}": error
        for part in expected
        for name, error in relative_errors(ours[part], expected[part], [other[part] for other in others]).items()
    }


class Eager:
    """PyTorch's own training of a copy of a model, in one precision."""

    def __init__(self, model, *, lr, double=False):
        import copy
        from dataclasses import replace

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
        z = model.encode(x.to(self.dtype))
        losses = [model.losses[task](model.heads[task](z), self.targets[task]) for task in model.tasks]
        sum(losses).backward()
        return [loss.item() for loss in losses]

    def step(self, x):
        """One step; the losses before it."""
        losses = self._losses(x)
        self.optimizer.step()
        return losses

    def gradients(self, x):
        """Losses and gradients by part and name; nothing moves."""
        from export.running import unchanged

        with unchanged(*self.parts.values()):
            losses = self._losses(x)
        return by_part(self.model.tasks, losses, {name: p.grad.numpy() for name, p in self.parameters.items()})

    def rounded_otherwise(self):
        """The same in float64, and with its parameters moved by units in the last place."""
        import torch

        from export.parity import NUDGE, NUDGES

        yield Eager(self.model, lr=self.lr, double=True)
        for seed in range(NUDGES):
            other, generator = Eager(self.model, lr=self.lr), torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for value in other.parameters.values():
                    value.mul_(1 + NUDGE * torch.randn(value.shape, generator=generator))
            yield other


@pytest.fixture
def side_by_side(tmp_path):
    return lambda model: SideBySide(model, tmp_path)


@pytest.fixture
def run_graph_bytes(tmp_path):
    """Runs a graph's bytes on the engine that devices use."""
    from edge_runtime.engine import Engine

    engine, loaded = Engine(), {}

    def call(graph, inputs):
        if graph not in loaded:
            path = tmp_path / "graph.onnx"
            path.write_bytes(graph)
            loaded[graph] = engine.load(path)
        return loaded[graph].call(inputs)

    return call
