"""Division that is rounded, and what it leaves over."""

import torch

from export.lowering.context import Call, Context, Number, Result, RuleBook, Value

aten = torch.ops.aten
RULES = RuleBook()


@RULES.rule(aten.remainder.Scalar, aten.remainder.Tensor)
def remainder(context: Context, call: Call, x: Value, y: Value | Number) -> Result:
    """x − y · ⌊x / y⌋, of the sign of y."""
    left, right = context.operand(x, call.dtype), context.operand(y, call.dtype)
    if not call.dtype.is_floating_point:
        return context.add("Mod", left, right)
    whole = context.add("Floor", context.add("Div", left, right))
    return context.add("Sub", left, context.add("Mul", right, whole))


@RULES.rule(aten.fmod.Tensor, aten.fmod.Scalar)
def rest_of_division(context: Context, call: Call, x: Value, y: Value | Number) -> Result:
    """Return what is left of x after taking y away, of the sign of x."""
    return context.add("Mod", context.operand(x, call.dtype), context.operand(y, call.dtype), fmod=1)


@RULES.rule(aten.div.Tensor_mode)
def whole_division(context: Context, call: Call, x: Value, y: Value | Number, *, rounding_mode: str | None) -> Result:
    """x / y, rounded down or toward zero."""
    add = context.add
    left, right = context.operand(x, call.dtype), context.operand(y, call.dtype)
    quotient = add("Div", left, right)
    if rounding_mode is None or (rounding_mode == "trunc" and not call.dtype.is_floating_point):
        return quotient
    if rounding_mode == "trunc":
        return _cut(context, quotient)
    if not call.dtype.is_floating_point:
        return add("Div", add("Sub", left, add("Mod", left, right)), right)
    # What is left over is exact where the quotient is not: 1 / 0.1 is 10, and 0.1 goes into 1 nine times.
    rest = add("Mod", left, right, fmod=1)
    zero, one = context.number(0.0, call.dtype), context.number(1.0, call.dtype)
    across = add("Less", add("Mul", add("Sign", rest), add("Sign", right)), zero)
    down = add("Round", add("Div", add("Sub", left, rest), right))
    down = add("Sub", down, add("Where", across, one, zero))
    return add("Where", add("Equal", right, zero), quotient, down)


@RULES.rule(aten.trunc.default)
def toward_zero(context: Context, call: Call, x: Value) -> Result:
    """Cut off what is behind the point."""
    return x.name if not x.dtype.is_floating_point else _cut(context, x.name)


def _cut(context: Context, name: str) -> str:
    return context.add("Mul", context.add("Sign", name), context.add("Floor", context.add("Abs", name)))
