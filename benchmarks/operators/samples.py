"""PyTorch's own samples of its operators (OpInfo) and modules (ModuleInfo).

Of each entry that computes with float32 and has a gradient on a CPU: the first, the middle and the last of its samples
that have a dimension, and the first of those without.
"""

import importlib.util
import sys
import types
import unittest
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

LOOKED_AT = 24
"""Samples of an entry that are looked at before three of them are chosen."""

SEED = 3


@dataclass(frozen=True)
class Sample:
    """One call of an operator, `function(*args, **kwargs)`, or of a module."""

    entry: str
    place: int
    shown: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    function: Callable[..., Any] | None = None
    module: nn.Module | None = None
    training: bool = True
    scalar: bool = False
    """True if none of its tensors has a dimension."""


def entries() -> dict[str, Any]:
    """PyTorch's descriptions by name: `add`, `nn.functional.relu`, `nn.Linear`."""
    _stand_in_for_expecttest()
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

    found: dict[str, Any] = {}
    for op in op_db:
        if torch.float32 in op.dtypes and op.supports_autograd:
            found[op.name + (f".{op.variant_test_name}" if op.variant_test_name else "")] = op
    for module in module_db:
        if torch.float32 in module.dtypes:
            found[f"nn.{module.module_cls.__name__}"] = module
    return found


def samples(name: str, description: Any) -> Iterator[Sample]:
    """Yield the samples of an entry that are tried."""
    torch.manual_seed(SEED)
    if hasattr(description, "module_cls"):
        for training in (True, False):
            yield from _of_module(name, description, training)
    else:
        yield from _of_operator(name, description)


def _of_operator(name: str, op: Any) -> Iterator[Sample]:
    found = []
    for i, sample in enumerate(op.sample_inputs("cpu", torch.float32, requires_grad=True)):
        if _whole((sample.input, sample.args, sample.kwargs)):
            found.append(sample)
        if len(found) == LOOKED_AT or i > 20 * LOOKED_AT:
            break
    for place, sample in enumerate(_chosen(found, lambda s: s.input)):

        def function(*args: Any, sample: Any = sample, **kwargs: Any) -> Any:
            return sample.output_process_fn_grad(op(*args, **kwargs))

        args, kwargs = (sample.input, *sample.args), dict(sample.kwargs)
        scalar = not _dimensioned(sample.input)
        yield Sample(name, place, _shown((args, kwargs)), args, kwargs, function=function, scalar=scalar)


def _of_module(name: str, description: Any, training: bool) -> Iterator[Sample]:
    made = description.module_inputs_func(
        description, device="cpu", dtype=torch.float32, requires_grad=True, training=training
    )
    found = [s for s in made if s.forward_input is not None and _whole((s.forward_input.args, s.forward_input.kwargs))]
    for place, sample in enumerate(_chosen(found, lambda s: (s.forward_input.args, s.forward_input.kwargs))):
        module = description.module_cls(*sample.constructor_input.args, **sample.constructor_input.kwargs)
        module = module.to(torch.float32).train(training)
        args, kwargs = tuple(sample.forward_input.args), dict(sample.forward_input.kwargs)
        if any(isinstance(p, nn.UninitializedParameter) for p in module.parameters()):  # a lazy module
            module(*args, **kwargs)

        shown = f"{str(module).splitlines()[0][:120]} on {_shown((args, kwargs))}"
        scalar = not _dimensioned((args, kwargs))
        yield Sample(name, place, shown, args, kwargs, module=module, training=training, scalar=scalar)


def _chosen(found: Sequence[Any], data: Callable[[Any], Any]) -> list[Any]:
    full = [sample for sample in found if _dimensioned(data(sample))]
    scalars = [sample for sample in found if not _dimensioned(data(sample))]
    if len(full) > 3:
        full = [full[0], full[len(full) // 2], full[-1]]
    return [*full, *scalars[:1]]


def _whole(value: Any) -> bool:
    return all(leaf.numel() for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _dimensioned(value: Any) -> bool:
    return any(leaf.ndim for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _shown(value: Any) -> str:
    def short(leaf: Any) -> Any:
        return f"{leaf.dtype}{list(leaf.shape)}".removeprefix("torch.") if isinstance(leaf, Tensor) else leaf

    return str(tree_map(short, value))[:300]


def _stand_in_for_expecttest() -> None:
    """Let PyTorch's samples be imported without a package that only PyTorch's own test cases use."""
    if importlib.util.find_spec("expecttest") is None:
        stub = types.ModuleType("expecttest")
        stub.TestCase = unittest.TestCase  # type: ignore[attr-defined]
        sys.modules["expecttest"] = stub
