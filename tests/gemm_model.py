"""One-layer DeftGemm models and the float64 arithmetic they are compared with."""

import ctypes
import math

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from deftonnx.formats import multiplied, pack_weight, unpack_weight
from deftonnx.formats.gemm_function import attach_gemm_functions, gemm_node, no_residual, weight_tensors

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
ONNX_TYPE = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(ml_dtypes.bfloat16): TensorProto.BFLOAT16,
}

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))


_ACTIVATION = {
    "none": lambda z, a, b: z,
    "relu": lambda z, a, b: np.maximum(z, 0),
    "leaky_relu": lambda z, a, b: np.where(z > 0, z, a * z),
    "clip": lambda z, a, b: np.clip(z, a, b),
    "sigmoid": lambda z, a, b: _sigmoid(z),
    "tanh": lambda z, a, b: np.tanh(z),
    "silu": lambda z, a, b: z * _sigmoid(z),
    "swish": lambda z, a, b: z * _sigmoid(a * z),
    "gelu": lambda z, a, b: z * 0.5 * (1 + _erf(z / np.sqrt(2))),
    "gelu_tanh": lambda z, a, b: z * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
    "hard_sigmoid": lambda z, a, b: np.clip(a * z + b, 0, 1),
    "hard_swish": lambda z, a, b: z * np.clip(z / 6 + 0.5, 0, 1),
}


def reference(X, packed, bias, *, activation="none", alpha=0.0, beta=0.0, residual=None):
    """Y (..., N) in float64 of the unpacked operands."""
    z = multiplied(X, packed.format).astype(np.float64) @ unpack_weight(packed).astype(np.float64) + bias
    if residual is not None:
        z = z + residual.astype(np.float64)
    return activate(activation, z, alpha, beta)


def activate(activation, z, alpha, beta):
    """The activation of that name, in float64."""
    return _ACTIVATION[activation](z, alpha, beta)


def gemm_model(X, packed, bias, *, kept=None, residual=None, output_dtype=None, opset=17, compute="auto", **attributes):
    """A model of one DeftGemm with inputs X and, if given, residual."""
    output_type = ONNX_TYPE[np.dtype(output_dtype or X.dtype)]
    names = ["X", "W", "W_scale", "bias"]
    initializers = [*weight_tensors(packed, "W"), numpy_helper.from_array(bias, "bias")]
    tells_type = residual is None and output_type != ONNX_TYPE[X.dtype]
    if kept is not None or residual is not None or tells_type:
        names.append("kept")
        initializers.append(numpy_helper.from_array(np.array(kept or [], np.int32), "kept"))
    inputs = [helper.make_tensor_value_info("X", ONNX_TYPE[X.dtype], X.shape)]
    if residual is not None:
        names.append("residual")
        inputs.append(helper.make_tensor_value_info("residual", output_type, residual.shape))
    if tells_type:
        names.append("residual")
        initializers.append(no_residual(output_type, "residual"))
    node = gemm_node(names, "Y", packed, name="layer", output_type=output_type, compute=compute, **attributes)
    output = helper.make_tensor_value_info("Y", output_type, [*X.shape[:-1], packed.N])
    graph = helper.make_graph([node], "one_layer", inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return attach_gemm_functions(model)


def gemm_chain(combinations):
    """A chain of DeftGemm nodes over 16 features, of (format, activation) each, and what it computes."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((3, 16)).astype(np.float32)
    nodes, initializers, want = [], [numpy_helper.from_array(np.zeros(16, np.float32), "bias")], X
    for i, (name, activation) in enumerate(combinations):
        packed = pack_weight(rng.standard_normal((16, 16)).astype(np.float32) / 4, name)
        initializers += weight_tensors(packed, f"W{i}")
        inputs = [f"Y{i - 1}" if i else "X", f"W{i}", f"W{i}_scale", "bias"]
        nodes.append(gemm_node(inputs, f"Y{i}", packed, name=f"n{i}", activation=activation))
        want = reference(want, packed, 0.0, activation=activation)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 16]) for name in ("X", f"Y{len(combinations) - 1}")
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], initializers)
    opsets = [helper.make_opsetid("", 17)]
    return attach_gemm_functions(helper.make_model(graph, opset_imports=opsets, ir_version=8)), X, want


def ort_value(array):
    """An OrtValue of `array`, bfloat16 included."""
    if array.dtype == ml_dtypes.bfloat16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, TensorProto.BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def run_gemm(model, X, residual=None, options=None, providers=("CPUExecutionProvider",)):
    """Y of `model` as an array of its own type."""
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=list(providers))
    feeds = {"X": ort_value(X), **({} if residual is None else {"residual": ort_value(residual)})}
    (Y,) = session.run_with_ort_values(["Y"], feeds)
    return to_array(Y)


def to_array(value):
    """A copy of an OrtValue in host memory; its own conversion does not know bfloat16."""
    if value.element_type() != TensorProto.BFLOAT16:
        return value.numpy()
    array = np.empty(value.shape(), ml_dtypes.bfloat16)
    if array.size:
        ctypes.memmove(array.ctypes.data, value.data_ptr(), array.nbytes)
    return array
