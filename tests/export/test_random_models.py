"""Models that are drawn, layers, shapes, freezes, heads and losses, compile and give PyTorch's numbers.

Five in each run of the tests; `make test-random-models` draws 500. What fails is shrunk by Hypothesis, and kept here as
an example.
"""

import os
from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch")

from hypothesis import HealthCheck, example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from export.compile import compile_model  # noqa: E402
from export.model import MultiTaskModel  # noqa: E402
from export.parity.check import TOLERANCE, check_parity  # noqa: E402

pytestmark = [pytest.mark.workstation, pytest.mark.filterwarnings("ignore")]

DRAWN = int(os.environ.get("MAS_RANDOM_MODELS") or 3)
BATCH = 4


@dataclass(frozen=True)
class Drawn:
    """A model by its names: what a sample is, layers in order, a loss and a hidden layer for each task.

    `freezes` are of the encoder's layers from the first on; those beyond are trained.
    """

    kind: str
    size: int
    layers: tuple[str, ...]
    heads: tuple[tuple[str, str], ...]
    seed: int
    freezes: tuple[str, ...] = ()


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels):
        super().__init__()
        self.inner = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.inner(x)


class First(nn.Module):
    """The sequence that a recurrent layer gives."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.MultiheadAttention(width, 1, batch_first=True)

    def forward(self, x):
        return self.layer(x, x, x, need_weights=False)[0]


ANY = {
    "relu": lambda c: nn.ReLU(),
    "gelu": lambda c: nn.GELU(),
    "silu": lambda c: nn.SiLU(),
    "hardswish": lambda c: nn.Hardswish(),
    "elu": lambda c: nn.ELU(),
    "tanh": lambda c: nn.Tanh(),
    "prelu": lambda c: nn.PReLU(),
    "dropout": lambda c: nn.Dropout(0.2),
    "noise": lambda c: Function(lambda x: x + 0.1 * torch.randn_like(x)),
    "normalised": lambda c: Function(lambda x: nn.functional.normalize(x, dim=-1)),
    "sorted": lambda c: Function(lambda x: x + x.sort(-1)[0]),
    "cumulated": lambda c: Function(lambda x: x.cumsum(-1) / x.shape[-1]),
    "atan": lambda c: Function(torch.atan),
}
LAYERS = {
    "image": ANY
    | {
        "conv3": lambda c: nn.Conv2d(c, 5, 3, padding=1),
        "conv_strided": lambda c: nn.Conv2d(c, 6, 3, 2, 1),
        "conv_dilated": lambda c: nn.Conv2d(c, 4, 3, padding=2, dilation=2, padding_mode="replicate"),
        "depthwise": lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False),
        "transposed": lambda c: nn.ConvTranspose2d(c, 4, 2, 2),
        "batch_norm": nn.BatchNorm2d,
        "group_norm": lambda c: nn.GroupNorm(1, c),
        "instance_norm": lambda c: nn.InstanceNorm2d(c, affine=True),
        "max_pool": lambda c: nn.MaxPool2d(2, ceil_mode=True),
        "avg_pool": lambda c: nn.AvgPool2d(2, ceil_mode=True),
        "adaptive_pool": lambda c: nn.AdaptiveAvgPool2d((3, 2)),
        "adaptive_max_pool": lambda c: nn.AdaptiveMaxPool2d((3, 2)),
        "bilinear": lambda c: nn.Upsample(scale_factor=1.5, mode="bilinear"),
        "residual": lambda c: Residual(nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.ReLU())),
        "gate": Gate,
        "weight_norm": lambda c: nn.utils.parametrizations.weight_norm(nn.Conv2d(c, 4, 1)),
        "rolled": lambda c: Function(lambda x: x.roll(1, -1) + x.flip(-2)),
    },
    "sequence": ANY
    | {
        "linear": lambda c: nn.Linear(c, 6),
        "layer_norm": nn.LayerNorm,
        "rms_norm": nn.RMSNorm,
        "lstm": lambda c: First(nn.LSTM(c, 4, batch_first=True)),
        "gru": lambda c: First(nn.GRU(c, 4, batch_first=True, bidirectional=True)),
        "attention": Attention,
        "transformer": lambda c: nn.TransformerEncoderLayer(c, 1, 8, dropout=0.0, batch_first=True),
        "conv1d": lambda c: Function1d(nn.Conv1d(c, 5, 3, padding=1)),
        "every_other": lambda c: Function(lambda x: x[:, ::2]),
    },
    "table": ANY
    | {
        "linear": lambda c: nn.Linear(c, 7),
        "linear_plain": lambda c: nn.Linear(c, 4, bias=False),
        "batch_norm": nn.BatchNorm1d,
        "layer_norm": nn.LayerNorm,
        "residual": lambda c: Residual(nn.Linear(c, c)),
        "glu": lambda c: nn.Sequential(nn.Linear(c, 8), nn.GLU()),
    },
}


class Function1d(nn.Module):
    """A layer along the steps of a sequence (B, T, C)."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.transpose(1, 2)).transpose(1, 2)


