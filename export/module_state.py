"""A user's modules, run with other tensors and in other modes, and left as they were."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

STORES = ("_parameters", "_buffers", "_modules")


@contextmanager
def unchanged(*modules: nn.Module) -> Iterator[None]:
    """Put back everything about these modules at the end: tensors and their values, gradients, modes, attributes."""
    kept = [_Kept(child) for child in dict.fromkeys(child for module in modules for child in module.modules())]
    buffers = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    gradients = [(parameter, parameter.grad) for module in modules for parameter in module.parameters()]
    try:
        yield
    finally:
        for each in kept:
            each.put_back()
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


@contextmanager
def in_training(*modules: nn.Module) -> Iterator[None]:
    """Put modules into training mode, for a while, but for those that are not to be in it.

    What build() left in evaluation mode stays there, and so does what a module's own `train` keeps there.
    """
    with unchanged(*modules):
        modes = {child: child.training for module in modules for child in module.modules()}
        for module in modules:
            module.train()
        for child, mode in modes.items():
            child.training = child.training and mode
        yield


@contextmanager
def noticing_modes(module: nn.Module) -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether the module's mode, or a child's, may have made a difference until then.

    It may where something has asked for one, or where a module has a `train` or `eval` of its own.
    """
    children = {id(child) for child in module.modules()}
    own = any(type(c).train is not nn.Module.train or type(c).eval is not nn.Module.eval for c in module.modules())
    asked: list[bool] = [own]

    def get(child: nn.Module) -> bool:
        asked.append(id(child) in children)
        mode: bool = vars(child)["training"]
        return mode

    def put(child: nn.Module, mode: bool) -> None:
        vars(child)["training"] = mode

    nn.Module.training = property(get, put)  # type: ignore[assignment]
    try:
        yield lambda: any(asked)
    finally:
        del nn.Module.training


def is_in_evaluation(module: nn.Module) -> bool:
    """Return whether a module is in evaluation mode and has layers for which that makes a difference."""
    layers = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)  # noqa: SLF001
    return not module.training and any(isinstance(child, layers) for child in module.modules())


@contextmanager
def substituted(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let `values` stand for the parameters and buffers of these names, under every other name that they have.

    torch.func.functional_call leaves the values behind in a module that is held under two names.
    """
    named = dict(module.named_parameters()) | dict(module.named_buffers())
    new = {id(named[name]): value for name, value in values.items()}
    kept = [_Kept(child) for child in module.modules()]
    try:
        for child in module.modules():
            stores: tuple[dict[str, Any], ...] = (child._parameters, child._buffers)  # noqa: SLF001
            for store in stores:
                store.update({name: new[id(value)] for name, value in store.items() if id(value) in new})
        yield
    finally:
        for each in kept:
            each.put_back()


class _Kept:
    """A module's attributes: its parameters, buffers and modules among them, and whether it is in training mode."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._attributes = dict(vars(module))
        self._stores: dict[str, dict[str, Any]] = {name: dict(getattr(module, name)) for name in STORES}

    def put_back(self) -> None:
        """Give the module the attributes that it had."""
        attributes = vars(self._module)
        attributes.clear()
        attributes.update(self._attributes)
        for name, values in self._stores.items():
            store = attributes[name]
            store.clear()
            store.update(values)
