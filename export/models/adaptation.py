"""Heads that begin with task adaptation, for a shared encoder.

The shared encoder learns what helps every task; a few layers of its own find what a task needs of it (FedBone: Chen et
al., JCST 39(5), 2024). For dense tasks they mix channels and look at a large neighbourhood, for classes of whole images
they attend to all places.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from export.losses import cross_entropy
from export.model import MultiTaskModel
from export.models.xception import CHANNELS, CLASSES, LOSSES, METRICS

KIND = "kind"
"""The task of the class of a whole image."""
KINDS = 10


class Attention(nn.Module):
    """(B, N, C) to the same shape: every token looks at all others, with several heads of attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Scaled dot products."""
        batch, tokens, width = x.shape
        split = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = split.unbind(0)  # each (B, heads, N, C / heads)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        result: Tensor = self.project(seen)
        return result


class DenseHead(nn.Sequential):
    """(B, C, h, w) to (B, outputs, scale · h, scale · w): channels mixed, a 7 × 7 neighbourhood, then pixels.

    Each place predicts its own scale × scale pixels at once (Shi et al., sub-pixel convolution, CVPR 2016). Nothing but
    the prediction has the size of the image, which is what such a head would take most memory for.
    """

    def __init__(self, width: int, outputs: int, scale: int) -> None:
        inner = max(8, width // 4)
        super().__init__(
            nn.Conv2d(width, inner, 1),
            nn.Conv2d(inner, inner, 7, padding=3, groups=inner),
            nn.GELU(),
            nn.Conv2d(inner, outputs * scale**2, 1),
            nn.PixelShuffle(scale),
        )


class ClassHead(nn.Module):
    """(B, C, h, w) to (B, outputs): attention over all places, then their mean."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.adapt = Attention(width, 1)
        self.out = nn.Linear(width, outputs)

    def forward(self, z: Tensor) -> Tensor:
        """Scores of the classes."""
        places = z.flatten(2).transpose(1, 2)  # (B, N, C)
        result: Tensor = self.out((places + self.adapt(self.norm(places))).mean(1))
        return result


def assemble(
    stem: nn.Module, encoder: nn.Module, tasks: Sequence[str], *, width: int, scale: int, size: int, batch: int
) -> MultiTaskModel:
    """Return a model of a stem and an encoder that ends in (B, width, size / scale, size / scale).

    Tasks are the dense ones of MAS and `kind`; inputs have `size` × `size` pixels.
    """
    generator = torch.Generator().manual_seed(0)
    targets = {}
    for task in tasks:
        if task == KIND:
            targets[task] = torch.randint(0, KINDS, (batch,), generator=generator)
        elif task == "segmentation":
            targets[task] = torch.randint(0, CLASSES, (batch, size, size), generator=generator)
        else:
            targets[task] = torch.rand(batch, CHANNELS[task], size, size, generator=generator)
    return MultiTaskModel(
        stem=stem,
        encoder=encoder,
        heads={
            task: ClassHead(width, KINDS) if task == KIND else DenseHead(width, CHANNELS[task], scale) for task in tasks
        },
        losses={task: cross_entropy() if task == KIND else LOSSES[task] for task in tasks},
        example_input=torch.rand(batch, 3, size, size, generator=generator),
        example_targets=targets,
        metrics={task: METRICS[task] for task in tasks if task in METRICS},
    )
