"""An attack on a model's own stem: the inputs made again from the embeddings that split learning would send.

The attacker is who computes the encoder: it knows the stem and its weights (white box; He, Zhang and Lee, ACSAC 2019).
It looks for the most likely input x of an embedding ê, a Gaussian prior over x given,

    x = m + s · P u,    minimise over u    |stem(x) - ê|² / δ² + |u|²,

by Gauss-Newton steps, each solved by conjugate gradients, in which J and Jᵀ are PyTorch's own derivatives. A linear
stem is solved by the first step. δ is the error of the wire's precision, or of the noise. P is the identity, or for
images 1/f, the spectrum of photographs (Field, J. Opt. Soc. Am. A 4(12), 1987): what fewer numbers than pixels leave
open, it fills in smoothly.

Attacked are the example batch, which may be mere noise, and drawn images with the spectrum of photographs. The figure
is that of what came back best. All is seeded, and bounded in steps, not in time: the same model has the same figure.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from edge_runtime.wire.embedding_noise import KEY_BYTES, add_noise
from edge_runtime.wire.messages import Precision
from edge_runtime.wire.reconstruction import MAX_PSNR_DB, NOISES, NoisyReconstruction, Reconstruction
from edge_runtime.wire.split_learning import MessageLayout, SplitHeader, SplitMessage, decode, encode
from export.model import MultiTaskModel, apply
from export.module_state import unchanged

SAMPLES, LARGE = 2, 65_536
"""Samples that are attacked; one of them where it has more than LARGE numbers."""
STEPS, SOLVER_STEPS = 4, 24
"""Gauss-Newton steps, and conjugate gradients in each."""
RELATIVE_ERROR: Mapping[Precision, float] = {"fp32": 1e-4, "fp16": 3e-4, "int8": 1e-2}
"""δ of a precision, relative to the root mean square of an embedding."""
STEP_SIZES = (1.0, 0.5, 0.25, 0.0)
_IMAGE = 4  # dimensions of a batch of images


def measure_reconstruction(
    model: MultiTaskModel, progress: Callable[[int, int], None] = lambda *_: None
) -> Reconstruction | None:
    """Return what comes back of inputs from the embeddings of a model with a stem.

    `progress(done, total)` is called after each step. None where nothing can be said: without a stem, for inputs of
    integers, and for a stem that PyTorch does not differentiate twice.
    """
    if model.stem is None or any(not value.is_floating_point() for value in model.inputs.values()):
        return None
    with unchanged(model.stem), _fixed(model.stem):
        model.stem.eval()
        try:
            example = {name: value.detach() for name, value in model.inputs.items()}
            found = _measure(example, partial(apply, model.stem), progress)
        except RuntimeError:  # what autograd raises
            return None
    psnr_db = dict(zip([*RELATIVE_ERROR, *NOISES], found, strict=True))
    return Reconstruction(
        fp32=psnr_db["fp32"],
        fp16=psnr_db["fp16"],
        int8=psnr_db["int8"],
        noisy=tuple(NoisyReconstruction(noise=noise, psnr_db=psnr_db[noise]) for noise in NOISES),
    )


@contextmanager
def _fixed(module: nn.Module) -> Iterator[None]:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        module.requires_grad_(requires_grad=False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()


def _measure(
    example: Mapping[str, Tensor], stem: Callable[[Mapping[str, Tensor]], Tensor], progress: Callable[[int, int], None]
) -> list[float]:
    """Return the PSNR for each precision, then for each noise."""
    found = []
    attacked = _attacked(example)
    done = count(1)
    for prior, inputs in attacked:
        e = stem(inputs)
        sent = [*(_sent(e, precision) for precision in RELATIVE_ERROR), *(_noisy(e, noise) for noise in NOISES)]
        rms = e.square().flatten(1).mean(1).sqrt()  # (B,)
        error = torch.cat([rms * scale for scale in (*RELATIVE_ERROR.values(), *NOISES)])
        attack = _Attack(example, prior, stem, lambda: progress(next(done), len(attacked) * STEPS))
        made = attack.run(torch.cat(sent), error)
        found.append([_psnr_db(inputs, part, example) for part in _cut(made, len(sent))])
    return [max(kinds) for kinds in zip(*found, strict=True)]


Prior = Callable[[Tensor], Tensor]
"""P of one input: white noise (B, …) to what inputs look like, of the same size on average."""


def _attacked(example: Mapping[str, Tensor]) -> list[tuple[Prior, dict[str, Tensor]]]:
    """Return what is attacked: inputs, each with the prior that the attacker has of them."""
    samples = 1 if sum(value[0].numel() for value in example.values()) > LARGE else SAMPLES
    few = {name: value[:samples] for name, value in example.items()}
    plain: list[tuple[Prior, dict[str, Tensor]]] = [(_as_it_is, few)]
    if any(value.ndim == _IMAGE for value in example.values()):
        generator = torch.Generator().manual_seed(0)
        drawn = {name: _photograph(value, generator) for name, value in few.items()}
        plain += [(_smooth, few), (_smooth, drawn)]
    return plain


def _as_it_is(u: Tensor) -> Tensor:
    return u


def _smooth(u: Tensor) -> Tensor:
    """Give white noise (B, C, H, W) the spectrum of photographs; other inputs stay."""
    if u.ndim != _IMAGE:
        return u
    height, width = u.shape[-2:]
    frequency = (torch.fft.fftfreq(height)[:, None].square() + torch.fft.fftfreq(width).square()).sqrt()
    amplitude = 1 / frequency.clamp_min(0.5 / max(height, width))
    amplitude = amplitude / amplitude.square().mean().sqrt()
    return cast("Tensor", torch.fft.ifft2(torch.fft.fft2(u) * amplitude).real)


def _photograph(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return drawn images within the range of the example's, most of what they show in all channels alike."""
    if like.ndim != _IMAGE:
        return like
    white = torch.randn(like.shape[0], 1, *like.shape[2:], generator=generator)
    white = white + 0.4 * torch.randn(like.shape, generator=generator)
    drawn = _smooth(white)
    drawn = (drawn - drawn.mean((1, 2, 3), keepdim=True)) / drawn.std((1, 2, 3), keepdim=True)
    low, high = like.min(), like.max()
    return (0.5 * (low + high) + 0.2 * (high - low) * drawn).clamp(low, high)


