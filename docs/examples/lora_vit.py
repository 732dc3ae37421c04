"""LoRA on a Vision Transformer: the blocks are fixed, and changes of low rank are trained and sent.

    python -m export compile docs/examples/lora_vit.py:build --out bundle

Each projection W of attention becomes W + B·A with trained A (r, C) and B (C, r), B zero at first (Hu et al., "LoRA:
low-rank adaptation of large language models", ICLR 2022). A device gets the fixed numbers once; what it trains, keeps
momentum of and sends are A, B and the heads.
"""

import torch
from torch import nn

from export.losses import cross_entropy, masked_l1
from export.model import MultiTaskModel
from export.models.vit import Patches, TransformerEncoder

SIZE, PATCH, WIDTH, DEPTH = 64, 8, 64, 4
RANK = 4
CLASSES = 18


class Lora(nn.Module):
    """A linear layer that is fixed, and a change of low rank: (…, C) to (…, D)."""

    def __init__(self, base, rank):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x):
        return self.base(x) + self.b(self.a(x))


def adapt(module, rank):
    """Fix a module, and give each linear layer of its attention a change of low rank."""
    module.requires_grad_(False)
    for path, child in list(module.named_modules()):
        owner, _, name = path.rpartition(".")
        if isinstance(child, nn.Linear) and "attention" in path:
            setattr(module.get_submodule(owner), name, Lora(child, rank))
    return module


def build():
    """Depth, and classes of pixels, of which 0 is no label."""
    vit = nn.Sequential(Patches(SIZE, PATCH, WIDTH), TransformerEncoder(WIDTH, 4, DEPTH, SIZE // PATCH))
    # Load the weights of a Vision Transformer here, before it is adapted: vit.load_state_dict(torch.load(…)).
    return MultiTaskModel(
        encoder=adapt(vit, RANK),
        heads={
            "depth": nn.Sequential(nn.Conv2d(WIDTH, 1, 1), nn.Upsample(scale_factor=PATCH, mode="bilinear")),
            "segmentation": nn.Sequential(nn.Conv2d(WIDTH, CLASSES, 1), nn.Upsample(scale_factor=PATCH)),
        },
        losses={"depth": masked_l1, "segmentation": cross_entropy(ignore=0)},
        example_input=torch.rand(4, 3, SIZE, SIZE),
        example_targets={
            "depth": torch.rand(4, 1, SIZE, SIZE),
            "segmentation": torch.randint(0, CLASSES, (4, SIZE, SIZE)),
        },
    )
