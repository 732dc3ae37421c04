"""One sample as one graph, forward and backward, run by the engine of the devices and held to PyTorch's autograd.

*Batched*: the first dimension of its first tensor, and where that does not run, of all tensors of the same length, is
the micro-batch. Where the results do not follow the first dimension, there is no such way; a refusal because the
operator works along the batch is right, a wrong number is not. *Fixed*, where it cannot be batched: its tensors have
fixed shapes, beside an input that the sample does not see, whose first dimension is the micro-batch.
"""

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from benchmarks.operators.samples import Sample
from edge_runtime.training.engine import Engine
from edge_runtime.wire.operators import check_graph
from export.errors import ModelInvalid
from export.lowering import lower
from export.parity.seeded_dropout import SeededDropout
from export.running_statistics import check_normalization, moving
from export.trace import trace

TOLERANCE = 1e-4
FLOOR = 1e-3
"""What is smaller than this part of the largest result, or gradient, is compared on that scale."""

ROUNDING = 1e-6
"""What samples, whose numbers and gradients' weights are of the order of one, may be off in any case."""

SEED = 5
FED = (torch.float32, torch.int64, torch.bool)
"""The types of tensors that can be a graph's inputs."""


class NotApplicable(Exception):
    """PyTorch itself does not run the sample in this way, or there is nothing to compare."""


class Wrong(Exception):
    """A result or a gradient is not PyTorch's."""


@dataclass(frozen=True)
class Results:
    """Tensors of a sample that was run, and gradients of what it is made of, None where there is none."""

    values: list[Tensor]
    weights: list[Tensor]
    """Weights of the results in the gradients, one for each in `live`."""
    live: list[int]
    gradients: list[Tensor | None]

    def named(self) -> dict[str, Tensor]:
        """Return all by the names of a graph's outputs."""
        found = {f"y.{i}": value.detach() for i, value in enumerate(self.values)}
        return found | {f"d.{i}": value for i, value in enumerate(self.gradients) if value is not None}


