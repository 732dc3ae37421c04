"""The shapes of what a graph's operators make, from the shapes of what they read: ONNX's own rules, opset 18.

Each rule returns the shapes of a node's outputs; it raises Unknown, or an error of arithmetic, if they do not follow.

(https://github.com/onnx/onnx/blob/v1.17.0/docs/Operators.md)
"""

# coverage: every branch

import math
from collections.abc import Callable, Mapping, Sequence

from edge_runtime.wire.graph_node import Node, Shape, Unknown


def _same(node: Node) -> list[Shape]:
    return [node.shape()] * node.outputs


def _broadcast(node: Node) -> list[Shape]:
    return [_together([value.shape for value in node.inputs if value is not None])]


def _together(shapes: Sequence[Shape]) -> Shape:
    """Return the shape to which all broadcast."""
    rank = max(len(shape) for shape in shapes)
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    found = []
    for sizes in zip(*padded, strict=True):
        others = {size for size in sizes if size != 1}
        if len(others) > 1:
            raise Unknown
        found.append(others.pop() if others else 1)
    return tuple(found)


def _axes(axes: Sequence[int], rank: int) -> set[int]:
    if any(not -rank <= axis < rank for axis in axes):
        raise Unknown
    return {axis % rank for axis in axes}


def _reduce(node: Node) -> list[Shape]:
    shape = node.shape()
    given = node.integers(1) if node.has(1) else node.several("axes")
    if not given and node.integer("noop_with_empty_axes", 0):
        return [shape]
    return [_reduced(shape, _axes(given, len(shape)) if given else set(range(len(shape))), node)]


def _arg(node: Node) -> list[Shape]:
    shape = node.shape()
    return [_reduced(shape, _axes([node.integer("axis", 0)], len(shape)), node)]


