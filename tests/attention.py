"""Attention over patches and over windows, written against plain torch."""

import torch
import torch.nn.functional as F
from torch import nn


class SelfAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    def __init__(self, attention, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = attention
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches with learnt positions and a class token (Dosovitskiy et al., ICLR 2021)."""

    def __init__(self, size=16, patch=4, width=16, depth=2):
        super().__init__()
        self.patch = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(SelfAttention(width, 4), width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.norm(self.blocks(x))


class FirstToken(nn.Module):
    def __init__(self, width, outputs):
        super().__init__()
        self.fc = nn.Linear(width, outputs)

    def forward(self, z):
        return self.fc(z[:, 0])


class WindowAttention(nn.Module):
    """Attention within windows, shifted or not, with a table of relative positions (Liu et al., Swin, ICCV 2021)."""

    def __init__(self, width, heads, size, window, shift):
        super().__init__()
        self.heads, self.size, self.window, self.shift = heads, size, window, shift
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.02)
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = (place[:, :, None] - place[:, None, :]) + window - 1
        self.register_buffer("index", (apart[0] * (2 * window - 1) + apart[1]).flatten(), persistent=False)
        self.register_buffer("mask", self._mask(), persistent=False)

    def _mask(self):
        region = torch.zeros(self.size, self.size)
        cuts = (slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None))
        if self.shift:
            for i, rows in enumerate(cuts):
                for j, columns in enumerate(cuts):
                    region[rows, columns] = 3 * i + j
        of = self._windows(region.reshape(1, self.size, self.size, 1)).squeeze(-1)
        return torch.where(of[:, None, :] == of[:, :, None], 0.0, -100.0)  # (windows, tokens, tokens)

    def _windows(self, x):
        count, w = self.size // self.window, self.window
        x = x.reshape(-1, count, w, count, w, x.shape[-1]).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, w * w, x.shape[-1])

    def forward(self, x):
        batch, tokens, width = x.shape
        size, w, heads = self.size, self.window, self.heads
        count = (size // w) ** 2
        image = x.reshape(batch, size, size, width)
        if self.shift:
            image = image.roll((-self.shift, -self.shift), (1, 2))
        rows = self._windows(image)
        q, k, v = self.qkv(rows).reshape(-1, w * w, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        scores = (q * (width // heads) ** -0.5) @ k.transpose(-2, -1)
        scores = scores + self.table[self.index].reshape(w * w, w * w, heads).permute(2, 0, 1)
        scores = scores.reshape(batch, count, heads, w * w, w * w) + self.mask[:, None]
        out = (scores.reshape(-1, heads, w * w, w * w).softmax(-1) @ v).transpose(1, 2).reshape(-1, w * w, width)
        side = size // w
        out = self.proj(out).reshape(batch, side, side, w, w, width).permute(0, 1, 3, 2, 4, 5)
        out = out.reshape(batch, size, size, width)
        if self.shift:
            out = out.roll((self.shift, self.shift), (1, 2))
        return out.reshape(batch, tokens, width)


class Swin(nn.Module):
    """Patches, a block of whole windows and one of shifted windows."""

    def __init__(self, size=8, window=4, width=12):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 2, 2)
        self.size = size
        self.blocks = nn.Sequential(
            Block(WindowAttention(width, 3, size, window, 0), width),
            Block(WindowAttention(width, 3, size, window, window // 2), width),
        )

    def forward(self, x):
        z = self.blocks(self.patch(x).flatten(2).transpose(1, 2))
        return z.transpose(1, 2).reshape(-1, z.shape[-1], self.size, self.size)
