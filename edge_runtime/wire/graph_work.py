"""About how many operations on numbers a node takes: its products, or else all that it reads and makes."""

# coverage: every branch

import math
from collections.abc import Callable, Mapping, Sequence

from edge_runtime.wire.graph_node import KnownArray, Node, Unknown
from edge_runtime.wire.graph_shapes import einsum_indices, matrices


def operations_of(node: Node, outputs: Sequence[KnownArray | None]) -> int:
    """Return about how many operations on numbers a node takes: products, or else all that it reads and makes."""
    touched = sum(value.elements for value in (*node.inputs, *outputs) if value is not None)
    products = _PRODUCTS.get(node.operator)
    try:
        return (
            touched if products is None or not outputs or outputs[0] is None else touched + products(node, outputs[0])
        )
    except (Unknown, IndexError, ValueError):
        return touched


def _of_conv(node: Node, made: KnownArray) -> int:
    weight = node.value(1)
    return made.elements * (weight.elements // max(1, weight.shape[0]))


def _of_conv_transpose(node: Node, _made: KnownArray) -> int:
    weight = node.value(1)
    return node.value(0).elements * (weight.elements // max(1, weight.shape[0]))


def _of_conv_grad(node: Node, _made: KnownArray) -> int:
    weight = node.value(2)
    return 2 * node.value(0).elements * (weight.elements // max(1, weight.shape[0]))


def _of_matmul(node: Node, made: KnownArray) -> int:
    return made.elements * matrices(node)[0][-1]


def _of_einsum(node: Node, _made: KnownArray) -> int:
    return math.prod(einsum_indices(node)[0].values())


def _of_pool(node: Node, made: KnownArray) -> int:
    return made.elements * math.prod(node.several("kernel_shape"))


_PRODUCTS: Mapping[str, Callable[[Node, KnownArray], int]] = {
    **dict.fromkeys(("AveragePool", "MaxPool"), _of_pool),
    **dict.fromkeys(("Gemm", "MatMul", "FusedMatMul"), _of_matmul),
    "Conv": _of_conv,
    "ConvGrad": _of_conv_grad,
    "ConvTranspose": _of_conv_transpose,
    "Einsum": _of_einsum,
}
