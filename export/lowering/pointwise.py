"""Elementwise operators and the derivatives of activations."""

import math
from typing import Any

import torch

from export.lowering.context import Call, Context, Number, Result, RuleBook, Untranslatable, Value
from export.onnx_graph import ELEMENT

aten = torch.ops.aten
RULES = RuleBook()

STEEP = 1e37
"""A slope at which HardSigmoid is a step for all that float32 tells from zero, and its sums stay finite."""

UNARY = {
    aten.neg.default: "Neg",
    aten.abs.default: "Abs",
    aten.exp.default: "Exp",
    aten.log.default: "Log",
    aten.sqrt.default: "Sqrt",
    aten.reciprocal.default: "Reciprocal",
    aten.sigmoid.default: "Sigmoid",
    aten.tanh.default: "Tanh",
    aten.relu.default: "Relu",
    aten.sgn.default: "Sign",
    aten.sign.default: "Sign",
    aten.sin.default: "Sin",
    aten.cos.default: "Cos",
    aten.tan.default: "Tan",
    aten.asin.default: "Asin",
    aten.acos.default: "Acos",
    aten.atan.default: "Atan",
    aten.sinh.default: "Sinh",
    aten.cosh.default: "Cosh",
    aten.asinh.default: "Asinh",
    aten.acosh.default: "Acosh",
    aten.atanh.default: "Atanh",
    aten.erf.default: "Erf",
    aten.floor.default: "Floor",
    aten.ceil.default: "Ceil",
    aten.round.default: "Round",
    aten.isnan.default: "IsNaN",
    aten.isinf.default: "IsInf",
    aten.logical_not.default: "Not",
    aten.bitwise_not.default: "Not",
}
BINARY = {
    aten.mul.Tensor: "Mul",
    aten.mul.Scalar: "Mul",
    aten.div.Tensor: "Div",
    aten.div.Scalar: "Div",
    aten.maximum.default: "Max",
    aten.minimum.default: "Min",
    aten.pow.Tensor_Tensor: "Pow",
    aten.pow.Scalar: "Pow",
}
COMPARISON = {
    aten.eq.Scalar: "Equal",
    aten.eq.Tensor: "Equal",
    aten.gt.Scalar: "Greater",
    aten.gt.Tensor: "Greater",
    aten.ge.Scalar: "GreaterOrEqual",
    aten.ge.Tensor: "GreaterOrEqual",
    aten.lt.Scalar: "Less",
    aten.lt.Tensor: "Less",
    aten.le.Scalar: "LessOrEqual",
    aten.le.Tensor: "LessOrEqual",
}
LOGICAL = {
    aten.logical_and.default: "And",
    aten.bitwise_and.Tensor: "And",
    aten.bitwise_and.Scalar: "And",
    aten.logical_or.default: "Or",
    aten.bitwise_or.Tensor: "Or",
    aten.bitwise_or.Scalar: "Or",
    aten.logical_xor.default: "Xor",
    aten.bitwise_xor.Tensor: "Xor",
    aten.bitwise_xor.Scalar: "Xor",
}


@RULES.rule(*UNARY)
def unary(context: Context, call: Call, x: Value) -> Result:
    """One operand, of the result's type where that is a number."""
    name = _of(call, UNARY)
    if name == "Not" and x.dtype != torch.bool:
        if "bitwise" in call.operator:
            return context.add("BitwiseNot", x.name)
        return context.add("Equal", x.name, context.number(0, x.dtype))
    if name == "Relu" and not call.dtype.is_floating_point:
        return context.add("Max", x.name, context.number(0, call.dtype))
    return context.add(name, x.name if call.dtype == torch.bool else context.operand(x, call.dtype))


@RULES.rule(aten.log1p.default)
def log_of_one_plus(context: Context, call: Call, x: Value) -> Result:
    """Compute the logarithm of 1 + x; what rounding takes from a small x is below what a loss can show."""
    return context.add("Log", context.add("Add", context.operand(x, call.dtype), context.number(1.0, call.dtype)))


@RULES.rule(aten.expm1.default)
def exp_minus_one(context: Context, call: Call, x: Value) -> Result:
    """exp(x) − 1."""
    return context.add("Sub", context.add("Exp", context.operand(x, call.dtype)), context.number(1.0, call.dtype))


