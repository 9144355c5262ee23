"""What ONNX Runtime's providers and our operators compute in 16 bits, operator by operator.

An operator that is missing here has no 16-bit kernel, or sums in 16 bits what belongs in 32. Where the CUDA provider
has none, ONNX Runtime casts to float32 and back, which costs speed. In bfloat16 it has none on the CPU either, and does
not cast there: a model with such a node does not load. So what is bfloat16 here is so on both providers: our operators,
and those that only move numbers. tests/gpu/test_region_providers.py and tests/rewrite/test_region_kernels.py compare.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from deftonnx.formats.attention_function import is_attention
from deftonnx.formats.channels_last_function import is_channels_last
from deftonnx.formats.conv_function import is_conv
from deftonnx.formats.gemm_function import is_gemm
from deftonnx.formats.pool_function import is_pool
from deftonnx.layers.linear import is_standard

FLOAT16, BFLOAT16 = "float16", "bfloat16"
OWN, CONTRIB = "ai.deftonnx", "com.microsoft"


@dataclass(frozen=True)
class Kernel:
    """How an operator computes in 16 bits. `inputs` and `outputs` are the positions that change their type, None for
    all that are float32; `bfloat16` says whether there are kernels for that type too."""

    inputs: tuple[int, ...] | None = None
    outputs: tuple[int, ...] | None = None
    bfloat16: bool = False
    heavy: bool = False

    def takes(self, kind: str) -> bool:
        """True where there is a kernel for the type `kind`."""
        return self.bfloat16 or kind == FLOAT16


_MOVING = Kernel(inputs=(0,), bfloat16=True)
_FIRST = Kernel(inputs=(0,))
_PLAIN = Kernel()
_HEAVY = Kernel(heavy=True)
_OURS = Kernel(inputs=(0, 5), bfloat16=True, heavy=True)
_POOL = Kernel(bfloat16=True)
_ATTENTION = Kernel(bfloat16=True, heavy=True)

STANDARD = {
    **dict.fromkeys(("Conv", "ConvTranspose", "MatMul", "Gemm"), _HEAVY),
    **dict.fromkeys(
        ("Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"), _MOVING
    ),
    "Concat": Kernel(bfloat16=True),
    **dict.fromkeys(("DepthToSpace", "Expand", "Resize", "SpaceToDepth", "Tile", "Upsample"), _FIRST),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Relu", "Softmax", "LogSoftmax", "Sum"), _PLAIN),
    **dict.fromkeys(("Abs", "Neg", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "Selu", "PRelu", "HardSigmoid"), _PLAIN),
    **dict.fromkeys(
        (
            "Exp",
            "Log",
            "Pow",
            "Reciprocal",
            "Sqrt",
            "HardSwish",
            "Softplus",
            "Softsign",
            "ThresholdedRelu",
            "Erf",
            "Gelu",
            "Clip",
        ),
        _PLAIN,
    ),
    **dict.fromkeys(("Max", "Min", "Ceil", "Floor", "Round", "Where", "Pad"), _PLAIN),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LRN"), _PLAIN),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization", "ReduceMax", "ReduceMin"), _PLAIN),
    "MaxPool": Kernel(outputs=(0,)),
    "ReduceMean": _FIRST,
    "LayerNormalization": Kernel(outputs=(0,), bfloat16=True),
    "Dropout": Kernel(inputs=(0,), outputs=(0,)),
}
CONTRIBUTED = {
    "MultiHeadAttention": _HEAVY,
    "Attention": _HEAVY,
    "SkipLayerNormalization": Kernel(outputs=(0, 3), bfloat16=True),
    "SkipSimplifiedLayerNormalization": Kernel(outputs=(0, 3)),
    **dict.fromkeys(("Gelu", "FastGelu", "BiasGelu", "QuickGelu"), _PLAIN),
}


def kernel(node: gs.Node) -> Kernel | None:
    """How `node` computes in 16 bits, or None where it does not."""
    if is_gemm(node.domain, node.op) or is_conv(node.domain, node.op):
        return _OURS
    if is_pool(node.domain, node.op) or is_channels_last(node.domain, node.op):
        return _POOL
    if is_attention(node.domain, node.op):
        return _ATTENTION
    if node.domain == CONTRIB:
        return CONTRIBUTED.get(node.op)
    return STANDARD.get(node.op) if is_standard(node) else None
