"""PyTorch run with the random numbers that the graphs draw, so that dropout too is compared number by number."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from export.lowering.dropout import draws, threshold

aten = torch.ops.aten


class SeededDropout(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is in force, the n-th random operator draws what the n-th of a graph with this seed draws."""

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seed = seed
        self._operators = 0

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answer the operators that draw; hand all others on."""
        del types
        if function not in (aten.bernoulli_.float, aten.bernoulli.p):
            return function(*args, **(kwargs or {}))
        like, p = args[0], args[1] if len(args) > 1 else 0.5
        drawn = draws(self._seed, self._operators, like.numel()) < threshold(p)
        self._operators += 1
        ones = torch.from_numpy(drawn).reshape(like.shape).to(like.dtype)
        return like.copy_(ones) if function is aten.bernoulli_.float else ones
