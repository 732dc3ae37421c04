"""Shapes, numbers and products of operators, by ONNX's rules. tests/export holds them to what the engine makes."""

import pytest

from edge_runtime.wire.graph_inference import outputs_of
from edge_runtime.wire.graph_node import KnownArray, Node
from edge_runtime.wire.graph_work import operations_of


def whole(*numbers):
    return KnownArray((len(numbers),), numbers)


def node(operator, inputs, attributes=None, outputs=1):
    """A node that reads shapes, or values."""
    read = [KnownArray(each) if isinstance(each, tuple) else each for each in inputs]
    return Node(operator, attributes or {}, read, outputs)


def shapes(*given, **more):
    return [value and value.shape for value in outputs_of(node(*given, **more))]


X = (2, 3, 8, 9)
CASES = [
    ("Relu", [X], {}, [X]),
    ("Add", [(2, 1, 4), (3, 1)], {}, [(2, 3, 4)]),
    ("Where", [(3, 1), (), (1, 2)], {}, [(3, 2)]),
    ("Add", [(2,), (3,)], {}, [None]),
    ("ReduceSum", [X, whole(1, -1)], {}, [(2, 1, 8, 1)]),
    ("ReduceSum", [X, whole(1, -1)], {"keepdims": 0}, [(2, 8)]),
    ("ReduceMean", [X], {"axes": (2, 3)}, [(2, 3, 1, 1)]),
    ("ReduceMax", [X], {}, [(1, 1, 1, 1)]),
    ("ReduceSum", [X], {"noop_with_empty_axes": 1}, [X]),
    ("ReduceSum", [X, whole(4)], {}, [None]),
    ("ReduceSum", [X, (1,)], {}, [None]),
    ("ReduceSum", [X], {"axes": 1}, [None]),
    ("ArgMax", [X], {"axis": 1, "keepdims": 0}, [(2, 8, 9)]),
    ("ArgMax", [X], {"axis": (1,)}, [None]),
    ("Conv", [X, (4, 3, 3, 3)], {}, [(2, 4, 6, 7)]),
    ("Conv", [X, (4, 3, 3, 3)], {"pads": (1, 1, 1, 1), "strides": (2, 2)}, [(2, 4, 4, 5)]),
    ("Conv", [X, (4, 3, 3, 3)], {"dilations": (2, 2)}, [(2, 4, 4, 5)]),
    ("Conv", [X, (4, 3, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": (2, 2)}, [(2, 4, 4, 5)]),
    ("Conv", [X, (4, 3, 3, 3)], {"auto_pad": "VALID", "pads": (1, 1, 1, 1)}, [(2, 4, 6, 7)]),
    ("Conv", [X, (4, 3, 9, 9)], {}, [None]),
    ("Conv", [X, (4, 3, 3, 3)], {"auto_pad": 1}, [None]),
    ("MaxPool", [X], {"kernel_shape": (2, 2), "strides": (2, 2)}, [(2, 3, 4, 4)]),
    ("MaxPool", [X], {"kernel_shape": (2, 2), "strides": (2, 2), "ceil_mode": 1}, [(2, 3, 4, 5)]),
    ("MaxPool", [X], {"kernel_shape": (1, 1), "strides": (4, 4), "ceil_mode": 1}, [(2, 3, 2, 3)]),
    ("GlobalAveragePool", [X], {}, [(2, 3, 1, 1)]),
    ("ConvTranspose", [X, (3, 2, 3, 3)], {"strides": (2, 2), "group": 3, "output_padding": (1, 1)}, [(2, 6, 18, 20)]),
    ("ConvTranspose", [X, (3, 2, 3, 3)], {"output_shape": (5, 6)}, [(2, 2, 5, 6)]),
    ("ConvTranspose", [X, (3, 2, 3, 3)], {"auto_pad": "SAME_LOWER", "strides": (2, 2)}, [(2, 2, 16, 18)]),
    ("ConvTranspose", [X, (3, 2, 3, 3)], {"auto_pad": "VALID", "pads": (1, 1, 1, 1)}, [(2, 2, 10, 11)]),
    ("ConvTranspose", [X, (3, 2, 3, 3)], {"pads": (9, 9, 9, 9)}, [None]),
    ("Concat", [(2, 3), (2, 4)], {"axis": -1}, [(2, 7)]),
    ("ConstantOfShape", [whole(2, 5)], {}, [(2, 5)]),
    ("ConstantOfShape", [(2,)], {}, [None]),
    ("DepthToSpace", [(1, 8, 2, 3)], {"blocksize": 2}, [(1, 2, 4, 6)]),
    ("SpaceToDepth", [(1, 2, 4, 6)], {"blocksize": 2}, [(1, 8, 2, 3)]),
    ("SpaceToDepth", [(1, 2, 4, 6)], {"blocksize": 0}, [None]),
    ("Einsum", [(2, 3), (3, 4)], {"equation": "ij,jk->ik"}, [(2, 4)]),
    ("Einsum", [(2, 3), (3, 4)], {"equation": "ij, jk"}, [(2, 4)]),
    ("Einsum", [(2, 3)], {"equation": "ijk->i"}, [None]),
    ("Einsum", [(2, 3)], {"equation": "ij->k"}, [None]),
    ("Einsum", [(2, 3)], {"equation": 1}, [None]),
    ("Expand", [(3, 1), whole(2, 1, 4)], {}, [(2, 3, 4)]),
    ("Flatten", [X], {}, [(2, 216)]),
    ("Flatten", [X], {"axis": -1}, [(48, 9)]),
    ("Gather", [X, (5, 6)], {"axis": 1}, [(2, 5, 6, 8, 9)]),
    ("GatherElements", [X, (1, 2, 3, 4)], {}, [(1, 2, 3, 4)]),
    ("GatherND", [X, (2, 5, 2)], {"batch_dims": 1}, [(2, 5, 9)]),
    ("MatMul", [(5, 1, 2, 3), (4, 3, 6)], {}, [(5, 4, 2, 6)]),
    ("MatMul", [(2, 3), (3,)], {}, [(2,)]),
    ("MatMul", [(3,), (4, 3, 6)], {}, [(4, 6)]),
    ("Gemm", [(3, 2), (6, 3), (6,)], {"transA": 1, "transB": 1}, [(2, 6)]),
    ("FusedMatMul", [(3, 2), (3, 6)], {"transBatchA": 1}, [None]),
    ("OneHot", [(2, 4), KnownArray((), (7,)), (2,)], {"axis": 1}, [(2, 7, 4)]),
    ("Pad", [(2, 3), whole(0, 1, 2, 3)], {}, [(4, 7)]),
    ("Pad", [(2, 3), whole(1, 1), KnownArray(()), whole(-1)], {}, [(2, 5)]),
    ("Pad", [(2, 3), whole(0, -2, 0, -2)], {}, [None]),
    ("Range", [KnownArray((), (0,)), KnownArray((), (7,)), KnownArray((), (2,))], {}, [(4,)]),
    ("Range", [KnownArray((), (7,)), KnownArray((), (0,)), KnownArray((), (2,))], {}, [(0,)]),
    ("Range", [KnownArray((), (7,)), KnownArray((), (0,)), KnownArray((), (0,))], {}, [None]),
    ("Reshape", [X, whole(0, -1, 9)], {}, [(2, 24, 9)]),
    ("Reshape", [(0, 3), whole(3, 0)], {"allowzero": 1}, [(3, 0)]),
    ("Reshape", [X, whole(2, 0, 0, 0, 0)], {}, [None]),
    ("Resize", [X, None, KnownArray((4,), (1.0, 1.0, 2.0, 0.5))], {}, [(2, 3, 16, 4)]),
    ("Resize", [X, None, KnownArray((0,)), whole(2, 3, 4, 4)], {}, [(2, 3, 4, 4)]),
    ("Resize", [X, None, None, whole(4, 4)], {"axes": (2, 3)}, [(2, 3, 4, 4)]),
    ("Resize", [X, None, None, whole(2, 3, 4, 4)], {"keep_aspect_ratio_policy": "not_larger"}, [None]),
    ("Resize", [X], {}, [None]),
    ("Shape", [X], {}, [(4,)]),
    ("Shape", [X], {"start": 1, "end": -1}, [(2,)]),
    ("Size", [X], {}, [()]),
    ("Slice", [X, whole(1, 2), whole(-1, 99), whole(3, 2)], {}, [(2, 3, 6, 7)]),
    ("Slice", [X, whole(-1), whole(-99), whole(3), whole(-2)], {}, [(2, 3, 8, 5)]),
    ("Slice", [(4, 5), whole(1, 1), whole(3, 3)], {}, [(2, 2)]),
    ("Slice", [(4, 5), whole(1), whole(3), whole(0), whole(0)], {}, [None]),
    ("Squeeze", [(1, 3, 1), whole(-1)], {}, [(1, 3)]),
    ("Squeeze", [(1, 3, 1)], {}, [(3,)]),
    ("Unsqueeze", [(3, 4), whole(0, -1)], {}, [(1, 3, 4, 1)]),
    ("Tile", [(2, 3), whole(2, 3)], {}, [(4, 9)]),
    ("Transpose", [X], {"perm": (3, 2, 1, 0)}, [(9, 8, 3, 2)]),
    ("Transpose", [X], {}, [(9, 8, 3, 2)]),
    ("GridSample", [X, (2, 5, 6, 2)], {}, [(2, 3, 5, 6)]),
    ("NoSuchOperator", [X], {}, [None]),
    ("GatherGrad", [whole(4, 5), (2,), (2, 5)], {}, [(4, 5)]),
    ("SliceGrad", [(2, 5), whole(4, 5), whole(1)], {}, [(4, 5)]),
    ("GatherElementsGrad", [whole(4, 5), (2, 5), (2, 5)], {}, [(4, 5)]),
]
SEVERAL = [
    ("BatchNormalization", [X, (3,), (3,), (3,), (3,)], {}, [X, (3,), (3,)]),
    ("LayerNormalization", [X, (9,)], {"axis": -1}, [X, (2, 3, 8, 1), (2, 3, 8, 1)]),
    ("MaxPool", [X], {"kernel_shape": (8, 9)}, [(2, 3, 1, 1), (2, 3, 1, 1)]),
    ("Split", [(2, 7), whole(3, 4)], {"axis": 1}, [(2, 3), (2, 4)]),
    ("Split", [(7, 2)], {}, [(3, 2), (3, 2), (1, 2)]),
    ("TopK", [(2, 7), whole(3)], {}, [(2, 3), (2, 3)]),
    ("InPlaceAccumulatorV2", [(4, 5), (4, 5)], {}, [(1,), (4, 5)]),
    ("ConcatTraining", [(2, 3), (2, 4)], {"axis": 1}, [(2, 7), (2,)]),
    ("ConvGrad", [(2, 4, 6, 7), X, (4, 3, 3, 3)], {}, [X, (4, 3, 3, 3), (4,)]),
    ("DivGrad", [X, (2, 3, 8, 9), (9,)], {}, [X, (9,)]),
    ("LayerNormalizationGrad", [X, X, (9,)], {}, [X, (9,), (9,)]),
    ("Relu", [X], {}, [X, X]),
    ("Shape", [X], {}, [(4,), None]),
]


@pytest.mark.parametrize(("operator", "inputs", "attributes", "wanted"), CASES + SEVERAL)
def test_shapes_follow_by_the_rules_of_onnx_or_are_not_known(operator, inputs, attributes, wanted):
    assert shapes(operator, inputs, attributes, len(wanted)) == wanted


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "numbers"),
    [
        ("Shape", [X], {"start": -2}, (8, 9)),
        ("Size", [X], {}, (432,)),
        ("Concat", [whole(1, 2), whole(3)], {"axis": 0}, (1, 2, 3)),
        ("Gather", [whole(5, 6, 7), whole(2, 0)], {}, (7, 5)),
        ("Slice", [whole(5, 6, 7), whole(1), whole(9)], {}, (6, 7)),
        ("Slice", [whole(5, 6, 7), whole(-1), whole(-9), whole(0), whole(-1)], {}, (7, 6, 5)),
        ("Squeeze", [whole(5)], {}, (5,)),
        ("Add", [whole(1, 2), whole(3)], {}, (4, 5)),
        ("Sub", [whole(3), whole(1, 2)], {}, (2, 1)),
        ("Mul", [whole(3), whole(4)], {}, (12,)),
        ("Div", [whole(-7), whole(2)], {}, (-3,)),
        ("Div", [whole(7.0), whole(2.0)], {}, (3.5,)),
        ("Div", [whole(7), whole(0)], {}, None),
        ("Max", [whole(3), whole(4)], {}, (4,)),
        ("Min", [whole(3), whole(4)], {}, (3,)),
        ("Range", [KnownArray((), (1,)), KnownArray((), (6,)), KnownArray((), (2,))], {}, (1, 3, 5)),
        ("ReduceProd", [whole(3, 4)], {}, (12,)),
        ("Relu", [whole(3, 4)], {}, None),
        ("Cast", [(2,)], {}, None),
        ("Gather", [whole(5), whole(1)], {}, None),
        ("Expand", [(1,), whole(65)], {}, None),
    ],
)
def test_numbers_of_small_arrays_follow_where_they_can(operator, inputs, attributes, numbers):
    assert outputs_of(node(operator, inputs, attributes))[0].numbers == numbers


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "products"),
    [
        ("Conv", [X, (4, 3, 3, 3)], {}, 2 * 4 * 6 * 7 * 27),
        ("ConvTranspose", [X, (3, 2, 3, 3)], {}, 432 * 18),
        ("ConvGrad", [(2, 4, 6, 7), X, (4, 3, 3, 3)], {}, 2 * 2 * 4 * 6 * 7 * 27),
        ("MatMul", [(5, 2, 3), (3, 4)], {}, 5 * 2 * 4 * 3),
        ("Gemm", [(3, 2), (3, 4)], {"transA": 1}, 2 * 4 * 3),
        ("Einsum", [(2, 3), (3, 4)], {"equation": "ij,jk->ik"}, 24),
        ("MaxPool", [X], {"kernel_shape": (2, 2)}, 2 * 3 * 7 * 8 * 4),
        ("Relu", [X], {}, 0),
        ("Conv", [X, None], {}, 0),
        ("NoSuchOperator", [X], {}, 0),
    ],
)
def test_operations_are_products_and_all_that_is_read_and_made(operator, inputs, attributes, products):
    one = node(operator, inputs, attributes)
    made = outputs_of(one)
    touched = sum(value.elements for value in (*one.inputs, *made) if value is not None)
    assert operations_of(one, made) == products + touched


def test_operations_of_what_cannot_be_known_are_what_is_touched():
    one = node("Conv", [X, None])
    assert operations_of(one, [KnownArray((2, 4, 6, 7))]) == 432 + 336