class Held:
    """A sample whose tensors are inputs of a graph; with `constants`, those without gradient are part of it."""

    def __init__(self, sample: Sample, *, constants: bool) -> None:
        self._sample = sample
        self._leaves, self._spec = tree_flatten((sample.args, sample.kwargs))
        tensors = [i for i, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)]
        if any(self._leaves[i].is_complex() or self._leaves[i].layout is not torch.strided for i in tensors):
            raise NotApplicable("a complex or sparse sample")
        self._given = [
            i for i in tensors if self._leaves[i].requires_grad or (not constants and self._leaves[i].dtype in FED)
        ]
        self._wanted = [i for i in self._given if self._leaves[i].requires_grad and sample.training]
        module = sample.module
        self._parameters = {} if module is None else dict(sorted(module.named_parameters()))
        self._learnt = [n for n, p in self._parameters.items() if p.requires_grad and sample.training]
        self._batched: tuple[int, ...] = ()

    def check(self, engine: Engine, *, batched: bool) -> None:
        """Raise NotApplicable, Wrong, or what the exporter raises."""
        if batched:
            self._batched = self._open()
        first = self._reference(None)
        path = Path(tempfile.mkdtemp()) / "graph.onnx"
        try:
            names, kept = self._write(path, first)
            session = engine.load(path)
            for size in (4, 6) if batched else (2,):
                self._compare(session, size, names, kept, batched)
        finally:
            path.unlink(missing_ok=True)
            path.parent.rmdir()

    def _open(self) -> tuple[int, ...]:
        """Return the tensors whose first dimension can be the micro-batch."""
        dimensioned = [i for i in self._given if self._leaves[i].ndim]
        floats = [i for i in dimensioned if self._leaves[i].is_floating_point()]
        if not floats:
            raise NotApplicable("no tensor has a dimension")
        same = [i for i in dimensioned if len(self._leaves[i]) == len(self._leaves[floats[0]])]
        for chosen in ((floats[0],), tuple(same)):
            self._batched, sizes = chosen, (2, 3, 4, 5)
            try:
                shapes = [[tuple(value.shape) for value in self._reference(size).values] for size in sizes]
            except Exception:  # noqa: BLE001
                continue
            follow = [all(s and s[0] % size == 0 for s in row) for row, size in zip(shapes, sizes, strict=True)]
            if all(follow) and len({str(row) for row in shapes}) == len(sizes):
                return chosen
        raise NotApplicable("PyTorch does not run it with another first dimension, or its results do not follow")

    def _tensors(self, size: int | None, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Return the inputs, those that are batched with `size` rows."""
        found = []
        for i in self._given:
            tensor = self._leaves[i].detach()
            if size is not None and i in self._batched:
                tensor = tensor.index_select(0, torch.arange(size) % len(tensor))
            tensor = tensor.to(dtype) if tensor.dtype == torch.float32 else tensor
            found.append(tensor.clone().requires_grad_(i in self._wanted))
        return found

    def _run(
        self, tensors: Sequence[Tensor], parameters: Mapping[str, Tensor], module: nn.Module | None
    ) -> list[Tensor]:
        leaves = list(self._leaves)
        for i, tensor in zip(self._given, tensors, strict=True):
            leaves[i] = tensor
        args, kwargs = tree_unflatten(leaves, self._spec)
        if module is not None:
            result = torch.func.functional_call(module, dict(parameters), args, kwargs)
        else:
            assert self._sample.function is not None
            result = self._sample.function(*args, **kwargs)
        found = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        found = [torch.view_as_real(leaf) if leaf.is_complex() else leaf for leaf in found]
        if not found:
            raise NotApplicable("no tensor comes out")
        return found

    def _reference(self, size: int | None, dtype: torch.dtype = torch.float32) -> Results:
        """Return what PyTorch's own autograd gives. Raises NotApplicable."""
        tensors = self._tensors(size, dtype)
        parameters = {
            name: p.detach().to(dtype, copy=True).requires_grad_(name in self._learnt)
            for name, p in self._parameters.items()
        }
        module = copy.deepcopy(self._sample.module)
        if module is not None:
            module = module.to(dtype)
        torch.manual_seed(0)
        try:
            with SeededDropout(SEED):
                # Clones, because an operator that works in place cannot change a leaf.
                values = self._run([t.clone() if t.requires_grad else t for t in tensors], parameters, module)
        except NotApplicable:
            raise
        except Exception as exc:
            raise NotApplicable(f"PyTorch: {type(exc).__name__}") from exc
        live = [i for i, value in enumerate(values) if value.requires_grad] if self._sample.training else []
        sources = self._sources(tensors, parameters)
        if self._sample.training and sources and not live:
            raise NotApplicable("the result has no gradient")
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(values[i].shape, generator=generator).to(values[i].dtype) for i in live]
        gradients: list[Tensor | None] = [None] * len(sources)
        if live and sources:
            outputs = [values[i] for i in live]
            found = torch.autograd.grad(outputs, sources, weights, allow_unused=True)
            gradients = [g if g is None else torch.zeros_like(g) + g for g in found]  # some zeros have no numbers
        return Results(values, weights, live, gradients)

    def _sources(self, tensors: Sequence[Tensor], parameters: Mapping[str, Tensor]) -> list[Tensor]:
        wanted = [t for i, t in zip(self._given, tensors, strict=True) if i in self._wanted]
        return [*wanted, *(parameters[name] for name in self._learnt)]

    def _write(self, path: Path, first: Results) -> tuple[list[str], set[str]]:
        """Write the graph; return its inputs by place, and those that it reads."""
        module = self._sample.module
        holder = nn.Module() if module is None else module
        root = nn.ModuleDict({"op": holder})
        outputs: list[str] = []
        count = len(self._given)

        def inputs(size: int) -> list[Tensor]:
            tensors = self._tensors(size if self._batched else None)
            weights = self._reference(size if self._batched else None).weights
            parameters = [p.detach().clone().requires_grad_(n in self._learnt) for n, p in self._parameters.items()]
            return [torch.zeros(size, 1), *tensors, *weights, *parameters]

        def forward(*values: Tensor) -> list[Tensor]:
            parameters = dict(zip(self._parameters, values[count:], strict=True))
            with moving():
                return self._run(values[:count], parameters, module)

        if module is None:
            holder.forward = forward

        def function(_: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
            tensors, rest = values[:count], values[count:]
            weights, parameters = rest[: len(first.live)], rest[len(first.live) :]
            results = (holder if module is None else forward)(*tensors, *parameters)
            sources = self._sources(tensors, dict(zip(self._parameters, parameters, strict=True)))
            gradients: Sequence[Tensor | None] = ()
            if first.live and sources:
                live = [results[i] for i in first.live]
                gradients = torch.autograd.grad(live, sources, weights, allow_unused=True)
            found = Results(list(results), [], [], list(gradients)).named()
            outputs[:] = found
            return tuple(found.values())

        for name, child in root.named_modules():
            check_normalization(child, name)
        traced = trace(function, inputs, root)
        names = [
            "x",
            *(f"in.{i}" for i in self._given),
            *(f"weight.{i}" for i in first.live),
            *(f"param.{name}" for name in self._parameters),
        ]
        model = lower(traced, inputs=names, outputs=list(outputs)).model
        data = model.SerializeToString()
        check_graph(data, "graph.onnx")
        path.write_bytes(data)
        return names, {value.name for value in model.graph.input}

    def _compare(self, session: Any, size: int, names: Sequence[str], kept: set[str], batched: bool) -> None:
        tensors = self._tensors(size if batched else None)
        expected = self._reference(size if batched else None)
        rows = torch.zeros(size, 1)
        arrays = [rows, *tensors, *expected.weights, *self._parameters.values()]
        feed = {name: np.array(value.detach().numpy(), order="C") for name, value in zip(names, arrays, strict=True)}
        feed["seed"] = np.array(SEED, np.int64)
        found = session.call({name: value for name, value in feed.items() if name in kept})
        if differing(found, expected.named()):  # PyTorch in float32 may be off itself
            off = differing(found, expected.named(), self._exact(size if batched else None))
            if off and not all(value.isfinite().all() for value in expected.values):
                raise ModelInvalid("PyTorch itself gives what is no number, so that nothing can be trained with it")
            if off:
                raise Wrong(off[0] + (f" (batch of {size})" if batched else ""))

    def _exact(self, size: int | None) -> dict[str, Tensor]:
        try:
            return self._reference(size, torch.float64).named()
        except (NotApplicable, RuntimeError):
            return {}


def differing(
    ours: Mapping[str, Any], expected: Mapping[str, Tensor], exact: Mapping[str, Tensor] | None = None
) -> list[str]:
    """Return what is wrong with the arrays of a graph, by a sentence each.

    `exact` are the same in float64: PyTorch's own rounding is then allowed for.
    """
    found = []
    for name, tensor in expected.items():
        value, mine = tensor.detach().numpy(), ours.get(name)
        if mine is None:
            found.append(f"{name} is missing")
        elif (mine.shape, mine.dtype) != (value.shape, value.dtype):
            found.append(f"{name} is {mine.dtype}{mine.shape} instead of {value.dtype}{value.shape}")
        elif value.dtype.kind != "f":
            if not np.array_equal(mine, value):
                found.append(f"{name} is {mine.ravel()[:4].tolist()} instead of {value.ravel()[:4].tolist()}")
        elif text := _off(mine, value, _largest(name, expected), (exact or {}).get(name)):
            found.append(f"{name} {text}")
    return found


def _largest(name: str, expected: Mapping[str, Tensor]) -> float:
    """Return the largest absolute number of the results, or of the gradients."""
    alike = [t.detach().numpy() for n, t in expected.items() if n[0] == name[0] and t.is_floating_point()]
    return max(float(np.abs(a[np.isfinite(a)]).max(initial=0)) for a in alike)


def _off(mine: Any, value: Any, largest: float, exact: Tensor | None) -> str | None:
    true = value if exact is None or exact.shape != value.shape else exact.detach().numpy()
    finite = np.isfinite(value)
    unlike = (np.isnan(mine) != np.isnan(value)) | (np.isinf(mine) != np.isinf(value))
    unlike |= np.isinf(mine) & np.isinf(value) & (np.sign(mine) != np.sign(value))
    if unlike.any():
        return f"is {mine[unlike][0]} instead of {value[unlike][0]} at {int(unlike.sum())} of {value.size} places"
    finite &= np.isfinite(true)
    scale = max(float(np.abs(value[finite]).max(initial=0)), FLOOR * largest, ROUNDING)
    allowed = max(TOLERANCE * scale, 4 * float(np.abs(value[finite] - true[finite]).max(initial=0)))
    allowed = max(allowed, ROUNDING)
    error = float(np.abs(mine[finite].astype(np.float64) - true[finite]).max(initial=0))
    return f"is off by {error / scale:.1e} of the largest" if error > allowed else None
