import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from export.errors import ExportError  # noqa: E402
from export.lowering import reduction  # noqa: E402

pytestmark = pytest.mark.workstation

SHAPE = (3, 5, 4)
SEEN = torch.ones(5, 5).tril().bool()
SEEN[2] = False  # a place that sees nothing attends to nothing


class Fn(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Matrix(nn.Module):
    def __init__(self, function, shape=(4, 6)):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return self.function(x, self.weight)


CASES = {
    "sum": lambda x: x * x.sum(),
    "sum_of_one": lambda x: x.sum(1),
    "sum_of_last_kept": lambda x: x * x.sum(-1, keepdim=True),
    "sum_of_two": lambda x: (x * x).sum((1, -1)),
    "sum_over_the_batch": lambda x: x * x.sum(0),
    "sum_of_truth": lambda x: x * (x > 0).sum(),
    "sum_of_truth_by_row": lambda x: x * (x > 0).sum(-1, keepdim=True),
    "sum_in_double": lambda x: x * x.sum(dtype=torch.float64).float(),
    "sum_of_scalar": lambda x: x.sum() * 2,
    "mean": lambda x: (x * x).mean(),
    "mean_of_one": lambda x: (x * x).mean(2),
    "mean_of_two_kept": lambda x: x - x.mean((2, 3), keepdim=True),
    "mean_over_the_batch": lambda x: x * x.mean(0, keepdim=True),
    "mean_of_converted": lambda x: x * (x > 0).to(torch.float32).mean(),
    "max": lambda x: x * x.max() - x.min(),
    "max_along": lambda x: x.max(1)[0],
    "max_along_kept": lambda x: x - x.max(-1, keepdim=True)[0],
    "min_along": lambda x: x.min(2)[0],
    "min_and_its_place": lambda x: x.min(1)[0] * x.min(1)[1],
    "var": lambda x: x.var(1),
    "var_of_all_dimensions": lambda x: x.var((1, 2, 3), correction=0),
    "var_kept": lambda x: x / x.var((2, 3), keepdim=True),
    "std": lambda x: x.std(-1, keepdim=True),
    "std_of_two": lambda x: x.std((1, 2), correction=2),
    "var_and_mean": lambda x: torch.mul(*torch.var_mean(x, (2, 3))),
    "std_and_mean_kept": lambda x: x * torch.add(*torch.std_mean(x, 1, keepdim=True)),
    "cumsum": lambda x: x.cumsum(1) * x.cumsum(-1),
    "cumsum_of_truth": lambda x: x * (x > 0).cumsum(2),
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1),
    "attention_causal": lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1, is_causal=True),
    "attention_scaled": lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1, scale=0.3),
    "attention_masked": lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1, attn_mask=SEEN),
    "attention_biased": lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1, attn_mask=SEEN * 0.5),
    "amax": lambda x: x.amax(1),
    "amax_of_all": lambda x: x * x.amax(),
    "amax_kept": lambda x: x - x.amax((2, 3), keepdim=True),
    "amin": lambda x: x.amin(-1),
    "prod": lambda x: x * torch.arange(1.0, 4.0).prod(),
    "prod_along": lambda x: x.prod(1) * x.prod(-1, keepdim=True).sum(1),
    "any": lambda x: x * (x > 1).any(1, keepdim=True) + x * (x > 2).any((1, 2), keepdim=True) * (x > 0).any(),
    "all": lambda x: x * (x > -1).all(1, keepdim=True),
    "sort": lambda x: x.sort(-1)[0] * torch.arange(4),
    "sort_from_the_largest": lambda x: (
        x.sort(dim=1, descending=True, stable=True)[0] * torch.arange(3).reshape(3, 1, 1)
    ),
    "places_in_order": lambda x: x * x.argsort(2),
    "top": lambda x: x.flatten(1).topk(10)[0].mean(1, keepdim=True),
    "top_of_the_smallest": lambda x: x.topk(2, 2, largest=False)[0],
    "truths_in_order": lambda x: x * (x > 0).sort(-1)[0],
    "median": lambda x: x - x.median(1, keepdim=True)[0],
    "median_of_an_even_number": lambda x: x.median(-1)[0],
    "median_of_numbers": lambda x: x[:, 0] * torch.log(x.detach()).nanmedian(1)[0].nan_to_num(),
    "kth_value": lambda x: x.kthvalue(2, -1)[0],
    "mode": lambda x: x.mode(1)[0],
    "cumprod": lambda x: x.cumprod(1),
    "cummax": lambda x: x.cummax(2)[0] + x.cummin(1)[0],
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "var_over_the_batch": lambda x: x / (1 + x.var((0, 2), correction=0, keepdim=True)),
    "place_of_extreme_of_all": lambda x: x * (torch.arange(6).reshape(2, 3) * 2 % 7).argmax(),
    "place_of_extreme": lambda x: x * x.argmax(1, keepdim=True) + x * x.argmin(2).unsqueeze(2),
    "matrix_times_vector": lambda x: x @ torch.arange(4.0),
    "batched_product_added": lambda x: torch.baddbmm(x[:, 0], x[:, 1] @ x[:, 2].transpose(1, 2), x[:, 0]),
    "einsum_of_attention": lambda x: torch.einsum("bhid,bhjd->bhij", x, x),
    "distance": lambda x: torch.linalg.vector_norm(x[:, 0] - x[:, 1], dim=-1),
    "softmax": lambda x: F.softmax(x, 1),
    "softmax_of_last": lambda x: F.softmax(x, -1),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "log_softmax_of_last": lambda x: F.log_softmax(3 * x, -1),
    "logsumexp": lambda x: torch.logsumexp(x, 1),
    "norm": lambda x: x.norm(dim=1),
    "normalize": lambda x: F.normalize(x, dim=1),
    "cosine": lambda x: F.cosine_similarity(x, x * x + 1, dim=1),
    "batched_product": lambda x: torch.matmul(x, x.transpose(-1, -2)),
    "einsum": lambda x: torch.einsum("bchw,bchv->bwv", x, x),
}
MATRICES = {
    "matmul": torch.matmul,
    "linear": lambda x, w: F.linear(x, w.t()),
    "mm": lambda x, w: torch.mm(x.flatten(0, 2), w),
    "addmm": lambda x, w: torch.addmm(w.sum(0), x.flatten(0, 2), w),
    "addmm_scaled": lambda x, w: torch.addmm(w.sum(0), x.flatten(0, 2), w, beta=0.5, alpha=2.0),
    "bmm": lambda x, w: torch.bmm(x.flatten(0, 1), w.expand(x.shape[0] * 3, 4, 6)),
}


