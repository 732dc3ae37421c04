"""Functions of torch that are written with others before autograd sees them, so that their gradient follows.

They are those whose own kernels have a gradient that no graph can express, look at the data, or are one operator for a
whole sequence. Names and defaults of the arguments are torch's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode

from export.errors import OperatorUnsupported
from export.functions import grid_sampling, losses, products, sequences
from export.functions.refused import Refused

FUNCTIONS: Mapping[Any, Callable[..., Any]] = {
    getattr(F, "linear_cross_entropy", None): products.linear_cross_entropy,  # from torch 2.13 on
    F.grid_sample: grid_sampling.grid_sample,
    torch.grid_sampler: grid_sampling.grid_sampler,
    torch.grid_sampler_2d: grid_sampling.grid_sampler,
    torch.grid_sampler_3d: grid_sampling.grid_sampler,
    torch.stft: sequences.stft,
    torch.functional.stft: sequences.stft,
    torch.bilinear: products.bilinear,
    torch.cdist: products.cdist,
    torch.pdist: products.pdist,
    torch._weight_norm: products.weight_norm,  # noqa: SLF001
    F.gaussian_nll_loss: losses.gaussian_nll_loss,
    F.multi_margin_loss: losses.multi_margin_loss,
    F.multilabel_margin_loss: losses.multilabel_margin_loss,
    F.embedding_bag: products.embedding_bag,
    F.ctc_loss: sequences.ctc_loss,
    torch.lstm: sequences.recurrent(torch.lstm, "LSTM"),
    torch.gru: sequences.recurrent(torch.gru, "GRU"),
    torch.rnn_tanh: sequences.recurrent(torch.rnn_tanh, "RNN_TANH"),
    torch.rnn_relu: sequences.recurrent(torch.rnn_relu, "RNN_RELU"),
}


def _is_causal(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """Stand in for PyTorch's look at a mask's numbers, which only chooses among kernels."""
    del mask, size
    return bool(is_causal)


class Rewritten(TorchFunctionMode):
    """While it is in force, calls of FUNCTIONS are answered by what is written here.

    Raises OperatorUnsupported for arguments that nothing is written for; `where` says which module is running.
    """

    def __init__(self, where: Callable[[], str]) -> None:
        super().__init__()
        self._where = where
        self._detect = transformer._detect_is_causal_mask  # noqa: SLF001

    def __enter__(self) -> "Rewritten":  # noqa: PYI034 - typing has no Self before 3.11
        transformer._detect_is_causal_mask = _is_causal  # noqa: SLF001
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        transformer._detect_is_causal_mask = self._detect  # noqa: SLF001

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answer a call of torch."""
        del types
        try:
            return FUNCTIONS.get(function, function)(*args, **(kwargs or {}))
        except Refused as exc:
            raise OperatorUnsupported(exc.what, self._where(), exc.advice) from exc
