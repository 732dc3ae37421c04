"""A Vision Transformer to be trained in two places: patches and heads on the device, the blocks where there is room.

The stem cuts an image into patches and embeds them with their positions; the shared encoder is a stack of attention
blocks (Dosovitskiy et al., ICLR 2021). That is the division of FedBone (Chen et al., JCST 39(5), 2024). Such a stem is
linear, and images come back from its embeddings; a narrow one keeps a few rectified numbers of each patch instead, and
the encoder widens them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.model import MultiTaskModel
from export.models.adaptation import KIND, Attention, assemble
from export.models.xception import NINE, VIEWS


class Patches(nn.Module):
    """(B, 3, H, W) to (B, N, C): N = H/P · W/P patches of P × P pixels, with learnt positions."""

    def __init__(self, size: int, patch: int, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, width, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))

    def forward(self, x: Tensor) -> Tensor:
        """Patches row by row."""
        tokens: Tensor = self.project(x).flatten(2).transpose(1, 2)  # (B, N, C)
        return tokens + self.position


class NarrowPatches(nn.Sequential):
    """(B, 3, H, W) to (B, few, H/P, W/P): a few numbers of each patch of P × P pixels, by strided layers and ReLU."""

    def __init__(self, patch: int, few: int) -> None:
        half = nn.Conv2d(3, 4 * few, patch // 2, patch // 2)
        super().__init__(half, nn.ReLU(), nn.Conv2d(4 * few, few, 2, 2), nn.ReLU())


class TransformerBlock(nn.Module):
    """(B, N, C) to the same shape: attention and a two-layer perceptron, each added to what it was given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before_attention, self.before_layers = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised before, not after."""
        x = x + self.attention(self.before_attention(x))
        result: Tensor = x + self.layers(self.before_layers(x))
        return result


class Widening(nn.Module):
    """(B, few, side, side) to (B, N, C), where N is side², with learnt positions."""

    def __init__(self, few: int, width: int, side: int) -> None:
        super().__init__()
        self.project = nn.Linear(few, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, side**2, width))

    def forward(self, e: Tensor) -> Tensor:
        """Patches row by row."""
        tokens: Tensor = self.project(e.flatten(2).transpose(1, 2))
        return tokens + self.position


class TransformerEncoder(nn.Module):
    """(B, N, C) to (B, C, side, side), where N is side²."""

    def __init__(self, width: int, heads: int, depth: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, e: Tensor) -> Tensor:
        """Return the patches as an image of features."""
        tokens: Tensor = self.norm(self.blocks(e))
        return tokens.transpose(1, 2).reshape(e.shape[0], e.shape[2], self.side, self.side)


def make(
    tasks: Sequence[str],
    *,
    width: int,
    heads: int,
    depth: int,
    size: int,
    patch: int = 8,
    batch: int = 2,
    narrow: int | None = None,
) -> MultiTaskModel:
    """Return a model for dense tasks of MAS, and `kind`, an image's class; inputs of `size` × `size` pixels.

    With `narrow`, the stem keeps so many numbers of each patch.
    """
    stem: nn.Module = Patches(size, patch, width)
    encoder: nn.Module = TransformerEncoder(width, heads, depth, size // patch)
    if narrow is not None:
        stem, encoder = NarrowPatches(patch, narrow), nn.Sequential(Widening(narrow, width, size // patch), encoder)
    return assemble(stem, encoder, tasks, width=width, scale=patch, size=size, batch=batch)


def build() -> MultiTaskModel:
    """Return two dense tasks and the class of an image, 64 pixels."""
    return make(("depth", "segmentation", KIND), width=64, heads=4, depth=4, size=64)


def build_small_nine() -> MultiTaskModel:
    """Return all nine tasks of MAS, 32 pixels."""
    return make(NINE, width=64, heads=4, depth=4, size=32, patch=4)


def build_narrow() -> MultiTaskModel:
    """Return the model of `build` with a stem that keeps 16 numbers of the 192 of a patch."""
    return make(("depth", "segmentation", KIND), width=64, heads=4, depth=4, size=64, narrow=16)


def build_narrow_nine() -> MultiTaskModel:
    """Return the model of `build_small_nine` with a stem that keeps 8 numbers of the 48 of a patch."""
    return make(NINE, width=64, heads=4, depth=4, size=32, patch=4, narrow=8)


def build_coarse_nine() -> MultiTaskModel:
    """Return nine tasks, 32 pixels, larger patches: less traffic, and six times the parameters on the server."""
    return make(NINE, width=128, heads=4, depth=6, size=32, patch=8)


def build_views() -> MultiTaskModel:
    """Return the five tasks of the real sample views, 64 pixels."""
    return make(VIEWS, width=64, heads=4, depth=4, size=64)


def build_nine() -> MultiTaskModel:
    """Return all nine tasks of MAS, 64 pixels."""
    return make(NINE, width=128, heads=4, depth=6, size=64)


def build_small() -> MultiTaskModel:
    """Return two dense tasks over the 21 million parameters of ViT-Small's blocks, 224 pixels."""
    return make(("depth", "segmentation"), width=384, heads=6, depth=12, size=224, patch=16)


def build_general() -> MultiTaskModel:
    """Return nine tasks over the 85 million parameters of ViT-Base's blocks, 224 pixels.

    Weights, gradient and momentum alone are a gigabyte: more than a small board has.
    """
    return make(NINE, width=768, heads=12, depth=12, size=224, patch=16)
