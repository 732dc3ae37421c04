"""PyTorch run with the random numbers that the graphs draw, so that dropout and noise are compared number by number."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from export.decompositions.noise import IN_PLACE, TABLE, leaky
from export.lowering.dropout import draws, threshold, uniforms

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
        if function is aten.rand.default:
            drawn = uniforms(self._seed, self._next(), math.prod(args[0]))
            return torch.from_numpy(drawn).reshape(args[0])
        if function in TABLE or function in IN_PLACE:
            with self:
                found = (TABLE | IN_PLACE)[function](*args, **(kwargs or {}))
            return args[0].copy_(found) if function in IN_PLACE else found
        if function is aten.rrelu_with_noise.default:
            with self:
                found, slopes = leaky(*args, **(kwargs or {}))
            args[1].copy_(slopes)
            return found
        if function not in (aten.bernoulli_.float, aten.bernoulli.p):
            return function(*args, **(kwargs or {}))
        like, p = args[0], args[1] if len(args) > 1 else 0.5
        ones = draws(self._seed, self._next(), like.numel()) < threshold(p)
        found = torch.from_numpy(ones).reshape(like.shape).to(like.dtype)
        return like.copy_(found) if function is aten.bernoulli_.float else found

    def _next(self) -> int:
        self._operators += 1
        return self._operators - 1