def _reduced(shape: Shape, axes: set[int], node: Node) -> Shape:
    if node.integer("keepdims", 1):
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _windows(node: Node, kernel: Shape) -> Shape:
    """Return the places of a kernel that moves over the dimensions after the second."""
    sizes = node.shape()[2:]
    rank = len(sizes)
    strides, dilations = node.several("strides", (1,) * rank), node.several("dilations", (1,) * rank)
    pads, mode = node.several("pads", (0,) * 2 * rank), node.text("auto_pad", "NOTSET")
    if mode.startswith("SAME"):
        return tuple(-(-size // stride) for size, stride in zip(sizes, strides, strict=True))
    if mode == "VALID":
        pads = (0,) * 2 * rank
    found = []
    for at, size in enumerate(sizes):
        room = size + pads[at] + pads[at + rank] - (dilations[at] * (kernel[at] - 1) + 1)
        if room < 0:
            raise Unknown
        places = room // strides[at]
        if node.integer("ceil_mode", 0):
            places = -(-room // strides[at])
            places -= places * strides[at] >= size + pads[at]  # a last place that begins in the padding is none
        found.append(places + 1)
    return tuple(found)


def _conv(node: Node) -> list[Shape]:
    data, weight = node.shape(), node.shape(1)
    return [(data[0], weight[0], *_windows(node, weight[2:]))]


def _conv_transpose(node: Node) -> list[Shape]:
    data, weight = node.shape(), node.shape(1)
    channels, kernel, sizes = weight[1] * node.integer("group", 1), weight[2:], data[2:]
    rank = len(sizes)
    if node.several("output_shape"):
        return [(data[0], channels, *node.several("output_shape"))]
    strides, dilations = node.several("strides", (1,) * rank), node.several("dilations", (1,) * rank)
    pads, more = node.several("pads", (0,) * 2 * rank), node.several("output_padding", (0,) * rank)
    mode = node.text("auto_pad", "NOTSET")
    if mode.startswith("SAME"):
        return [(data[0], channels, *(size * stride for size, stride in zip(sizes, strides, strict=True)))]
    if mode == "VALID":
        pads = (0,) * 2 * rank
    each = (
        strides[at] * (size - 1) + more[at] + dilations[at] * (kernel[at] - 1) + 1 - pads[at] - pads[at + rank]
        for at, size in enumerate(sizes)
    )
    return [(data[0], channels, *each)]


def _pool(node: Node) -> list[Shape]:
    return [(*node.shape()[:2], *_windows(node, node.several("kernel_shape")))] * node.outputs


def _global_pool(node: Node) -> list[Shape]:
    shape = node.shape()
    return [(*shape[:2], *(1,) * (len(shape) - 2))]


def _batch_normalization(node: Node) -> list[Shape]:
    return [node.shape(), *[node.shape(1)] * 4]


def _layer_normalization(node: Node) -> list[Shape]:
    shape = node.shape()
    axis = node.integer("axis", -1) % len(shape)
    statistics = (*shape[:axis], *(1,) * (len(shape) - axis))
    return [shape, statistics, statistics]


def _concat(node: Node) -> list[Shape]:
    shapes = [value.shape for value in node.inputs if value is not None]
    (axis,) = _axes([node.integer("axis", 0)], len(shapes[0]))
    return [(*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])]


def _blocks(node: Node) -> list[Shape]:
    batch, channels, height, width = node.shape()
    block = node.integer("blocksize", 1)
    if node.operator == "SpaceToDepth":
        return [(batch, channels * block**2, height // block, width // block)]
    return [(batch, channels // block**2, height * block, width * block)]


def einsum_indices(node: Node) -> tuple[dict[str, int], str]:
    """Return the sizes of an Einsum's indices, and those of its output."""
    terms, arrow, output = node.text("equation", "").replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for place, term in enumerate(terms.split(",")):
        shape = node.shape(place)
        if len(term) != len(shape) or not term.isalpha():
            raise Unknown
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    letters = terms.replace(",", "")
    return sizes, output if arrow else "".join(sorted(each for each in sizes if letters.count(each) == 1))


def _einsum(node: Node) -> list[Shape]:
    sizes, output = einsum_indices(node)
    if any(letter not in sizes for letter in output):
        raise Unknown
    return [tuple(sizes[letter] for letter in output)]


def _expand(node: Node) -> list[Shape]:
    return [_together([node.shape(), node.integers(1)])]


def _flatten(node: Node) -> list[Shape]:
    shape = node.shape()
    axis = node.integer("axis", 1)
    axis += len(shape) * (axis < 0)
    return [(math.prod(shape[:axis]), math.prod(shape[axis:]))]


def _gather(node: Node) -> list[Shape]:
    shape = node.shape()
    (axis,) = _axes([node.integer("axis", 0)], len(shape))
    return [(*shape[:axis], *node.shape(1), *shape[axis + 1 :])]


def _gather_nd(node: Node) -> list[Shape]:
    indices = node.shape(1)
    return [(*indices[:-1], *node.shape()[node.integer("batch_dims", 0) + indices[-1] :])]


def _second(node: Node) -> list[Shape]:
    return [node.shape(1)]


def _given(node: Node) -> list[Shape]:
    return [node.integers(0)]


def matrices(node: Node) -> tuple[Shape, Shape]:
    """Return the shapes of the two factors of a product, turned as it turns them."""
    a, b = node.shape(), node.shape(1)
    if node.operator == "MatMul":
        return a, b
    turned = [node.integer(name, 0) for name in ("transA", "transB")]
    if any(node.integer(name, 0) for name in ("transBatchA", "transBatchB")):
        raise Unknown
    a, b = ((*each[:-2], each[-1], each[-2]) if turn else each for each, turn in zip((a, b), turned, strict=True))
    return a, b


def _matmul(node: Node) -> list[Shape]:
    a, b = matrices(node)
    if len(a) == 1 or len(b) == 1:
        rows = a[:-1]
        columns = () if len(b) == 1 else (*b[:-2], b[-1])
        return [(*rows, *columns)]
    return [(*_together([a[:-2], b[:-2]]), a[-2], b[-1])]


def _one_hot(node: Node) -> list[Shape]:
    shape = node.shape()
    axis = node.integer("axis", -1) % (len(shape) + 1)
    return [(*shape[:axis], *node.integers(1)[:1], *shape[axis:])]


def _pad(node: Node) -> list[Shape]:
    shape, pads = list(node.shape()), node.integers(1)
    axes = [axis % len(shape) for axis in node.integers(3)] if node.has(3) else range(len(shape))
    for at, axis in enumerate(axes):
        shape[axis] += pads[at] + pads[at + len(pads) // 2]
    return [tuple(shape)]


def range_shape(node: Node) -> list[Shape]:
    """Return the shape of a Range."""
    (start,), (end,), (step,) = (node.numbers(place) for place in range(3))
    return [(max(0, math.ceil((end - start) / step)),)]


def _reshape(node: Node) -> list[Shape]:
    data, wanted = node.value(0), list(node.integers(1))
    if not node.integer("allowzero", 0):
        wanted = [size or data.shape[at] for at, size in enumerate(wanted)]
    if -1 in wanted:
        wanted[wanted.index(-1)] = data.elements // -math.prod(wanted)
    return [tuple(wanted)]


def _resize(node: Node) -> list[Shape]:
    shape = list(node.shape())
    if node.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unknown
    axes = node.several("axes", range(len(shape)))
    by = node.numbers(3) if node.has(3) and node.value(3).elements else node.numbers(2)
    is_scale = not (node.has(3) and node.value(3).elements)
    for axis, number in zip(axes, by, strict=True):
        shape[axis] = math.floor(shape[axis] * number) if is_scale else int(number)
    return [tuple(shape)]


def _shape(node: Node) -> list[Shape]:
    return [(len(node.shape()[shape_part(node)]),)]


def shape_part(node: Node) -> slice:
    """Return which dimensions a Shape gives."""
    return slice(node.integer("start", 0), node.integer("end", len(node.shape())))


def _scalar(_node: Node) -> list[Shape]:
    return [()]


def slices(node: Node) -> dict[int, slice]:
    """Return what a Slice takes of each axis; Python's slices count and end as ONNX's do."""
    rank, starts, ends = len(node.shape()), node.integers(1), node.integers(2)
    axes = node.integers(3) if node.has(3) else range(len(starts))
    steps = node.integers(4) if node.has(4) else (1,) * len(starts)
    return {axis % rank: slice(*part) for axis, *part in zip(axes, starts, ends, steps, strict=True)}


def _slice(node: Node) -> list[Shape]:
    shape = list(node.shape())
    for axis, part in slices(node).items():
        shape[axis] = len(range(*part.indices(shape[axis])))
    return [tuple(shape)]


def _split(node: Node) -> list[Shape]:
    shape = node.shape()
    (axis,) = _axes([node.integer("axis", 0)], len(shape))
    if node.has(1):
        sizes = node.integers(1)
    else:
        each = -(-shape[axis] // node.outputs)
        sizes = (*(each,) * (node.outputs - 1), shape[axis] - each * (node.outputs - 1))
    return [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]


def _squeeze(node: Node) -> list[Shape]:
    shape = node.shape()
    axes = _axes(node.integers(1), len(shape)) if node.has(1) else {at for at, size in enumerate(shape) if size == 1}
    return [tuple(size for at, size in enumerate(shape) if at not in axes)]


def _unsqueeze(node: Node) -> list[Shape]:
    shape, axes = iter(node.shape()), node.integers(1)
    rank = len(node.shape()) + len(axes)
    new = _axes(axes, rank)
    return [tuple(1 if at in new else next(shape) for at in range(rank))]


def _tile(node: Node) -> list[Shape]:
    return [tuple(size * times for size, times in zip(node.shape(), node.integers(1), strict=True))]


def _top_k(node: Node) -> list[Shape]:
    shape = list(node.shape())
    (axis,) = _axes([node.integer("axis", -1)], len(shape))
    shape[axis] = node.integers(1)[0]
    return [tuple(shape)] * 2


def _transpose(node: Node) -> list[Shape]:
    shape = node.shape()
    return [tuple(shape[axis] for axis in node.several("perm", range(len(shape))[::-1]))]


def _grid_sample(node: Node) -> list[Shape]:
    return [(*node.shape()[:2], *node.shape(1)[1:-1])]


# Of training models


def _accumulator(node: Node) -> list[Shape]:
    return [(1,), node.shape(0)]


def _concat_training(node: Node) -> list[Shape]:
    return [*_concat(node), (len(node.inputs),)]


def _conv_grad(node: Node) -> list[Shape]:
    return [node.shape(1), node.shape(2), node.shape(2)[:1]]


def _div_grad(node: Node) -> list[Shape]:
    return [node.shape(1), node.shape(2)]


def _layer_normalization_grad(node: Node) -> list[Shape]:
    return [node.shape(1), node.shape(2), node.shape(2)]


_LIKE_FIRST = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Clip", "Cos", "Cosh"),
    *("CumSum", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization"),
    *("IsInf", "IsNaN", "LeakyRelu", "Log", "LogSoftmax", "Neg", "Not", "PRelu", "Reciprocal", "Relu", "Round"),
    *("ScatterElements", "ScatterND", "Selu", "Sigmoid", "Sign", "Sin", "Sinh", "Softmax", "Softplus", "Sqrt", "Tan"),
    *("Tanh", "Trilu", "LeakyReluGrad", "LogSoftmaxGrad_13", "QuickGelu", "QuickGeluGrad", "ReluGrad", "Scale"),
    *("SigmoidGrad", "SoftmaxGrad_13", "TanhGrad"),
)
_BROADCAST = (
    *("Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual", "Less"),
    *("LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor"),
)
_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
)
Rule = Callable[[Node], Sequence[Shape]]
SHAPES: Mapping[str, Rule] = {
    **dict.fromkeys(_LIKE_FIRST, _same),
    **dict.fromkeys(_BROADCAST, _broadcast),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("AveragePool", "MaxPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    **dict.fromkeys(("Gemm", "MatMul", "FusedMatMul"), _matmul),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _blocks),
    **dict.fromkeys(("GatherGrad", "SliceGrad"), lambda node: [node.integers(node.operator == "SliceGrad")]),
    "BatchNormalization": _batch_normalization,
    "Concat": _concat,
    "ConcatTraining": _concat_training,
    "ConstantOfShape": _given,
    "Conv": _conv,
    "ConvGrad": _conv_grad,
    "ConvTranspose": _conv_transpose,
    "DivGrad": _div_grad,
    "Einsum": _einsum,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _second,
    "GatherElementsGrad": _given,
    "GatherND": _gather_nd,
    "GridSample": _grid_sample,
    "InPlaceAccumulatorV2": _accumulator,
    "LayerNormalization": _layer_normalization,
    "LayerNormalizationGrad": _layer_normalization_grad,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": range_shape,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Size": _scalar,
    "Slice": _slice,
    "Split": _split,
    "SplitTraining": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "TopK": _top_k,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