@RULES.rule(*BINARY)
def binary(context: Context, call: Call, x: Value | Number, y: Value | Number) -> Result:
    """Two operands of the result's type; a product of truth values is their conjunction."""
    if call.dtype == torch.bool:
        name = {"Mul": "And", "Min": "And", "Max": "Or"}.get(_of(call, BINARY))
        if name is None:
            raise Untranslatable("truth values cannot be computed with: convert them to float32")
        return context.add(name, context.operand(x, call.dtype), context.operand(y, call.dtype))
    return context.add(_of(call, BINARY), context.operand(x, call.dtype), context.operand(y, call.dtype))


@RULES.rule(*COMPARISON)
def comparison(context: Context, call: Call, x: Value, y: Value | Number) -> Result:
    """Two operands in their common type, a truth value."""
    return context.add(_of(call, COMPARISON), *_comparable(context, x, y))


@RULES.rule(aten.ne.Scalar, aten.ne.Tensor)
def not_equal(context: Context, _: Call, x: Value, y: Value | Number) -> Result:
    """Not equal."""
    return context.add("Not", context.add("Equal", *_comparable(context, x, y)))


@RULES.rule(*LOGICAL)
def logical(context: Context, call: Call, x: Value, y: Value | Number) -> Result:
    """Two truth values, or the bits of two integers."""
    name = _of(call, LOGICAL)
    if "bitwise" in call.operator and call.dtype != torch.bool:
        return context.add(f"Bitwise{name}", context.operand(x, call.dtype), context.operand(y, call.dtype))
    return context.add(name, *(context.operand(value, torch.bool) for value in (x, y)))


@RULES.rule(aten.add.Tensor, aten.add.Scalar)
def add(context: Context, call: Call, x: Value, y: Value | Number, alpha: Number = 1) -> Result:
    """x + alpha · y."""
    return _sum("Add", context, call, x, y, alpha)


@RULES.rule(aten.sub.Tensor, aten.sub.Scalar)
def subtract(context: Context, call: Call, x: Value, y: Value | Number, alpha: Number = 1) -> Result:
    """x − alpha · y."""
    return _sum("Sub", context, call, x, y, alpha)


@RULES.rule(aten.rsub.Scalar, aten.rsub.Tensor)
def subtract_from(context: Context, call: Call, x: Value, y: Value | Number, alpha: Number = 1) -> Result:
    """y − alpha · x."""
    return _sum("Sub", context, call, y, x, alpha)


@RULES.rule(aten.pow.Tensor_Scalar)
def power(context: Context, call: Call, x: Value, exponent: Number) -> Result:
    """x to a fixed power; a square is one multiplication."""
    name = context.operand(x, call.dtype)
    if exponent == 2:
        return context.add("Mul", name, name)
    return context.add("Pow", name, context.number(exponent, call.dtype))


@RULES.rule(aten.rsqrt.default)
def reciprocal_root(context: Context, call: Call, x: Value) -> Result:
    """1 / √x."""
    return context.add("Reciprocal", context.add("Sqrt", context.operand(x, call.dtype)))


@RULES.rule(aten.where.self)
def where(context: Context, call: Call, condition: Value, x: Value | Number, y: Value | Number) -> Result:
    """x where the condition holds, else y."""
    return context.add("Where", condition.name, context.operand(x, call.dtype), context.operand(y, call.dtype))


@RULES.rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(context: Context, call: Call, x: Value, mask: Value, value: Value | Number) -> Result:
    """`value` where the mask holds, else x."""
    return context.add("Where", mask.name, context.operand(value, call.dtype), context.operand(x, call.dtype))


@RULES.rule(aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.hardtanh.default)
@RULES.rule(aten.clamp.Tensor, aten.clamp_min.Tensor, aten.clamp_max.Tensor)
def clamp(
    context: Context, call: Call, x: Value, low: Value | Number | None = None, high: Value | Number | None = None
) -> Result:
    """x between two bounds, either of which may be absent."""
    if "clamp_max" in call.operator:
        low, high = None, low
    name = context.operand(x, call.dtype)
    if call.dtype == torch.float32 and isinstance(low, int | float) and isinstance(high, int | float):
        return context.add(
            "Clip", name, context.number(float(low), call.dtype), context.number(float(high), call.dtype)
        )
    if low is not None:
        name = context.add("Max", name, context.operand(low, call.dtype))
    return name if high is None else context.add("Min", name, context.operand(high, call.dtype))


@RULES.rule(aten._to_copy.default)
def convert(context: Context, call: Call, x: Value, *_: Any, **__: Any) -> Result:
    """Another element type."""
    return x.name if x.dtype == call.dtype else context.add("Cast", x.name, to=ELEMENT[call.dtype])


