"""What ONNX Runtime's CUDA provider and our operators compute in 16 bits, operator by operator.

An operator that is missing here has no 16-bit kernel, or sums in 16 bits what belongs in 32. No test compares the table
with a provider's registry: an entry that promises too much costs speed, not accuracy, since ONNX Runtime then casts to
float32 and back.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from deftonnx.formats.conv_function import is_conv
from deftonnx.formats.gemm_function import is_gemm
from deftonnx.formats.pool_function import is_pool
from deftonnx.layers.linear import is_standard

FLOAT16, BFLOAT16 = "float16", "bfloat16"
OWN, CONTRIB = "ai.deftonnx", "com.microsoft"


@dataclass(frozen=True)
class Kernel:
    """How an operator computes in 16 bits. `inputs` and `outputs` are the positions that change their type, None for
    all that are float32; `bfloat16` and `float16` say what there are kernels for."""

    inputs: tuple[int, ...] | None = None
    outputs: tuple[int, ...] | None = None
    float16: bool = True
    bfloat16: bool = False
    heavy: bool = False

    def takes(self, kind: str) -> bool:
        """True where there is a kernel for the type `kind`."""
        return self.bfloat16 if kind == BFLOAT16 else self.float16


_MOVING = Kernel(inputs=(0,), bfloat16=True)
_PLAIN = Kernel()
_BOTH = Kernel(bfloat16=True)
_HEAVY = Kernel(heavy=True)
_HEAVY_BOTH = Kernel(heavy=True, bfloat16=True)
_OURS = Kernel(inputs=(0, 5), bfloat16=True, heavy=True)
_POOL = Kernel(bfloat16=True)

_STANDARD = {
    **dict.fromkeys(("Conv", "ConvTranspose"), _HEAVY),
    **dict.fromkeys(("MatMul", "Gemm"), _HEAVY_BOTH),
    **dict.fromkeys(
        ("Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose"),
        _MOVING,
    ),
    **dict.fromkeys(("Unsqueeze", "DepthToSpace", "SpaceToDepth"), _MOVING),
    **dict.fromkeys(("Resize", "Upsample"), Kernel(inputs=(0,))),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Relu", "Softmax", "LogSoftmax", "Sum"), _BOTH),
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
    **dict.fromkeys(("Max", "Min", "Ceil", "Floor", "Round", "Where", "Concat", "Pad"), _PLAIN),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LRN"), _PLAIN),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization", "ReduceMean", "ReduceMax", "ReduceMin"), _PLAIN),
    "MaxPool": Kernel(outputs=(0,)),
    "ReduceMean": Kernel(inputs=(0,)),
    "LayerNormalization": Kernel(outputs=(0,), bfloat16=True),
    "Dropout": Kernel(inputs=(0,), outputs=(0,)),
}
_CONTRIB = {
    "MultiHeadAttention": Kernel(heavy=True),
    "Attention": Kernel(heavy=True),
    "SkipLayerNormalization": Kernel(outputs=(0, 3)),
    "Gelu": _PLAIN,
    "FastGelu": _BOTH,
    "BiasGelu": _PLAIN,
    "QuickGelu": _PLAIN,
}


def kernel(node: gs.Node) -> Kernel | None:
    """How `node` computes in 16 bits, or None where it does not."""
    if is_gemm(node.domain, node.op) or is_conv(node.domain, node.op):
        return _OURS
    if is_pool(node.domain, node.op):
        return _POOL
    if node.domain == CONTRIB:
        return _CONTRIB.get(node.op)
    return _STANDARD.get(node.op) if is_standard(node) else None
