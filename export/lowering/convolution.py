"""Convolutions and their gradients.

Data gradient: for stride one, a convolution with the kernel turned round and its channels exchanged; otherwise the
transposed convolution.

Weight gradient: for each tap of the kernel one matrix product of the gradient with the input that the tap meets, over
samples and pixels at once (channels first). That is up to three times faster, and takes less memory, than a product for
each sample, except where a kernel of one tap is small beside the image. Steps of the window larger than one are taken
out of the input once, not at each tap. Of images (up to IMAGE_CHANNELS) and of depthwise convolutions with such steps:
one convolution of the input with the gradient as its kernel, the samples taking the place of the channels and stride
and dilation changing places (2 to 5 times faster, and a fifth of the nodes); in three dimensions always so. Of groups:
see _Taps.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from export.lowering.context import Call, Context, Result, RuleBook, Value, each, size

aten = torch.ops.aten
RULES = RuleBook()

SMALL_IMAGE = 256
"""Pixels up to which one product over all samples is faster, for convolutions of groups, than one for each of them."""
IMAGE_CHANNELS = 4
"""Up to which the weight gradient of a whole convolution is a convolution."""


@dataclass(frozen=True)
class Window:
    """The movement of the kernel over the image: numbers for rows and columns."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


@RULES.rule(aten.convolution.default)
def convolution(
    context: Context,
    _: Call,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Result:
    """Translate a convolution, or a transposed one."""
    count = weight.rank - 2
    inputs = (x.name, weight.name) if bias is None else (x.name, weight.name, bias.name)
    attributes: dict[str, Any] = {
        "kernel_shape": [size(d) for d in weight.shape[2:]],
        "strides": each(stride, count),
        "pads": each(padding, count) * 2,
        "dilations": each(dilation, count),
        "group": groups,
    }
    if transposed:
        return context.add("ConvTranspose", *inputs, output_padding=each(output_padding, count), **attributes)
    return context.add("Conv", *inputs, **attributes)


@RULES.rule(aten.convolution_backward.default)
def convolution_backward(
    context: Context,
    call: Call,
    gradient: Value,
    x: Value,
    weight: Value,
    _: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    __: Any,
    groups: int,
    mask: Sequence[bool],
) -> Result:
    """Gradients of the input, the weight and the bias."""
    count = weight.rank - 2
    window = Window(each(stride, count), each(padding, count), each(dilation, count), groups)
    wanted = [mask[i] and i in call.used for i in range(3)]
    dx = dw = None
    if transposed:
        if wanted[0]:
            dx = context.add(
                "Conv",
                gradient.name,
                weight.name,
                kernel_shape=[size(d) for d in weight.shape[2:]],
                strides=window.stride,
                pads=window.padding * 2,
                dilations=window.dilation,
                group=groups,
            )
        if wanted[1]:
            dw = _weight_gradient(context, x, gradient, weight, window)
    else:
        if wanted[0]:
            dx = _data_gradient(context, gradient, x, weight, window)
        if wanted[1]:
            dw = _weight_gradient(context, gradient, x, weight, window)
    db = context.reduced("ReduceSum", gradient, (0, *range(2, gradient.rank))) if wanted[2] else None
    return dx, dw, db


def _data_gradient(
    context: Context,
    gradient: Value,
    x: Value,
    weight: Value,
    window: Window,
) -> str:
    kernel = [size(d) for d in weight.shape[2:]]
    reach = [window.dilation[i] * (kernel[i] - 1) for i in range(len(kernel))]
    back = [reach[i] - window.padding[i] for i in range(len(kernel))]
    if window.stride == [1, 1] and min(back) >= 0:
        turned = _turned(context, weight, window.groups)
        return context.add(
            "Conv",
            gradient.name,
            turned,
            kernel_shape=kernel,
            strides=[1, 1],
            pads=back * 2,
            dilations=window.dilation,
            group=window.groups,
        )
    extra = [
        size(x.shape[2 + i])
        - ((size(gradient.shape[2 + i]) - 1) * window.stride[i] - 2 * window.padding[i] + reach[i] + 1)
        for i in range(len(kernel))
    ]
    return context.add(
        "ConvTranspose",
        gradient.name,
        weight.name,
        kernel_shape=kernel,
        strides=window.stride,
        pads=window.padding * 2,
        dilations=window.dilation,
        output_padding=extra,
        group=window.groups,
    )


def _turned(context: Context, weight: Value, groups: int) -> str:
    """Turn a kernel round and exchange the channels of each group: (O, I/g, h, w) → (I, O/g, h, w)."""
    outputs, inputs, height, width = (size(d) for d in weight.shape)
    name = weight.name
    if groups == 1:
        name = context.add("Transpose", name, perm=[1, 0, 2, 3])
    elif inputs != 1 or outputs != groups:
        name = context.add("Reshape", name, context.ints(groups, outputs // groups, inputs, height, width))
        name = context.add("Transpose", name, perm=[0, 2, 1, 3, 4])
        name = context.add("Reshape", name, context.ints(groups * inputs, outputs // groups, height, width))
    if height == width == 1:
        return name
    first, last = context.ints(-1, -1), context.ints(-(2**62), -(2**62))
    return context.add("Slice", name, first, last, context.ints(2, 3), context.ints(-1, -1))


def _weight_gradient(
    context: Context,
    gradient: Value,
    x: Value,
    weight: Value,
    window: Window,
) -> str:
    """Σ over samples and pixels of gradient × shifted input, tap by tap: (O, I/g, h, w)."""
    if weight.rank > 4:
        return _weight_gradient_of_volumes(context, gradient, x, weight, window)
    outputs, inputs, height, width = (size(d) for d in weight.shape)
    pixels = size(gradient.shape[2]) * size(gradient.shape[3])
    if inputs == 1 and outputs == window.groups and window.stride != [1, 1]:
        return _weight_gradient_as_convolution(context, gradient, x, weight, window)
    if window.groups > 1:
        return _Taps(context, gradient, x, weight, window).products()
    if height * width == 1 and outputs * inputs < (outputs + inputs) * pixels:
        return _weight_gradient_by_sample(context, gradient, x, weight, window)
    if inputs <= IMAGE_CHANNELS:
        return _weight_gradient_as_convolution(context, gradient, x, weight, window)
    left = context.reshape_to(_channels_first(context, gradient), outputs, -1)
    products = []
    for name in _shifts(context, gradient, x, window, weight, _channels_first(context, x)):
        right = context.add("Transpose", context.reshape_to(name, inputs, -1), perm=[1, 0])
        products.append(context.add("MatMul", left, right))
    return _by_tap(context, products, weight)


class _Taps:
    """The products of the weight gradient of a convolution of groups.

    A tap at row offset r and column offset c needs Σ dy[h, w] · x[s·h + r, s·w + c]. With s·a + p = r and s·b + q = c,
    0 ≤ p, q < s, that is phase (p, q) of x, every s-th row and column, moved by a rows, times the gradient moved by b
    columns: for a kernel of h × w, h + w arrays are made instead of h · w. Pad moves an array, with zeros where it
    comes from outside.
    """

    def __init__(self, context: Context, gradient: Value, x: Value, weight: Value, window: Window) -> None:
        self._context, self._gradient, self._x, self._window = context, gradient, x, window
        self._outputs, self._inputs, self._height, self._width = (size(d) for d in weight.shape)
        self._weight = weight
        self._folded = size(gradient.shape[2]) * size(gradient.shape[3]) <= SMALL_IMAGE

    def products(self) -> str:
        """(O, I/g, h, w)."""
        places = [(i, j) for i in range(self._height) for j in range(self._width)]
        taps = [self._product(self._moved_gradient(j), self._moved_input(i, j)) for i, j in places]
        found = self._context.add("Concat", *taps, axis=-1) if len(taps) > 1 else taps[0]
        if not self._folded:
            found = self._context.add("ReduceSum", found, self._context.ints(0), keepdims=0)
        return _by_tap(self._context, [found], self._weight)  # (g, O/g, taps · I/g)

    def _offset(self, tap: int, axis: int) -> tuple[int, int]:
        """Return the rows (axis 0) or columns (1) of a phase by which a tap is moved, and that phase."""
        return divmod(tap * self._window.dilation[axis] - self._window.padding[axis], self._window.stride[axis])

    def _moved_input(self, i: int, j: int) -> str:
        rows, row_phase = self._offset(i, 0)
        _, column_phase = self._offset(j, 1)
        context, stride = self._context, self._window.stride
        name = self._arranged(self._x)
        if stride != [1, 1]:
            starts, ends = context.ints(row_phase, column_phase), context.ints(2**62, 2**62)
            name = context.add("Slice", name, starts, ends, context.ints(2, 3), context.ints(*stride))
        height = self._phase(row_phase, 0)
        return self._padded(name, 2, -rows, size(self._gradient.shape[2]) + rows - height)

    def _moved_gradient(self, j: int) -> str:
        columns, phase = self._offset(j, 1)
        ahead = self._phase(phase, 1) - size(self._gradient.shape[3]) - columns
        return self._padded(self._arranged(self._gradient), 3, columns, ahead)

    def _phase(self, phase: int, axis: int) -> int:
        """Return the number of rows or columns of the input in a phase."""
        return max(0, -(-(size(self._x.shape[2 + axis]) - phase) // self._window.stride[axis]))

    def _arranged(self, value: Value) -> str:
        return _channels_first(self._context, value) if self._folded else value.name

    def _padded(self, name: str, dim: int, before: int, after: int) -> str:
        if before == after == 0:
            return name
        pads = [0] * 8
        pads[dim], pads[4 + dim] = before, after
        return self._context.add("Pad", name, self._context.ints(*pads), self._context.number(0.0, self._x.dtype))

    def _product(self, gradient: str, x: str) -> str:
        """One sum of products, (B, g, O/g, I/g) or folded (g, O/g, I/g)."""
        groups = self._window.groups
        sample = [] if self._folded else [0]
        left = self._context.reshape_to(gradient, *sample, groups, self._outputs // groups, -1)
        right = self._context.reshape_to(x, *sample, groups, self._inputs, -1)
        last = len(sample) + 1
        turned = self._context.add("Transpose", right, perm=[*range(last), last + 1, last])
        return self._context.add("MatMul", left, turned)


def _weight_gradient_by_sample(context: Context, gradient: Value, x: Value, weight: Value, window: Window) -> str:
    """Return the weight's gradient for a kernel of one tap, and one group."""
    outputs, inputs, _, _ = (size(d) for d in weight.shape)
    left = context.reshape_to(gradient.name, 0, outputs, -1)
    (image,) = _shifts(context, gradient, x, window, weight, x.name)
    right = context.add("Transpose", context.reshape_to(image, 0, inputs, -1), perm=[0, 2, 1])
    summed = context.add("ReduceSum", context.add("MatMul", left, right), context.ints(0), keepdims=0)
    return context.reshape_to(summed, outputs, inputs, 1, 1)


def _by_tap(context: Context, products: Sequence[str], weight: Value) -> str:
    """(O, taps · I/g), in one piece or tap by tap, as the weight."""
    outputs, inputs, height, width = (size(d) for d in weight.shape)
    found = context.add("Concat", *products, axis=1) if len(products) > 1 else products[0]
    if height * width > 1 and inputs > 1:
        by_tap = context.reshape_to(found, outputs, height * width, inputs)
        found = context.add("Transpose", by_tap, perm=[0, 2, 1])
    return context.reshape_to(found, outputs, inputs, height, width)


def _channels_first(context: Context, x: Value) -> str:
    return context.add("Transpose", x.name, perm=[1, 0, *range(2, x.rank)])


def _weight_gradient_as_convolution(context: Context, gradient: Value, x: Value, weight: Value, window: Window) -> str:
    """Return the weight's gradient for one group, or for a depthwise convolution."""
    outputs, inputs, *tap_counts = (size(d) for d in weight.shape)
    dims = range(2, weight.rank)
    image, kernel = _channels_first(context, x), _channels_first(context, gradient)  # (O, B, H, W)
    if window.groups > 1:
        image = context.reshape_to(image, 1, -1, *(size(x.shape[d]) for d in dims))
    # Rows that the forward convolution never reached would give taps that the kernel does not have: cut them off.
    pads = []
    for i, taps in enumerate(tap_counts):
        reach = (size(gradient.shape[2 + i]) - 1) * window.stride[i] + (taps - 1) * window.dilation[i] + 1
        pads.append(reach - size(x.shape[2 + i]) - window.padding[i])
    if min(pads) < 0:
        cut = [size(x.shape[2 + i]) + min(pads[i], 0) for i in range(len(pads))]
        image = context.add("Slice", image, context.ints(*[0] * len(cut)), context.ints(*cut), context.ints(*dims))
    result = context.add(
        "Conv",
        image,
        kernel,
        group=window.groups,
        kernel_shape=[size(d) for d in gradient.shape[2:]],
        pads=[*window.padding, *(max(p, 0) for p in pads)],
        strides=window.dilation,
        dilations=window.stride,
    )
    if window.groups == 1:
        return context.add("Transpose", result, perm=[1, 0, *dims])
    return context.reshape_to(result, outputs, inputs, *tap_counts)


def _weight_gradient_of_volumes(context: Context, gradient: Value, x: Value, weight: Value, window: Window) -> str:
    """Return the weight's gradient for three dimensions, group by group."""
    alone = dataclasses.replace(window, groups=1)
    outputs, inputs = size(weight.shape[0]) // window.groups, size(weight.shape[1])
    pieces = []
    for group in range(window.groups):
        parts = [_channels(context, gradient, group, outputs), _channels(context, x, group, inputs)]
        part = dataclasses.replace(weight, shape=(outputs, *weight.shape[1:]))
        pieces.append(_weight_gradient_as_convolution(context, parts[0], parts[1], part, alone))
    return context.add("Concat", *pieces, axis=0) if len(pieces) > 1 else pieces[0]


def _channels(context: Context, x: Value, group: int, count: int) -> Value:
    """Return the channels of a group."""
    if x.shape[1] == count:
        return x
    bounds = context.ints(group * count), context.ints((group + 1) * count)
    shape = (x.shape[0], count, *x.shape[2:])
    return Value(context.add("Slice", x.name, *bounds, context.ints(1)), shape, x.dtype)


def _shifts(context: Context, gradient: Value, x: Value, window: Window, weight: Value, image: str) -> list[str]:
    """Return for each tap the pixels of the padded input that it meets, as large as the gradient.

    `image` is x, or x with its first two dimensions exchanged.
    """
    if any(window.padding):
        pads = context.ints(0, 0, *window.padding, 0, 0, *window.padding)
        image = context.add("Pad", image, pads, context.number(0.0, x.dtype))
    kernel, reached = ([size(d) for d in value.shape[2:]] for value in (weight, gradient))
    if kernel == [1, 1] and window.stride == [1, 1]:
        return [image]
    axes, steps = context.ints(2, 3), context.ints(*window.stride)
    shifted = []
    for tap in product(*map(range, kernel)):
        first = [tap[i] * window.dilation[i] for i in range(2)]
        phase = image
        if window.stride != [1, 1]:
            start = context.ints(*(first[i] % window.stride[i] for i in range(2)))
            phase = context.add("Slice", image, start, context.ints(2**62, 2**62), axes, steps)
            first = [first[i] // window.stride[i] for i in range(2)]
        ends = context.ints(*(first[i] + reached[i] for i in range(2)))
        shifted.append(context.add("Slice", phase, context.ints(*first), ends, axes))
    return shifted
