import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from export.errors import OperatorUnsupported  # noqa: E402
from export.lowering import division, pointwise  # noqa: E402

pytestmark = pytest.mark.workstation

SHAPE = (3, 5, 4)


class Fn(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *values):
        return self.function(*values)


class Weighted(nn.Module):
    """A parameter beside the input, so that broadcasting has a gradient to sum."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.rand(3, 1, 4) + 0.5)

    def forward(self, x):
        return self.function(x, self.weight)


def positive(shape):
    return torch.rand(shape) + 0.1


def whole(shape):
    return torch.randint(-2, 3, shape).float()


def bits_of_pairs(x):
    a, b = x.to(torch.int64), (x * x).to(torch.int64)
    return (a & b) + (a | b) * 2 + (a ^ b)


CASES = {
    "neg": lambda x: -x,
    "abs": torch.abs,
    "abs_at_zero": (torch.abs, whole),
    "exp": torch.exp,
    "log": (torch.log, positive),
    "log1p": (torch.log1p, positive),
    "expm1": torch.expm1,
    "sqrt": (torch.sqrt, positive),
    "rsqrt": (torch.rsqrt, positive),
    "reciprocal": (torch.reciprocal, positive),
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "tan": lambda x: torch.tan(x.clamp(-1, 1)),
    "asin": lambda x: torch.asin(torch.tanh(x)),
    "acos": lambda x: torch.acos(torch.tanh(x)),
    "atan": torch.atan,
    "atan2": lambda x: torch.atan2(x, x * x - 1),
    "atan2_on_the_axes": (lambda x: torch.atan2(x, x.flip(1)), whole),
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "asinh": torch.asinh,
    "acosh": lambda x: torch.acosh(x * x + 1.1),
    "atanh": lambda x: torch.atanh(torch.tanh(x) * 0.9),
    "sinc": torch.sinc,
    "sinc_at_zero": (torch.sinc, whole),
    "angle": lambda x: x + torch.angle(x),
    "hypot": lambda x: torch.hypot(x, x + 1),
    "copysign": lambda x: torch.copysign(x, x.roll(1, 1)) + torch.copysign(x, -2.0),
    "fmax": lambda x: torch.fmax(x, torch.log(x)) + torch.fmin(torch.log(x), 2 * x),
    "erfc": torch.erfc,
    "erfinv": lambda x: torch.erfinv(torch.tanh(x)),
    "trunc": lambda x: torch.trunc(3 * x) * x + x.to(torch.int64).trunc() * x,
    "frac": lambda x: torch.frac(3 * x),
    "round_decimals": lambda x: x * torch.round(x, decimals=1) + x * torch.round(100 * x, decimals=-1),
    "floor_division": lambda x: torch.div(x, 0.3, rounding_mode="floor") * x,
    "floor_division_exact": (lambda x: torch.div(x, 0.1, rounding_mode="floor") * x, lambda shape: whole(shape) / 10),
    "floor_division_by_tensors": lambda x: x * torch.div(x, x.roll(1, 1), rounding_mode="floor").clamp(-9, 9).detach(),
    "floor_division_by_zero": (
        lambda x: x * torch.div(1 + x.detach().abs(), 0 * x.detach(), rounding_mode="floor").isinf(),
        whole,
    ),
    "floor_division_of_integers": lambda x: x * (torch.arange(-4, 4)[:4] // 3) + x * ((9 * x).to(torch.int64) // 2),
    "division_cut": lambda x: x * torch.div(5 * x, 0.7, rounding_mode="trunc"),
    "division_cut_of_integers": lambda x: x * torch.div((9 * x).to(torch.int64), -2, rounding_mode="trunc"),
    "division_not_rounded": lambda x: torch.div(x, 3, rounding_mode=None),
    "rest": lambda x: torch.fmod(x, 0.3) * x + torch.fmod(x, (x * x + 1).detach()),
    "nan_to_num": lambda x: torch.nan_to_num(torch.log(x), nan=0.5, posinf=1.0, neginf=-2.0),
    "logaddexp": lambda x: torch.logaddexp(x, 2 * x),
    "number_to_the_power": lambda x: 2.0**x + torch.pow(3, x),
    "threshold_elsewhere": lambda x: F.threshold(x, 0.5, -2.0),
    "hardshrink": lambda x: F.hardshrink(x) + F.softshrink(x),
    "not_of_numbers": (lambda x: x * torch.logical_not(x) + x.exp() * torch.logical_not(x), whole),
    "and_of_numbers": (lambda x: x * torch.logical_and(x, x > 0) + x * torch.logical_xor(x, x - 1), whole),
    "bits": (lambda x: x * ((x.to(torch.int64) & 1) | 4) + x * ~(x.to(torch.int64) ^ 1) + x * bits_of_pairs(x), whole),
    "truth_maximum": lambda x: x * torch.maximum(x > 0, x > 1) + x * torch.minimum(x < 0, x > -1),
    "masked_fill_with_a_tensor": lambda x: x.masked_fill(x > 0.3, (x.sum() * 0.1).detach()),
    "polynomial_of_a_view": lambda x: _change_a_view(x * 1),
    "sign": lambda x: torch.sign(x) * x,
    "sgn": lambda x: torch.sgn(x) * x,
    "floor": lambda x: torch.floor(x) * x,
    "ceil": lambda x: torch.ceil(x) * x,
    "round": lambda x: torch.round(x) * x,
    "remainder": lambda x: torch.remainder(x, 0.3) * x,
    "remainder_of_integers": lambda x: x * ((4 * x).to(torch.int64) % 3),
    "remainder_of_tensors": (lambda x: x * torch.remainder(x, (x * x + 1).detach()), positive),
    "exp2": torch.exp2,
    "log2": (torch.log2, positive),
    "log10": (torch.log10, positive),
    "logit": lambda x: torch.logit(torch.sigmoid(x), eps=1e-3),
    "exclusive_or": lambda x: x * ((x > 0) ^ (x > 1)) + x * torch.logical_xor(x > 0, x < 1),
    "relu": F.relu,
    "relu_at_zero": (F.relu, whole),
    "relu_in_place": lambda x: F.relu(x * 2, inplace=True),
    "relu_of_small_values": (F.relu, lambda shape: torch.randn(shape) * 1e-30),
    "relu6": lambda x: F.relu6(8 * x),
    "relu6_of_small_values": (F.relu6, lambda shape: torch.randn(shape) * 1e-8),
    "relu6_near_its_bound": (F.relu6, lambda shape: 6 + torch.randn(shape) * 1e-6),
    "hardtanh": F.hardtanh,
    "hardtanh_bounds": lambda x: F.hardtanh(x, -0.3, 0.6),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "leaky_relu_at_zero": (F.leaky_relu, whole),
    "leaky_relu_in_place": lambda x: F.leaky_relu(x * 1, 0.2, inplace=True),
    "threshold": lambda x: F.relu(x - 0.5),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": lambda x: F.hardswish(4 * x),
    "hardsigmoid": lambda x: F.hardsigmoid(4 * x),
    "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.7),
    "softplus": F.softplus,
    "softplus_beta": lambda x: F.softplus(x, beta=3.0, threshold=2.0),
    "mish": F.mish,
    "logsigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "square": torch.square,
    "power": (lambda x: x**2.5, positive),
    "power_of_three": lambda x: x**3,
    "power_of_half": (lambda x: x**0.5, positive),
    "power_of_tensors": (lambda x: torch.pow(x, x.detach() + 1), positive),
    "add_scalar": lambda x: x + 3,
    "add_alpha": lambda x: torch.add(x, x * x, alpha=0.3),
    "sub_scalar": lambda x: x - 0.5,
    "sub_alpha": lambda x: torch.sub(x, x * x, alpha=2),
    "rsub": lambda x: 3 - x,
    "rsub_alpha": lambda x: torch.rsub(x, 1.5, alpha=2),
    "rsub_tensor": lambda x: torch.rsub(x, x * x),
    "mul_scalar": lambda x: x * 1.5,
    "div_scalar": lambda x: x / 7,
    "div_by_tensor": (lambda x: (x + 1) / (x * x + 1), positive),
    "maximum": lambda x: torch.maximum(x, -2 * x),
    "minimum": lambda x: torch.minimum(x, x * x),
    "maximum_of_equals": (lambda x: torch.maximum(x, x * x), whole),
    "clamp": lambda x: x.clamp(-0.4, 0.7),
    "clamp_below": lambda x: x.clamp(min=0.1) + torch.clamp_min(x, 0.3),
    "clamp_above": lambda x: x.clamp(max=0.1) + torch.clamp_max(x, 0.3),
    "clamp_at_the_bound": (lambda x: x.clamp(-1, 1), whole),
    "clamp_by_tensors": lambda x: x.clamp(min=(x * 0 - 0.3).detach()),
    "clamp_by_tensors_above": lambda x: x.clamp_max((x * 0 + 0.3).detach()).clamp_min((x * 0 - 1).detach()),
    "where": lambda x: torch.where(x > 0, x, x * x),
    "where_scalars": lambda x: torch.where(x > 0.2, x, 0.5) + torch.where(x < 0, 1.0, x),
    "where_two_scalars": lambda x: x * torch.where(x > 0, 1.0, 2.0),
    "masked_fill": lambda x: x.masked_fill(x > 0.3, -1.0),
    "masked_fill_in_place": lambda x: (x * 2).masked_fill_(x > 0.3, -1.0),
    "comparisons": lambda x: x * ((x >= 0.1).float() + (x <= 0.5).float() + (x < -1).float() + (x != 0.3).float()),
    "comparisons_of_tensors": (
        lambda x: x * ((x > 0 * x) & (x <= 2 + x)).float() + x * ((x >= x * x) | (x < -x) | (x == x)).float(),
        whole,
    ),
    "comparison_of_unlike_types": (
        lambda x: x * ((x + 0.5).to(torch.int64) != x).float() + x * (x.to(torch.int64) > 0.5).float(),
        whole,
    ),
    "equal": (lambda x: x * (x == 1).float() + x * (x != x * x).float(), whole),
    "bools": lambda x: x * ((x > 0) & ~(x > 1)).float() + x * ((x > 2) | torch.logical_not(x > 0)).float(),
    "bools_by_name": lambda x: x * torch.logical_and(x > 0, x < 1).to(x.dtype) * torch.logical_or(x > 0, x < 1),
    "bools_multiplied": lambda x: x * ((x > 0) * (x < 1)),
    "bools_equal": lambda x: x * ((x > 0) == (x < 1)) + x * ((x > 0) > (x > 1)),
    "not_a_number": lambda x: torch.where(torch.isnan(torch.log(x)), x, 2 * x),
    "infinite": (lambda x: torch.where(torch.isinf(1 / x), 3 * x, 2 * x), whole),
    "converted": lambda x: x.to(torch.float64).mul(2).float(),
    "through_integers": lambda x: x * x.to(torch.int64).float() + x.to(torch.int32).clamp(min=0).float() * x,
    "integers_to_exp": lambda x: x * torch.exp(x.to(torch.int64)),
    "integers_clamped_by_a_fraction": lambda x: x * x.to(torch.int64).clamp(min=0.5),
    "integers_divided": lambda x: x * (x.to(torch.int64) / 3),
    "detached": lambda x: x * x.detach(),
    "alias": lambda x: torch.ops.aten.alias(x) * x,
    "cloned": lambda x: x.clone() * 2,
    "hidden_constant": lambda x: x * torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1),
    "lerp": lambda x: torch.lerp(x, x * x, 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "in_place_chain": lambda x: (x * 1).add_(1).mul_(2).sub_(0.5).div_(3),
    "unused_result": lambda x: (x.exp(), x * 2)[1],
    "of_the_batch_size": lambda x: x / x.shape[0] + x * x.shape[0],
}


def _change_a_view(x):
    x[:, 0].mul_(3.0)
    return x * x


WEIGHTED = {
    "multiplied": torch.mul,
    "added": torch.add,
    "divided": torch.div,
    "subtracted": torch.sub,
    "to_the_power": lambda x, w: torch.pow(x.abs() + 0.1, w),
    "prelu": lambda x, w: F.prelu(x, w[0, 0, :1]),
    "maximum": torch.maximum,
}


@pytest.mark.parametrize("case", CASES)
def test_pointwise_is_pytorchs(case, same_as_torch):
    function = CASES[case]
    function, draw = function if isinstance(function, tuple) else (function, None)
    same_as_torch(Fn(function), SHAPE, draw=draw)


@pytest.mark.parametrize("case", WEIGHTED)
def test_pointwise_with_a_broadcast_parameter(case, same_as_torch):
    same_as_torch(Weighted(WEIGHTED[case]), SHAPE)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda x: x * ((x > 0) + (x > 1)).float(), "convert them to float32"),
        (lambda x: x * x.half().float(), "float16"),
        (torch.special.i0, "aten.i0"),
        (lambda x: torch.nextafter(x, 2 * x.detach()).detach() * x, "add a small number"),
    ],
)
def test_pointwise_that_cannot_be_translated_says_what_to_do(function, text, translate):
    with pytest.raises(OperatorUnsupported, match=text) as caught:
        translate(Fn(function), torch.randn(2, *SHAPE))
    assert caught.value.module == "net"


@pytest.mark.slow
@pytest.mark.long
def test_every_rule_is_exercised(translate):
    found = set()
    for case in CASES.values():
        function, draw = case if isinstance(case, tuple) else (case, torch.randn)
        found |= translate(Fn(function), draw((2, *SHAPE))).operators
    for function in WEIGHTED.values():
        found |= translate(Weighted(function), torch.randn(2, *SHAPE)).operators
    assert {*pointwise.RULES, *division.RULES} - found == set()
