import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from export.errors import OperatorUnsupported  # noqa: E402
from export.functions import sequences  # noqa: E402

pytestmark = pytest.mark.workstation


class Fn(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *values):
        return self.function(*values)


def places(x, count=2):
    return torch.tanh(x[:, :count].movedim(1, -1)) * 1.3


CASES = {
    "grid_sample": lambda x: F.grid_sample(x, places(x), align_corners=False),
    "grid_sample_aligned": lambda x: F.grid_sample(x, places(x), padding_mode="border", align_corners=True),
    "grid_sample_reflected": lambda x: F.grid_sample(x, places(x), padding_mode="reflection", align_corners=False),
    "grid_sample_bicubic": lambda x: (
        F.grid_sample(x, places(x), mode="bicubic", align_corners=False)
        + F.grid_sample(x, places(x), mode="bicubic", padding_mode="reflection", align_corners=True)
    ),
    "grid_sample_nearest": lambda x: F.grid_sample(x, places(x), mode="nearest", align_corners=False),
    "spatial_transformer": lambda x: F.grid_sample(
        x, F.affine_grid(x[:, 0, :2, :3].contiguous(), list(x.shape), align_corners=False), align_corners=False
    ),
    "grid_sample_of_volumes": lambda x: F.grid_sample(
        x.unsqueeze(2), torch.tanh(x.unsqueeze(2).movedim(1, -1)), align_corners=True
    ),
    "bilinear": lambda x: F.bilinear(x[:, 0], x[:, 1], torch.arange(50.0).reshape(2, 5, 5) / 50),
    "cdist": lambda x: torch.cdist(x[:, 0], x[:, 1]) + torch.cdist(x[:, 0], x[:, 1], p=1.0),
    "cdist_to_itself": lambda x: torch.cdist(x[:, 0], x[:, 0]),
    "pdist": lambda x: x[:, 0] + torch.pdist(torch.arange(5.0).reshape(5, 1).expand(5, 2) ** 2)[:5],
    "weight_norm": lambda x: F.linear(x, torch._weight_norm(torch.arange(10.0).reshape(2, 5) + 1, torch.ones(2, 1))),
    "gaussian_nll": lambda x: F.gaussian_nll_loss(x, 2 * x, x.exp(), full=True, reduction="none"),
    "multi_margin": lambda x: F.multi_margin_loss(
        x[:, 0, 0], (x[:, 0, 0, 0] > 0).long(), weight=torch.arange(5.0), reduction="none"
    ),
    "multilabel_margin": lambda x: F.multilabel_margin_loss(
        x[:, 0, 0], torch.tensor([3, 0, -1, 1, 2]).expand(len(x), 5), reduction="none"
    ),
    "bags": lambda x: x[:, 0, 0] + F.embedding_bag((x[:, 0, 0] > 0).long(), torch.arange(10.0).reshape(2, 5)),
    "bags_weighted": lambda x: F.embedding_bag(
        (x[:, 0, 0, :3] > 0).long(), torch.arange(10.0).reshape(2, 5), per_sample_weights=x[:, 0, 1, :3], mode="sum"
    ),
    "bags_by_the_largest": lambda x: (
        x[:, 0, 0] + F.embedding_bag(torch.tensor([1, 0, 2]).expand(len(x), 3), torch.eye(5), mode="max")
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_function_is_pytorchs(case, same_as_torch):
    same_as_torch(Fn(CASES[case]), (3, 4, 5))


class Ctc(nn.Module):
    def __init__(self, normal=True, **options):
        super().__init__()
        self.normal = normal
        self.options = options

    def forward(self, x, targets):
        lengths = torch.full((x.shape[0],), 6) - (targets[:, 0] > 2).long()
        sizes = torch.full((x.shape[0],), 2) + (targets[:, 0] > 1).long()
        log_probs = F.log_softmax(x, -1) if self.normal else x
        return F.ctc_loss(log_probs.transpose(0, 1), targets, lengths, sizes, **self.options)


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"normal": False}, {"zero_infinity": True}])
def test_ctc_is_pytorchs(options, same_as_torch):
    same_as_torch(Ctc(**options), (6, 5), targets=lambda batch: torch.randint(1, 5, (batch, 3)))


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (nn.RNN, {"nonlinearity": "relu", "bias": False}),
        (nn.RNN, {"num_layers": 2}),
        (nn.LSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
        (nn.LSTM, {"proj_size": 2}),
        (nn.GRU, {"bidirectional": True, "batch_first": True}),
    ],
)
def test_recurrent_layer_is_pytorchs_and_one_node_for_all_steps(layer, options, same_as_torch):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer(4, 3, **options)

        def forward(self, x):
            along = 0 if options.get("batch_first") else 1
            found, last = self.layer(x.transpose(0, along))
            ends = last[1] if isinstance(last, tuple) else last
            return torch.cat([found.transpose(0, along).flatten(1), ends.transpose(0, 1).flatten(1)], 1)

    torch.manual_seed(0)
    translated = same_as_torch(Recurrent(), (5, 4))
    layers = 0 if "proj_size" in options else options.get("num_layers", 1) * (1 + options.get("bidirectional", 0))
    assert translated.nodes.count("Scan") == 2 * layers  # forward and back


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_recurrent_cell_is_pytorchs(cell, same_as_torch):
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell(4, 3)

        def forward(self, x):
            state = None
            for step in range(x.shape[1]):
                state = self.cell(x[:, step], state)
            return state[0] if isinstance(state, tuple) else state

    torch.manual_seed(0)
    same_as_torch(Steps(), (3, 4))


@pytest.mark.parametrize("parametrised", [True, False])
def test_layer_with_weight_norm_is_pytorchs(parametrised, same_as_torch):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3)
    layer = nn.utils.parametrizations.weight_norm(layer) if parametrised else nn.utils.weight_norm(layer)
    same_as_torch(layer, (3, 5, 6))


@pytest.mark.parametrize("causal", [None, True, False])
def test_transformer_with_a_mask_is_pytorchs(causal, same_as_torch):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.net = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(6))

        def forward(self, x):
            return self.net(x, mask=self.mask, is_causal=causal)

    torch.manual_seed(0)
    same_as_torch(Encoder(), (6, 8))


LENGTHS = torch.ones(2, dtype=torch.int64)


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True, proj_size=2)

    def forward(self, x):
        return self.lstm(x)[0]


@pytest.mark.parametrize(
    ("module", "shape", "text"),
    [
        (Inner(), (sequences.MAX_STEPS + 1, 4), "leave proj_size out"),
        (Fn(lambda x: F.ctc_loss(x.transpose(0, 1), LENGTHS, LENGTHS, LENGTHS)), (3, 4), "padded"),
        (Fn(lambda x: F.embedding_bag((x > 0).long(), torch.eye(2), max_norm=1.0)), (3,), "leave both out"),
    ],
)
def test_function_that_cannot_be_written_says_what_to_use(module, shape, text, translate):
    with pytest.raises(OperatorUnsupported, match=text) as caught:
        translate(module, torch.randn(2, *shape))
    assert caught.value.module.startswith("net")
