"""One-node models of the operators in the table of 16-bit kernels (deftonnx/rewrite/regions/kernels.py)."""

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, parser

OPSET = 20
OLDER = {"Upsample": 9}
"""The opsets of operators that later ones lack."""
SHAPES = {
    "x": [2, 8, 6, 6],
    "i": [2, 8, 16],
    "m": [8, 16],
    "v": [16],
    "c": [8],
    "k": [4, 8, 3, 3],
    "l": [8, 4, 3, 3],
    "s": [],
    "w": [16, 16],
    "q": [2, 8, 16],
    "b": [1, 1, 8, 8],
}
"""Tensors of the type in question by name; INTEGERS are the others."""
INTEGERS = {
    "axes": [2, 3],
    "shape": [2, -1],
    "wide": [2, 8, 6, 6],
    "one": [1],
    "two": [2],
    "halves": [4, 4],
    "last": [3],
    "amounts": [0, 0, 1, 1, 0, 0, 1, 1],
    "four": [1, 1, 2, 2],
    "places": [0, 2],
}
FLOATS = {"scales": [1, 1, 2, 2]}
TEXTS = {
    "Conv": "Conv (x, k)",
    "ConvTranspose": "ConvTranspose (x, l)",
    "MatMul": "MatMul (i, w)",
    "Gemm": "Gemm (m, w, v)",
    "Expand": "Expand (c_, wide)",
    "Flatten": "Flatten (x)",
    "Gather": "Gather <axis=1> (x, places)",
    "Identity": "Identity (x)",
    "Reshape": "Reshape (x, shape)",
    "Slice": "Slice (x, one, two, last)",
    "Split": "Split <axis=1> (x, halves)",
    "Squeeze": "Squeeze (x1)",
    "Tile": "Tile (x, four)",
    "Transpose": "Transpose <perm=[0,2,3,1]> (x)",
    "Unsqueeze": "Unsqueeze (x, one)",
    "DepthToSpace": "DepthToSpace <blocksize=2> (x)",
    "SpaceToDepth": "SpaceToDepth <blocksize=2> (x)",
    "Resize": 'Resize <mode="nearest"> (x, , scales)',
    "Upsample": "Upsample (x, scales)",
    "Softmax": "Softmax <axis=-1> (x)",
    "LogSoftmax": "LogSoftmax <axis=-1> (x)",
    "PRelu": "PRelu (x, c_)",
    "Clip": "Clip (x, s, s)",
    "Where": "Where (flags, x, x)",
    "Concat": "Concat <axis=1> (x, x)",
    "Pad": "Pad (x, amounts)",
    "MaxPool": "MaxPool <kernel_shape=[2,2]> (x)",
    "AveragePool": "AveragePool <kernel_shape=[2,2]> (x)",
    "LRN": "LRN <size=3> (x)",
    "BatchNormalization": "BatchNormalization (x, c, c, c, c)",
    "InstanceNormalization": "InstanceNormalization (x, c, c)",
    "ReduceMean": "ReduceMean (x, axes)",
    "ReduceMax": "ReduceMax (x, axes)",
    "ReduceMin": "ReduceMin (x, axes)",
    "LayerNormalization": "LayerNormalization (i, v, v)",
    "Dropout": "Dropout (x)",
    "MultiHeadAttention": "com.microsoft.MultiHeadAttention <num_heads=2> (i, q, q)",
    "Attention": "com.microsoft.Attention <num_heads=2> (i, w3, v3)",
    "SkipLayerNormalization": "com.microsoft.SkipLayerNormalization (i, q, v, v)",
    "SkipSimplifiedLayerNormalization": "com.microsoft.SkipSimplifiedLayerNormalization (i, q, v)",
    "FastGelu": "com.microsoft.FastGelu (x)",
    "QuickGelu": "com.microsoft.QuickGelu (x)",
    "BiasGelu": "com.microsoft.BiasGelu (i, v)",
    **{op: f"{op} (x, x)" for op in ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum")},
}
"""Other operators have one input."""
SHAPES |= {"c_": [8, 1, 1], "x1": [2, 8, 1, 1], "w3": [16, 48], "v3": [48]}


def one_node(op: str, contrib: bool, kind: str, outputs: int = 1) -> onnx.ModelProto:
    """A model of `op` whose tensors are of type `kind`, float16 or bfloat16."""
    text = TEXTS.get(op, f"{op} (x)")
    if contrib and "com.microsoft" not in text:
        text = f"com.microsoft.{text}"
    names = {part.strip() for part in text[text.rindex("(") + 1 : -1].split(",")} - {""}
    feeds = [name for name in names if name in ("x", "i", "m", "x1", "c_", "q")]
    inputs = ", ".join(f"{kind}{_dims(SHAPES[name])} {name}" for name in sorted(feeds))
    results = [f"y{n}" for n in range(outputs)]
    declared = ", ".join(f"{kind} {name}" for name in results)
    model = parser.parse_model(
        f'<ir_version: 9, opset_import: ["": {OLDER.get(op, OPSET)}, "com.microsoft": 1]>'
        f"g ({inputs}) => ({declared}) {{ {', '.join(results)} = {text} }}"
    )
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    for name in sorted(names - set(feeds)):
        model.graph.initializer.append(_constant(name, kind))
    return model


def _dims(shape: list[int]) -> str:
    return f"[{','.join(map(str, shape))}]" if shape else ""


def _constant(name: str, kind: str) -> TensorProto:
    if name == "flags":
        return helper.make_tensor(name, TensorProto.BOOL, [6], [True, False] * 3)
    if name in INTEGERS:
        return onnx.numpy_helper.from_array(np.array(INTEGERS[name], np.int64), name)
    if name in FLOATS:
        return onnx.numpy_helper.from_array(np.array(FLOATS[name], np.float32), name)
    dtype = np.float16 if kind == "float16" else ml_dtypes.bfloat16
    return onnx.numpy_helper.from_array(np.full(SHAPES[name], 0.5).astype(dtype), name)