LOSSES = {
    "mse": (nn.MSELoss, 2, lambda: torch.randn(BATCH, 2)),
    "l1": (nn.L1Loss, 1, lambda: torch.randn(BATCH, 1)),
    "smooth_l1": (nn.SmoothL1Loss, 3, lambda: torch.randn(BATCH, 3)),
    "truth": (nn.BCEWithLogitsLoss, 2, lambda: torch.rand(BATCH, 2).round()),
    "classes": (nn.CrossEntropyLoss, 4, lambda: torch.randint(0, 4, (BATCH,))),
    "classes_smoothed": (
        lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
        3,
        lambda: torch.randint(0, 3, (BATCH,)),
    ),
}
SHAPES = {"image": lambda n: (3, n, n + 1), "sequence": lambda n: (n, 5), "table": lambda n: (n,)}


FREEZES = {
    "trained": lambda layer: layer,
    "fixed": lambda layer: layer.requires_grad_(False),
    "evaluated": lambda layer: layer.eval(),
    "fixed_evaluated": lambda layer: layer.requires_grad_(False).eval(),
}


@st.composite
def models(draw):
    kind = draw(st.sampled_from(sorted(LAYERS)))
    return Drawn(
        kind=kind,
        size=draw(st.integers(4, 9)),
        layers=tuple(draw(st.lists(st.sampled_from(sorted(LAYERS[kind])), min_size=1, max_size=6))),
        heads=tuple(
            draw(
                st.lists(
                    st.tuples(st.sampled_from(sorted(LOSSES)), st.sampled_from(["plain", "hidden"])),
                    min_size=1,
                    max_size=3,
                )
            )
        ),
        seed=draw(st.integers(0, 9)),
        freezes=tuple(draw(st.lists(st.sampled_from(sorted(FREEZES)), max_size=7))),
    )


def built(drawn):
    """The model; a layer first of all, so that there is something to train."""
    torch.manual_seed(drawn.seed)
    x = torch.randn(BATCH, *SHAPES[drawn.kind](drawn.size))
    start = {"image": "conv3", "sequence": "linear", "table": "linear"}[drawn.kind]
    layers, z = [], x
    for name in (start, *drawn.layers):
        layers.append(LAYERS[drawn.kind][name](z.shape[1] if drawn.kind == "image" else z.shape[-1]))
        with torch.no_grad():
            z = layers[-1].eval()(z)
    encoder = nn.Sequential(*layers).train()
    for layer, freeze in zip(layers, drawn.freezes, strict=False):
        FREEZES[freeze](layer)
    heads, losses, targets = {}, {}, {}
    for i, (loss, form) in enumerate(drawn.heads):
        make, width, target = LOSSES[loss]
        count = z[0].numel()
        last = [nn.Linear(count, width)] if form == "plain" else [nn.Linear(count, 5), nn.GELU(), nn.Linear(5, width)]
        heads[f"t{i}"] = nn.Sequential(nn.Flatten(), *last)
        losses[f"t{i}"], targets[f"t{i}"] = make(), target()
    return MultiTaskModel(encoder=encoder, heads=heads, losses=losses, example_input=x, example_targets=targets)


@given(models())
@settings(max_examples=DRAWN, derandomize=DRAWN <= 3, suppress_health_check=list(HealthCheck), print_blob=True)
@example(Drawn("sequence", 6, ("lstm", "attention", "layer_norm"), (("classes", "plain"), ("mse", "hidden")), 0))
@example(Drawn("image", 6, ("batch_norm", "max_pool", "gate", "adaptive_max_pool"), (("truth", "plain"),), 1))
@example(
    Drawn("image", 4, ("adaptive_max_pool", "max_pool", "normalised", "adaptive_max_pool"), (("classes", "plain"),), 1)
)
@example(
    Drawn(
        "sequence",
        9,
        ("attention", "attention", "atan", "lstm", "cumulated", "transformer"),
        (("truth", "hidden"), ("mse", "plain")),
        8,
        ("fixed", "fixed"),
    )
)
def test_model_that_is_drawn_gives_pytorchs_numbers(run, drawn):
    assert check_parity(compile_model(built(drawn)), run).max_relative_error <= TOLERANCE
