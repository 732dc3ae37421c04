"""Running statistics of batch normalisation as state that goes in and comes out of a part, without side effects.

A normalisation is trained in the mode in which build() left it: in evaluation mode its statistics are fixed. In
training mode a batch is normalised by its own mean and variance, and the running statistics move towards them by
`momentum` (Ioffe and Szegedy, ICML 2015, and PyTorch's BatchNorm: the variance that is kept is the unbiased one). In
evaluation mode the running statistics are used. `num_batches_tracked` is not kept: nothing here depends on it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from export.errors import ModelInvalid, OperatorUnsupported

BATCH_NORM = nn.modules.batchnorm._BatchNorm  # noqa: SLF001
STATISTICS = ("running_mean", "running_var")


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """Return the state of a module by name, in order."""
    found = {}
    for path, child in module.named_modules():
        if isinstance(child, BATCH_NORM) and child.track_running_stats:
            for name in STATISTICS:
                found[f"{path}.{name}" if path else name] = getattr(child, name)
    return dict(sorted(found.items()))


def moving_statistics(module: nn.Module) -> frozenset[str]:
    """Return the names of those that training moves: of normalisations that are in training mode."""
    found: set[str] = set()
    for path, child in module.named_modules():
        if isinstance(child, BATCH_NORM) and child.track_running_stats and child.training:
            found.update(f"{path}.{name}" if path else name for name in STATISTICS)
    return frozenset(found)


def check_normalization(module: nn.Module, path: str) -> None:
    """Raise ModelInvalid or OperatorUnsupported for a normalisation whose state cannot be kept; `path` names it."""
    if isinstance(module, nn.SyncBatchNorm):
        raise OperatorUnsupported("SyncBatchNorm", path, "use BatchNorm: a device trains alone on its batch")
    if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:  # noqa: SLF001
        raise OperatorUnsupported("InstanceNorm with running statistics", path, "use track_running_stats=False")
    if isinstance(module, BATCH_NORM) and module.track_running_stats:
        if module.momentum is None:
            raise ModelInvalid(f"{path} has momentum=None, a mean over all batches ever seen: give it a number, as 0.1")
        for name in STATISTICS:
            if getattr(module, name).dtype != torch.float32:
                raise ModelInvalid(f"{path}.{name} is {getattr(module, name).dtype}: only float32 is kept")


class Moved:
    """The new running statistics, by module, while `moving` is in force."""

    def __init__(self) -> None:
        self._values: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the running statistics of a module that have moved, by the names of `running_statistics`."""
        found = {}
        for path, child in module.named_modules():
            if id(child) in self._values:
                for name, value in zip(STATISTICS, self._values[id(child)], strict=True):
                    found[f"{path}.{name}" if path else name] = value
        return found

    def normalize(self, module: Any, x: Tensor) -> Tensor:
        """Normalise as a BatchNorm module does, without changing a buffer."""
        module._check_input_dim(x)  # noqa: SLF001
        mean, variance = self._values.get(id(module), (module.running_mean, module.running_var))
        if mean is not None and not module.training:
            return torch.native_batch_norm(x, module.weight, module.bias, mean, variance, False, 0.0, module.eps)[0]
        y, found, deviation = torch.native_batch_norm(x, module.weight, module.bias, None, None, True, 0.0, module.eps)
        if mean is not None:
            count = torch.full((), x.numel() // x.shape[1], dtype=torch.float32)
            # PyTorch refuses a batch of one value; here its variance counts as zero, so that a small last batch
            # does not end training.
            unbiased = count / (count - 1).clamp(min=1.0)
            spread = (deviation.detach() ** -2 - module.eps) * unbiased
            self._values[id(module)] = (
                mean + module.momentum * (found.detach() - mean),
                variance + module.momentum * (spread - variance),
            )
        return y


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Instance normalisation is group normalisation with a group for each channel."""
    del running_mean, running_var, use_input_stats, momentum
    return F.group_norm(x, x.shape[1], weight, bias, eps)


@contextmanager
def moving() -> Iterator[Moved]:
    """Normalise without changing buffers; what they would become is collected."""
    moved = Moved()

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        return moved.normalize(module, x)

    with _replaced(BATCH_NORM, "forward", forward), _replaced(F, "instance_norm", _instance_norm):
        yield moved


@contextmanager
def _replaced(owner: Any, name: str, function: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, original)
