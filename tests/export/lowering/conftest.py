"""Holds a module's translated graph, forward and backward, to PyTorch."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

TOLERANCE = 1e-4


class Translated:
    """One module as one graph: its result, and the gradients of its input and of every parameter."""

    def __init__(self, module: Any, example: Any, *, targets: Any = None, input_gradient: bool = True) -> None:
        """`example` and `targets` are float32 or int64 batches; their first dimension is left open."""
        import torch

        from export.lowering import lower
        from export.running_statistics import moving
        from export.trace import trace

        self.module = module
        self.parameters = dict(sorted(module.named_parameters()))
        self._differentiates = example.dtype == torch.float32 and input_gradient
        sources = [("x", example)] if targets is None else [("x", example), ("target", targets)]
        with torch.no_grad():
            result = module(*(tensor for _, tensor in sources))
        rows = result.shape[0] // len(example) if result.ndim and result.shape[0] % len(example) == 0 else 0

        def inputs(batch: int) -> list[Any]:
            found = [torch.zeros((batch, *tensor.shape[1:]), dtype=tensor.dtype) for _, tensor in sources]
            found[0].requires_grad_(self._differentiates)
            dy = torch.zeros((rows * batch, *result.shape[1:]) if rows else result.shape)
            return [*found, dy, *self.parameters.values()]

        def function(*values: Any) -> tuple[Any, ...]:
            data, dy, parameters = values[: len(sources)], values[len(sources)], values[len(sources) + 1 :]
            with moving():
                named = dict(zip(self.parameters, parameters, strict=True))
                y = torch.func.functional_call(module, named, data)
            wanted = [*data[:1], *parameters] if self._differentiates else list(parameters)
            return y, *(torch.autograd.grad(y, wanted, dy) if wanted else ())

        names = [*(["dx"] if self._differentiates else []), *(f"grad.{name}" for name in self.parameters)]
        self.trace = trace(function, inputs, torch.nn.ModuleDict({"net": module}))
        self.model = lower(
            self.trace, inputs=[*(name for name, _ in sources), "dy", *self.parameters], outputs=["y", *names]
        ).model

    @property
    def operators(self) -> set[Any]:
        """The ATen operators that the module and its gradient are made of."""
        return {step.target for step in self.trace.steps}

    @property
    def nodes(self) -> list[str]:
        """The ONNX operators of the graph."""
        return [node.op_type for node in self.model.graph.node]

    def reference(self, x: Any, dy: Any, targets: Any = None) -> dict[str, Any]:
        """What PyTorch's own eager autograd gives."""
        x = x.clone().requires_grad_(self._differentiates)
        for parameter in self.parameters.values():
            parameter.grad = None
        y = self.module(x) if targets is None else self.module(x, targets)
        found = {"y": y.detach()}
        if self._differentiates or self.parameters:
            y.backward(dy)
        if self._differentiates:
            found["dx"] = x.grad
        return found | {f"grad.{name}": p.grad for name, p in self.parameters.items()}


@pytest.fixture(scope="session")
def translate() -> Callable[..., Translated]:
    return Translated


@pytest.fixture(scope="session")
def run_graph(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Runs an ONNX model on the engine that devices use, and holds what it makes to what devices work out before."""
    from edge_runtime.training.engine import Engine
    from edge_runtime.wire.graph_cost import graph_cost
    from edge_runtime.wire.operators import check_graph

    engine, folder = Engine(), tmp_path_factory.mktemp("graphs")
    numbers: Iterator[int] = itertools.count()

    def run(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        path = folder / f"{next(numbers)}.onnx"
        data = model.SerializeToString()
        graph = check_graph(data, path.name)
        path.write_bytes(data)
        made = engine.load(path).call(inputs)
        varies = (
            inputs[name].shape[at] // int(size.removeprefix("batch_"))
            for name, shape in graph.inputs.items()
            for at, size in enumerate(shape or ())
            if isinstance(size, str)
        )
        cost = graph_cost(graph, path.name, next(varies, 1))
        assert cost.unknown == ()
        assert cost.outputs == {name: array.shape for name, array in made.items()}
        return made

    return run


@pytest.fixture(scope="session")
def same_as_torch(run_graph: Callable[..., Any]) -> Callable[..., Translated]:
    """Checks a module's result and gradients for micro-batches of 1 and 3, and gives the translation back."""

    def check(
        module: Any,
        shape: tuple[int, ...],
        *,
        draw: Callable[..., Any] | None = None,
        targets: Callable[[int], Any] | None = None,
        input_gradient: bool = True,
    ) -> Translated:
        import torch

        torch.manual_seed(7)
        draw = draw or torch.randn
        translated = Translated(
            module,
            draw((2, *shape)),
            targets=None if targets is None else targets(2),
            input_gradient=input_gradient,
        )
        for batch in (1, 3):
            x, target = draw((batch, *shape)), None if targets is None else targets(batch)
            with torch.no_grad():
                dy = torch.randn_like(module(x) if target is None else module(x, target))
            inputs = {"x": x.numpy(), "dy": dy.numpy()} | {
                name: p.detach().numpy() for name, p in translated.parameters.items()
            }
            if target is not None:
                inputs["target"] = target.numpy()
            ours = run_graph(translated.model, inputs)
            for name, expected in translated.reference(x, dy, target).items():
                value = expected.numpy(force=True)  # some zeros have no numbers
                assert ours[name].shape == value.shape, name
                np.testing.assert_array_equal(np.isfinite(ours[name]), np.isfinite(value), err_msg=name)
                finite = np.isfinite(value)
                scale = max(float(np.abs(value[finite]).max(initial=0)), 1e-6)
                error = float(np.abs(ours[name][finite] - value[finite]).max(initial=0)) / scale
                assert error <= TOLERANCE, f"{name} of a batch of {batch} differs by {error:.1e}"
        return translated

    return check
