"""Operators that are written with others while a model is traced: by torch where it knows how, and some by us."""

from typing import Any

from export.decompositions import images, indexing, noise, order, pointwise, torch_own

DECOMPOSED: dict[Any, Any] = {
    **torch_own.TABLE,
    **images.TABLE,
    **indexing.TABLE,
    **noise.TABLE,
    **order.TABLE,
    **pointwise.TABLE,
}
"""Below autograd: what is looked up is an operator of a forward or of a backward pass."""
