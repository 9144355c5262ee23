"""The custom operators' meaning in standard operators: model-local functions that stock ONNX Runtime inlines.

`ai.deftonnx::KeptConv` is a Conv whose weight holds only the kept blocks of its features. It has no kernel and needs
none: its body is folded into a Conv's weight wherever the model runs. (DeftConv, which has kernels, is packed, has
channels last, and is in conv_function.py; rewrite/packed_conv.py makes the one of the other.) Inputs:

- x (batch, channels, *spatial)
- weight (kept blocks, width, outputs): for each block, `width` neighbouring channels at one tap
- bias (groups · outputs,)
- kept_blocks (kept blocks,) int64: group · taps · C + tap · C + c for channel block c of C = channels / groups / width

Attributes: those of Conv; `blocks_shape`, `dense_shape` and `weight_shape`, the shapes through which the blocks become
the weight of a Conv; `zero`, a zero of the weight's type; `layout_version`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import parser

from deftonnx.formats.attention_function import attach_attention_functions
from deftonnx.formats.channels_last_function import attach_channels_last_functions
from deftonnx.formats.conv_function import attach_conv_functions
from deftonnx.formats.gemm_function import attach_gemm_functions
from deftonnx.formats.layer_norm_function import attach_layer_norm_function
from deftonnx.formats.mlp_function import attach_mlp_functions
from deftonnx.formats.pool_function import attach_pool_functions

KEPT_CONV = "KeptConv"
DOMAIN = "ai.deftonnx"
VERSION = 1
LAYOUT_VERSION = 1
OLDEST_OPSET = 12
"""Constants made from attributes came with opset 12."""
OLDEST_IR = 8
"""Model-local functions came with IR version 8."""

_CONV_BODY = """
<opset_import: [ "" : {opset}, "{domain}" : {version} ], domain: "{domain}">
KeptConv <auto_pad, dilations, group, kernel_shape, pads, strides, blocks_shape, dense_shape, weight_shape, zero,
          layout_version> (x, weight, bias, kept_blocks) => (y)
{{
    blocks_dims = Constant <value_ints: ints = @blocks_shape> ()
    zeros = ConstantOfShape <value: tensor = @zero> (blocks_dims)
    column = Constant <value_ints: ints = [-1, 1]> ()
    index = Reshape (kept_blocks, column)
    blocks = ScatterND (zeros, index, weight)
    dense_dims = Constant <value_ints: ints = @dense_shape> ()
    dense = Reshape (blocks, dense_dims)
    filters_first = Transpose <perm = [0, 3, 2, 1]> (dense)
    weight_dims = Constant <value_ints: ints = @weight_shape> ()
    filters = Reshape (filters_first, weight_dims)
    y = Conv <auto_pad: string = @auto_pad, dilations: ints = @dilations, group: int = @group,
              kernel_shape: ints = @kernel_shape, pads: ints = @pads, strides: ints = @strides>
             (x, filters, bias)
}}
"""


def kept_conv_function(opset: int) -> onnx.FunctionProto:
    """The body of KeptConv for models of this standard opset."""
    return parser.parse_function(_CONV_BODY.format(opset=opset, domain=DOMAIN, version=VERSION))


def attach_functions(model: onnx.ModelProto, opset: int) -> None:
    """Give the custom nodes of `model` their function bodies, in place, instead of those it has; to be called last.

    `opset` is that of the standard operators.
    """
    others = [f for f in model.functions if (f.domain, f.name) != (DOMAIN, KEPT_CONV)]
    del model.functions[:]
    model.functions.extend(others)
    if any((node.domain, node.op_type) == (DOMAIN, KEPT_CONV) for node in model.graph.node):
        model.functions.append(kept_conv_function(opset))
        model.ir_version = max(model.ir_version, OLDEST_IR)
    attach_layer_norm_function(model)
    attach_gemm_functions(model)
    attach_mlp_functions(model)
    attach_conv_functions(model)
    attach_pool_functions(model)
    attach_channels_last_functions(model)
    attach_attention_functions(model)


def conv_weight(
    weight: np.ndarray[Any, Any], kept_blocks: np.ndarray[Any, Any], dense_shape: list[int]
) -> np.ndarray[Any, Any]:
    """NumPy's reading of a KeptConv weight: the dense (groups · outputs, channels, taps) filters of a Conv.

    `dense_shape` is (groups, taps, channels of a group, outputs of a group).
    """
    groups, taps, channels, outputs = dense_shape
    width = weight.shape[1]
    blocks = np.zeros((groups * taps * channels // width, width, outputs), dtype=weight.dtype)
    blocks[kept_blocks] = weight
    return blocks.reshape(dense_shape).transpose(0, 3, 2, 1).reshape(groups * outputs, channels, taps)