@pytest.mark.parametrize("case", CASES)
def test_reduction_is_pytorchs(case, same_as_torch):
    same_as_torch(Fn(CASES[case]), SHAPE)


@pytest.mark.parametrize("function", [torch.sum, torch.mean, lambda x: x.sum((0, 2, 3)), lambda x: x.mean((2, 3))])
def test_sum_of_many_equal_numbers_is_exact(function, same_as_torch):
    """One reduction of onnxruntime adds them up in a row, and is 2e-4 off."""
    same_as_torch(Fn(function), (1, 300, 320), draw=lambda shape: torch.full(shape, 0.1))


@pytest.mark.parametrize("case", MATRICES)
def test_product_is_pytorchs(case, same_as_torch):
    same_as_torch(Matrix(MATRICES[case]), SHAPE)


def test_linear_layers(same_as_torch):
    same_as_torch(nn.Sequential(nn.Flatten(), nn.Linear(60, 7), nn.Tanh(), nn.Linear(7, 2, bias=False)), SHAPE)


@pytest.mark.parametrize("weights", [True, False])
def test_multi_head_attention_is_pytorchs(weights, same_as_torch):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.inner(x, x * 2, x, need_weights=weights)[0]

    torch.manual_seed(0)
    same_as_torch(Attention(), (5, 8))


def test_transformer_layer_is_pytorchs(same_as_torch):
    torch.manual_seed(0)
    same_as_torch(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), (5, 8))


SCALARS = {
    "softmax": lambda w: torch.softmax(w, 0) * w,
    "log_softmax": lambda w: torch.log_softmax(w, 0) + w,
    "logsumexp": lambda w: torch.logsumexp(w, 0),
    "max": lambda w: w.max(0)[0] * w.amin(0),
    "argmax": lambda w: w + w.argmax(0),
    "cumsum": lambda w: w.cumsum(0) * w.cumprod(0),
    "transpose": lambda w: w.transpose(0, 0).permute(()).t(),
    "gather": lambda w: w.gather(0, torch.tensor(0)),
    "norm": lambda w: torch.norm(w, dim=0),
    "sum": lambda w: w.sum(0) * w.mean(-1) + w.sum(-1, keepdim=True) + w.prod(0),
    "sort": lambda w: w.sort(0)[0] + w.topk(1)[0],
    "median": lambda w: w.median(0)[0] + w.kthvalue(1)[0] + w.mode()[0],
    "any": lambda w: w * (w > 0).any(0),
    "flip": lambda w: w.flip(0),
}


@pytest.mark.parametrize("case", SCALARS)
def test_operator_along_a_tensor_without_dimensions_takes_it_for_one_number(case, same_as_torch):
    function = SCALARS[case]

    class Scalar(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(0.7))

        def forward(self, x):
            return x * function(self.w)

    same_as_torch(Scalar(), (4,))


def test_variance_that_grows_with_the_batch_in_another_way_is_refused(translate):
    with pytest.raises(ExportError, match="neither fixed nor"):
        translate(Fn(lambda x: x * x.var(0)), torch.randn(2, *SHAPE))


def test_place_of_extreme_in_the_whole_batch_is_refused(translate):
    with pytest.raises(ExportError, match="say along which dimension"):
        translate(Fn(lambda x: x * x.argmax()), torch.randn(2, *SHAPE))


@pytest.mark.slow
@pytest.mark.long
def test_every_rule_is_exercised(translate):
    found = translate(nn.Linear(4, 3), torch.randn(2, 4)).operators
    for function in CASES.values():
        found |= translate(Fn(function), torch.randn(2, *SHAPE)).operators
    for function in MATRICES.values():
        found |= translate(Matrix(function), torch.randn(2, *SHAPE)).operators
    assert set(reduction.RULES) - found == set()
