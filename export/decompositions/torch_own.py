"""What torch itself writes with other operators: its decompositions into core ATen, except what has a rule of ours.

A rule (export.lowering) translates an operator whole, which is faster, and takes fewer nodes.
"""

from typing import Any

import torch
from torch._decomp import core_aten_decompositions, get_decompositions

aten = torch.ops.aten

KEPT = frozenset(
    {
        *("_log_softmax_backward_data", "_safe_softmax", "_softmax_backward_data", "_unsafe_index"),
        *("_unsafe_index_put", "_unsafe_view", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa"),
        *("_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "arange", "clamp_max", "clamp_min", "detach"),
        *("embedding_dense_backward", "empty_like", "eye", "fill", "gelu_backward", "hardsigmoid"),
        *("hardsigmoid_backward", "hardswish", "hardswish_backward", "hardtanh_backward", "leaky_relu_backward"),
        *("masked_fill", "native_batch_norm_backward", "native_group_norm_backward", "native_layer_norm_backward"),
        *("new_empty", "new_full", "new_ones", "new_zeros", "nll_loss2d_backward", "nll_loss2d_forward"),
        *("nll_loss_backward", "nll_loss_forward", "ones", "ones_like", "reflection_pad1d"),
        *("reflection_pad1d_backward", "reflection_pad2d", "reflection_pad2d_backward", "reflection_pad3d"),
        *("reflection_pad3d_backward", "replication_pad1d", "replication_pad2d", "replication_pad3d", "roll", "rsub"),
        *("select_backward", "sgn", "sigmoid_backward", "silu", "silu_backward", "slice_backward", "split"),
        *("squeeze", "std", "std_mean", "sum", "t", "tanh_backward", "threshold_backward", "transpose", "tril"),
        *("triu", "unsafe_split", "unsafe_split_with_sizes", "upsample_nearest2d", "upsample_nearest3d"),
        *("upsample_trilinear3d", "zero", "zeros", "zeros_like"),
    }
)
"""Operators of torch's table that have a rule."""

TABLE: dict[Any, Any] = {
    operator: function
    for operator, function in core_aten_decompositions().items()  # type: ignore[no-untyped-call]
    if isinstance(operator, torch._ops.OpOverload)  # noqa: SLF001
    and not operator._schema.is_mutable  # noqa: SLF001
    and operator._schema.name.removeprefix("aten::") not in KEPT  # noqa: SLF001
}
"""What changes a tensor in place is first made a result, by functionalisation."""

TABLE |= get_decompositions(
    [
        *(aten.elu, aten.exp2, aten.index_select, aten.linalg_vector_norm, aten.dist, aten.addmv, aten.ldexp),
        *(
            aten.native_dropout,
            aten.rrelu_with_noise_backward,
            aten.permute_copy,
            aten.view_copy,
            aten.narrow_copy,
            aten.unbind_copy,
        ),
        *(aten._prelu_kernel, aten._prelu_kernel_backward),  # noqa: SLF001
    ]
)
"""Not in torch's table of core ATen, which keeps them."""