def _sent(e: Tensor, precision: Precision) -> Tensor:
    """Return embeddings as they arrive."""
    layout = MessageLayout(embedding=tuple(e.shape[1:]), representation=((1,),), max_samples=len(e))
    header = SplitHeader(kind="embedding", round=0, samples=len(e), precision=precision)
    message = encode(SplitMessage(header=header, arrays=(e.numpy(),)))
    return torch.from_numpy(decode(layout, message).arrays[0])


def _noisy(e: Tensor, noise: float) -> Tensor:
    return torch.from_numpy(add_noise(np.ascontiguousarray(e.numpy()), noise, bytes(KEY_BYTES)))


def _cut(made: Mapping[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    cut = {name: value.chunk(parts) for name, value in made.items()}
    return [{name: chunks[part] for name, chunks in cut.items()} for part in range(parts)]


def _psnr_db(inputs: Mapping[str, Tensor], made: Mapping[str, Tensor], example: Mapping[str, Tensor]) -> float:
    """Return the PSNR of the input that came back best, to a tenth."""
    best = 0.0
    for name, value in inputs.items():
        low, high = float(example[name].min()), float(example[name].max())
        error = float((made[name].clamp(low, high) - value).double().square().mean())
        peak = max(high - low, 1e-12) ** 2
        best = max(best, min(MAX_PSNR_DB, 10 * float(np.log10(peak / max(error, 1e-30)))))
    return round(best, 1)


@dataclass(frozen=True)
class _Attack:
    """Gauss-Newton on a batch, each sample by itself."""

    example: Mapping[str, Tensor]
    prior: Prior
    stem: Callable[[Mapping[str, Tensor]], Tensor]
    stepped: Callable[[], None]
    """Called after each step."""

    def run(self, sent: Tensor, error: Tensor) -> dict[str, Tensor]:
        """Return the inputs made from embeddings (B, …) with errors (B,)."""
        batch = len(sent)
        scale = error.clamp_min(torch.finfo(torch.float32).tiny).reshape(batch, *[1] * (sent.ndim - 1))
        u = torch.zeros(batch, sum(value[0].numel() for value in self.example.values()))  # (B, D)

        def misfit(at: Tensor) -> Tensor:
            return (self.stem(self._inputs(at)) - sent) / scale

        def objective(at: Tensor) -> Tensor:  # (B,)
            with torch.no_grad():
                value = misfit(at).square().flatten(1).sum(1) + at.square().sum(1)
            return torch.where(value.isfinite(), value, torch.inf)

        for _ in range(STEPS):
            step = _gauss_newton_step(misfit, u)
            values = torch.stack([objective(u + size * step) for size in STEP_SIZES])  # (4, B)
            u = u + torch.tensor(STEP_SIZES)[values.argmin(0)][:, None] * step
            self.stepped()
        return self._inputs(u)

    def _inputs(self, u: Tensor) -> dict[str, Tensor]:
        """Return the inputs of u (B, D)."""
        found, start = {}, 0
        for name, value in self.example.items():
            size = value[0].numel()
            white = u[:, start : start + size].reshape(len(u), *value.shape[1:])
            found[name] = value.mean() + value.std() * self.prior(white)
            start += size
        return found


def _gauss_newton_step(misfit: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    """Return the step (B, D) that solves (JᵀJ + 1) step = -(Jᵀ r + u), each sample by itself.

    J v is the derivative of Jᵀ w · v by w, so that backward passes are all that the stem's operators need.
    """
    at = u.detach().requires_grad_()
    r = misfit(at)
    w = torch.zeros_like(r, requires_grad=True)
    (pulled,) = torch.autograd.grad(r, at, w, create_graph=True)

    def forward(v: Tensor) -> Tensor:
        return torch.autograd.grad(pulled, w, v, retain_graph=True)[0]

    def back(y: Tensor) -> Tensor:
        return torch.autograd.grad(r, at, y, retain_graph=True)[0]

    residual = -(back(r.detach()) + u)
    step, direction = torch.zeros_like(u), residual.clone()
    size = residual.square().sum(1)  # (B,)
    for _ in range(SOLVER_STEPS):
        curved = back(forward(direction)) + direction
        length = size / (direction * curved).sum(1).clamp_min(torch.finfo(torch.float32).tiny)
        step = step + length[:, None] * direction
        residual = residual - length[:, None] * curved
        before, size = size, residual.square().sum(1)
        direction = residual + (size / before.clamp_min(torch.finfo(torch.float32).tiny))[:, None] * direction
    return step.nan_to_num(0.0, 0.0, 0.0)
