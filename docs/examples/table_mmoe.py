"""A table: two questions about each row, by a multi-gate mixture of experts.

    python -m export compile docs/examples/table_mmoe.py:build --out bundle

A row is numbers (B, 12) and categories (B, 3), each from 0 to 19. Four experts are shared; each task has a gate that
weighs them (Ma et al., "Modeling task relationships in multi-task learning with multi-gate mixture-of-experts", KDD
2018). The gates read the row as well, so the encoder returns it beside the experts' answers.
"""

import torch
from torch import nn

from export.losses import cross_entropy, l2
from export.model import MultiTaskModel

NUMBERS, CATEGORIES, VALUES, EXPERTS, WIDTH = 12, 3, 20, 4, 32


class Experts(nn.Module):
    """Numbers and categories to what each expert says of the row (B, 4, 32), and the row (B, 36)."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VALUES, 8)
        row = NUMBERS + CATEGORIES * 8
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(row, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(EXPERTS)
        )

    def forward(self, numbers, categories):
        row = torch.cat([numbers, self.table(categories).flatten(1)], dim=1)
        return torch.stack([expert(row) for expert in self.experts], dim=1), row


class Gated(nn.Module):
    """A task's gate and tower."""

    def __init__(self, outputs):
        super().__init__()
        self.gate = nn.Linear(NUMBERS + CATEGORIES * 8, EXPERTS)
        self.tower = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, outputs))

    def forward(self, z):
        answers, row = z
        weights = torch.softmax(self.gate(row), dim=1)
        return self.tower((weights[:, :, None] * answers).sum(1))


def build():
    """Two classes, and a number."""
    return MultiTaskModel(
        encoder=Experts(),
        heads={"churn": Gated(2), "spend": Gated(1)},
        losses={"churn": cross_entropy(), "spend": l2},
        example_input={"numbers": torch.rand(4, NUMBERS), "categories": torch.randint(0, VALUES, (4, CATEGORIES))},
        example_targets={"churn": torch.randint(0, 2, (4,)), "spend": torch.rand(4, 1)},
    )