@RULES.rule(aten.detach.default, aten.alias.default, aten.clone.default, aten.lift_fresh_copy.default)
def same(_: Context, __: Call, x: Value, **___: Any) -> Result:
    """Pass a value on."""
    return x.name


@RULES.rule(aten.threshold_backward.default)
def threshold_backward(context: Context, call: Call, gradient: Value, result: Value, threshold: Number) -> Result:
    """Differentiate ReLU from its result: a multiplication by 0 or 1.

    The factor is the result, scaled so that whatever is positive saturates at 1: one pass, where a comparison and a
    choice take two, the second of them on one thread. For another threshold it is these two.
    """
    if threshold != 0:
        zero, bound = context.number(0.0, call.dtype), context.number(threshold, call.dtype)
        return context.add("Where", context.add("Greater", result.name, bound), gradient.name, zero)
    return context.add("Mul", gradient.name, context.add("HardSigmoid", result.name, alpha=STEEP, beta=0.0))


@RULES.rule(aten.leaky_relu.default)
def leaky_relu(context: Context, _: Call, x: Value, slope: float = 0.01) -> Result:
    """x where it is positive, else slope · x."""
    return context.add("LeakyRelu", x.name, alpha=float(slope))


@RULES.rule(aten.leaky_relu_backward.default)
def leaky_relu_backward(context: Context, call: Call, gradient: Value, x: Value, slope: float, _: bool) -> Result:
    """Differentiate LeakyReLU."""
    positive = context.add("Greater", x.name, context.number(0.0, call.dtype))
    scaled = context.add("Mul", gradient.name, context.number(slope, call.dtype))
    return context.add("Where", positive, gradient.name, scaled)


@RULES.rule(aten.hardtanh_backward.default)
def hardtanh_backward(context: Context, call: Call, gradient: Value, x: Value, low: float, high: float) -> Result:
    """Differentiate ReLU6 and Hardtanh: 1 strictly between the bounds, where (y − low) · (high − y) is positive.

    It reads the result y, which is between the bounds where x is, so that x need not be there any more.
    """
    y = context.add("Clip", x.name, context.number(float(low), call.dtype), context.number(float(high), call.dtype))
    above = context.add("Sub", y, context.number(float(low), call.dtype)) if low else y
    below = context.add("Sub", context.number(float(high), call.dtype), y)
    inside = context.add("HardSigmoid", context.add("Mul", above, below), alpha=STEEP, beta=0.0)
    return context.add("Mul", gradient.name, inside)


@RULES.rule(aten.sigmoid_backward.default)
def sigmoid_backward(context: Context, call: Call, gradient: Value, result: Value) -> Result:
    """g · y · (1 − y)."""
    rest = context.add("Sub", context.number(1.0, call.dtype), result.name)
    return context.add("Mul", gradient.name, context.add("Mul", result.name, rest))


@RULES.rule(aten.tanh_backward.default)
def tanh_backward(context: Context, call: Call, gradient: Value, result: Value) -> Result:
    """g · (1 − y²)."""
    square = context.add("Mul", result.name, result.name)
    return context.add("Mul", gradient.name, context.add("Sub", context.number(1.0, call.dtype), square))


@RULES.rule(aten.silu.default)
def silu(context: Context, _: Call, x: Value) -> Result:
    """x · sigmoid(x)."""
    return context.add("Mul", x.name, context.add("Sigmoid", x.name))


@RULES.rule(aten.silu_backward.default)
def silu_backward(context: Context, call: Call, gradient: Value, x: Value) -> Result:
    """g · s · (1 + x · (1 − s)) with s = sigmoid(x)."""
    one = context.number(1.0, call.dtype)
    sigmoid = context.add("Sigmoid", x.name)
    inner = context.add("Add", one, context.add("Mul", x.name, context.add("Sub", one, sigmoid)))
    return context.add("Mul", gradient.name, context.add("Mul", sigmoid, inner))


@RULES.rule(aten.gelu.default)
def gelu(context: Context, call: Call, x: Value, approximate: str = "none") -> Result:
    """x · Φ(x), exact or by tanh."""
    half = context.number(0.5, call.dtype)
    return context.add("Mul", context.add("Mul", half, x.name), _gelu_factor(context, call, x, approximate)[0])


