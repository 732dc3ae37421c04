"""Functions along a sequence: recurrent layers, connectionist temporal classification, unrolled, and spectra."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from export.functions import recurrence
from export.functions.losses import reduced
from export.functions.refused import Refused

MAX_STEPS = 512
"""Steps that are unrolled at most; of a recurrent layer with projections, steps · layers · directions."""


def stft(
    x: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    center: bool = True,
    pad_mode: str = "reflect",
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
    align_to_window: bool | None = None,
) -> Tensor:
    """Transform the frames of a signal (…, samples) to (…, frequencies, frames)."""
    del align_to_window
    reach = win_length or n_fft
    shape = torch.ones(reach) if window is None else window
    shape = F.pad(shape, ((n_fft - reach) // 2, n_fft - reach - (n_fft - reach) // 2))
    rows = x.reshape(-1, 1, x.shape[-1])
    if center:
        rows = F.pad(rows, (n_fft // 2, n_fft // 2), mode=pad_mode)
    frames = rows.squeeze(1).unfold(-1, n_fft, hop_length or n_fft // 4) * shape  # (rows, frames, n_fft)
    found = (torch.fft.fft if onesided is False else torch.fft.rfft)(frames).transpose(1, 2)
    if normalized:
        found = found * n_fft**-0.5
    found = found.reshape(*x.shape[:-1], *found.shape[1:])
    return found if return_complex else torch.view_as_real(found)


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """Connectionist temporal classification (Graves et al., ICML 2006, section 4.1), unrolled over time.

    `log_probs` is (T, B, C), `targets` (B, S); both lengths are tensors (B,), or numbers.
    """
    alone = log_probs.ndim == 2
    if alone:
        log_probs = log_probs.unsqueeze(1)
    batch = log_probs.shape[1]
    lengths, sizes = (_lengths(value, batch) for value in (input_lengths, target_lengths))
    if targets.ndim == 1:
        targets = targets.unsqueeze(0) if alone else _by_sample(targets, target_lengths)
    steps, places = log_probs.shape[0], 2 * targets.shape[1] + 1
    if steps > MAX_STEPS:
        raise Refused(f"ctc_loss over {steps} steps", f"use at most {MAX_STEPS}: take fewer frames a second")
    blanks = torch.full_like(targets, blank)
    labels = torch.cat([torch.stack([blanks, targets], 2).flatten(1), blanks[:, :1]], 1)  # (B, 2S + 1)
    no_path = torch.full_like(labels, -1e30, dtype=log_probs.dtype)  # finite: its gradient is a number
    skips = F.pad((labels[:, 2:] != labels[:, :-2]) & (labels[:, 2:] != blank), (2, 0), value=False)
    emitted = log_probs.gather(2, labels.expand(steps, -1, -1))  # (T, B, 2S + 1)
    alpha = torch.where(torch.arange(places) < 2, emitted[0], no_path)
    for step in range(1, steps):
        before = F.pad(alpha, (1, 0), value=-1e30)[:, :-1]
        skipped = torch.where(skips, F.pad(alpha, (2, 0), value=-1e30)[:, :-2], no_path)
        following = torch.logsumexp(torch.stack([alpha, before, skipped]), 0) + emitted[step]
        alpha = torch.where((lengths > step).unsqueeze(1), following, alpha)
    last = (2 * sizes).unsqueeze(1)
    label = torch.where(last > 0, alpha.gather(1, (last - 1).clamp(min=0)), no_path[:, :1])
    loss = -torch.logsumexp(torch.cat([alpha.gather(1, last), label], 1), 1)
    # PyTorch's gradient takes for granted that the probabilities of a step add up to one, and keeps them so.
    within = torch.arange(steps).reshape(-1, 1, 1) < lengths.unsqueeze(1)
    total = (log_probs.exp() * within.to(log_probs.dtype)).sum((0, 2))
    loss = loss + (total - total.detach())
    impossible = loss > 1e29
    loss = torch.where(impossible, 0.0 if zero_infinity else torch.inf, loss)
    if reduction == "mean":
        return (loss / sizes.clamp(min=1).to(loss.dtype)).mean()
    found = reduced(loss, reduction)
    return found.squeeze(0) if alone and reduction == "none" else found


def _by_sample(targets: Tensor, sizes: Any) -> Tensor:
    """Return targets that are one after another in a row as (B, S), padded."""
    if isinstance(sizes, Tensor):
        raise Refused("ctc_loss of targets in one row", "give targets as (B, S), padded")
    ends = list(itertools.accumulate(sizes))
    places = [[min(end - size + i, end - 1) for i in range(max(sizes))] for end, size in zip(ends, sizes, strict=True)]
    return targets[torch.tensor(places)]


def _lengths(value: Any, batch: int) -> Tensor:
    if isinstance(value, Tensor):
        return value.reshape(-1).to(torch.int64)
    numbers = [value] if isinstance(value, int) else list(value)
    if len(set(numbers)) > 1:
        return torch.tensor(numbers)
    return torch.full((batch,), numbers[0], dtype=torch.int64)


def recurrent(function: Callable[..., Any], cell: str) -> Callable[..., Any]:
    """Return torch's own function with one operator for all steps of a layer; with projections, unrolled over them."""

    def called(x: Tensor, *rest: Any) -> Any:
        if isinstance(rest[0], Tensor) and isinstance(rest[1], Tensor) and rest[1].ndim == 1:
            raise Refused(f"{cell} of packed sequences", "pad the sequences, and mask what is beyond their ends")
        first, weights, biased, layers, dropout, training, bidirectional, batch_first = rest
        steps = x.shape[1 if batch_first and x.ndim == 3 else 0]
        if len(weights) != layers * (1 + bidirectional) * (4 if biased else 2):
            if steps * layers * (1 + bidirectional) <= MAX_STEPS:
                return _unrolled(function, x, *rest)
            raise Refused(
                f"{cell} with proj_size over {steps} steps",
                f"at most {MAX_STEPS} cells are unrolled: leave proj_size out, and put an nn.Linear behind the layer",
            )
        found, *last = recurrence.layers(
            cell,
            x.transpose(0, 1) if batch_first else x,
            [first] if isinstance(first, Tensor) else first,
            weights,
            biased=biased,
            count=layers,
            dropout=dropout if training else 0.0,
            bidirectional=bidirectional,
        )
        return (found.transpose(0, 1) if batch_first else found, *last)

    return called


def _unrolled(function: Callable[..., Any], *given: Any) -> Any:
    before = torch._C._get_mkldnn_enabled()  # noqa: SLF001
    torch._C._set_mkldnn_enabled(False)  # noqa: SLF001  whose recurrent layers are one operator
    try:
        return function(*given)
    finally:
        torch._C._set_mkldnn_enabled(before)  # noqa: SLF001
