"""The paper's own figures, to hold ours against.

Source: Zhuang, Wen, Lyu, Zhang: MAS: Towards Resource-Efficient Federated Multiple-Task Learning, ICCV 2023 (arXiv
2307.11285), its figure of five tasks (sdnkt) on Taskonomy: 32 clients, 100 rounds, GPU hours. Read off the figure by
eye: ±0.001 in loss, ±0.05 h. Loss and time are of other data, another model's size and another machine than ours: what
can be compared is the order of the methods and their ratios to one-by-one.
"""

# coverage: every branch

import re

import msgspec

TASKS = frozenset({"segmentation", "depth", "normals", "keypoints", "edge_texture"})
"""The tasks that the figures are of."""


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A point of the published figure."""

    test_loss: float
    gpu_h: float


REFERENCE = "one-by-one"
FIGURES = {
    REFERENCE: Published(test_loss=0.603, gpu_h=16.9),
    "all-in-one": Published(test_loss=0.677, gpu_h=7.3),
    "all-in-one + GradNorm": Published(test_loss=0.691, gpu_h=7.8),
    "all-in-one + FedProx": Published(test_loss=0.711, gpu_h=7.7),
    "TAG-2": Published(test_loss=0.624, gpu_h=17.5),
    "TAG-3": Published(test_loss=0.613, gpu_h=20.6),
    "TAG-4": Published(test_loss=0.603, gpu_h=25.2),
    "HOA-2": Published(test_loss=0.651, gpu_h=63.0),
    "HOA-3": Published(test_loss=0.597, gpu_h=63.0),
    "HOA-4": Published(test_loss=0.597, gpu_h=63.0),
    "MAS-2": Published(test_loss=0.578, gpu_h=8.8),
    "MAS-3": Published(test_loss=0.555, gpu_h=9.7),
    "MAS-4": Published(test_loss=0.548, gpu_h=12.9),
}


def _plain(name: str) -> str:
    """Return a name without case, blanks and signs; GradNorm and FedProx alone are those of the all-in-one task."""
    plain = re.sub(r"[^a-z0-9]", "", name.casefold())
    return f"allinone{plain}" if plain in {"gradnorm", "fedprox"} else plain


_BY_NAME = {_plain(name): figure for name, figure in FIGURES.items()}


def published(method: str) -> Published | None:
    """Return the published figures of a method by its name; None if there are none."""
    return _BY_NAME.get(_plain(method))