@RULES.rule(aten.gelu_backward.default)
def gelu_backward(context: Context, call: Call, gradient: Value, x: Value, approximate: str = "none") -> Result:
    """Differentiate GELU, exact or by tanh."""
    half, one = context.number(0.5, call.dtype), context.number(1.0, call.dtype)
    factor, inner = _gelu_factor(context, call, x, approximate)
    if approximate == "none":
        exponent = context.add("Mul", context.add("Mul", x.name, x.name), context.number(-0.5, call.dtype))
        density = context.add(
            "Mul", context.add("Exp", exponent), context.number(1 / math.sqrt(2 * math.pi), call.dtype)
        )
        slope = context.add("Mul", x.name, density)
    else:
        tanh = context.add("Sub", factor, one)
        bend = context.add("Sub", one, context.add("Mul", tanh, tanh))
        slope = context.add("Mul", context.add("Mul", half, x.name), context.add("Mul", bend, inner))
    return context.add("Mul", gradient.name, context.add("Add", context.add("Mul", half, factor), slope))


def _gelu_factor(context: Context, call: Call, x: Value, approximate: str) -> tuple[str, str]:
    """1 + erf(x/√2), or 1 + tanh(u) and du/dx."""
    one = context.number(1.0, call.dtype)
    if approximate == "none":
        erf = context.add("Erf", context.add("Mul", x.name, context.number(1 / math.sqrt(2), call.dtype)))
        return context.add("Add", one, erf), ""
    root, cube = math.sqrt(2 / math.pi), 0.044715
    square = context.add("Mul", x.name, x.name)
    bracket = context.add("Add", one, context.add("Mul", square, context.number(cube, call.dtype)))
    argument = context.add("Mul", context.add("Mul", x.name, bracket), context.number(root, call.dtype))
    slope = context.add("Add", one, context.add("Mul", square, context.number(3 * cube, call.dtype)))
    inner = context.add("Mul", slope, context.number(root, call.dtype))
    return context.add("Add", one, context.add("Tanh", argument)), inner


@RULES.rule(aten.hardswish.default)
def hardswish(context: Context, _: Call, x: Value) -> Result:
    """x · hardsigmoid(x)."""
    return context.add("Mul", x.name, context.add("HardSigmoid", x.name, alpha=1 / 6, beta=0.5))


@RULES.rule(aten.hardswish_backward.default)
def hardswish_backward(context: Context, call: Call, gradient: Value, x: Value) -> Result:
    """g · 0 below −3, g · (x/3 + 1/2) between −3 and 3, g above."""
    slope = context.add(
        "Add", context.add("Mul", x.name, context.number(1 / 3, call.dtype)), context.number(0.5, call.dtype)
    )
    low = context.add("LessOrEqual", x.name, context.number(-3.0, call.dtype))
    high = context.add("GreaterOrEqual", x.name, context.number(3.0, call.dtype))
    slope = context.add("Where", high, context.number(1.0, call.dtype), slope)
    return context.add("Mul", gradient.name, context.add("Where", low, context.number(0.0, call.dtype), slope))


@RULES.rule(aten.hardsigmoid.default)
def hardsigmoid(context: Context, _: Call, x: Value) -> Result:
    """x/6 + 1/2 between 0 and 1."""
    return context.add("HardSigmoid", x.name, alpha=1 / 6, beta=0.5)


@RULES.rule(aten.hardsigmoid_backward.default)
def hardsigmoid_backward(context: Context, call: Call, gradient: Value, x: Value) -> Result:
    """g / 6 strictly between −3 and 3."""
    inside = context.add("Less", context.add("Abs", x.name), context.number(3.0, call.dtype))
    scaled = context.add("Mul", gradient.name, context.number(1 / 6, call.dtype))
    return context.add("Where", inside, scaled, context.number(0.0, call.dtype))


def _clip(context: Context, call: Call, name: str, low: float, high: float) -> str:
    bounds = (context.number(float(bound), call.dtype) for bound in (low, high))
    return context.add("Clip", name, *bounds)


def _comparable(context: Context, x: Value, y: Value | Number) -> tuple[str, str]:
    common = context.common(x, y)
    if common == torch.bool:  # ONNX tells truth values equal, but does not order them
        common = torch.int32
    return context.operand(x, common), context.operand(y, common)


def _sum(op: str, context: Context, call: Call, x: Value | Number, y: Value | Number, alpha: Number) -> str:
    if call.dtype == torch.bool:
        raise Untranslatable("truth values cannot be computed with: convert them to float32")
    right = context.operand(y, call.dtype)
    if alpha != 1:
        right = context.add("Mul", right, context.number(alpha, call.dtype))
    return context.add(op, context.operand(x, call.dtype), right)


def _of(call: Call, table: dict[Any, str]) -> str:
    return next(name for target, name in table.items() if str(target) == call.operator)
