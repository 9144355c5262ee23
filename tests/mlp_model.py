"""Models of one DeftMlp, and the float64 arithmetic that they are compared with."""

import itertools

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from gemm_cases import TOLERANCE
from gemm_model import ONNX_TYPE, activate, ort_value, to_array
from onnx import helper, numpy_helper

from deftonnx.formats import pack_weight, unpack_weight
from deftonnx.formats.gemm_function import gemm_node, weight_tensors
from deftonnx.formats.mlp_function import attach_mlp_functions, mlp_node

MLP_TYPES = (np.float16, ml_dtypes.bfloat16)
FORMATS = {np.float16: ("half", "deft8:4", "deft16", "deft8:7"), ml_dtypes.bfloat16: ("deft16", "deft8:3", "deft8:6")}
ACTIVATIONS = {
    "relu": (0, 0),
    "none": (0, 0),
    "gelu": (0, 0),
    "sigmoid": (0, 0),
    "leaky_relu": (0.1, 0),
    "clip": (-0.5, 1),
    "hard_swish": (0, 0),
}


class Chain:
    """Layers of random weights between `widths`, and the model of them."""

    def __init__(self, widths, dtype, *, x_type=None, y_type=None, same="", kinds=(), opset=17, compute="auto"):
        """`kinds`: format and activation of each layer, else these go round, or all have the activation `same`."""
        rng = np.random.default_rng(sum(widths))
        self.widths, self.dtype, self.x_type, self.y_type = widths, dtype, x_type or dtype, y_type or dtype
        self.layers, nodes, inputs = [], [], ["X", "zero"]
        initializers = [helper.make_tensor("zero", ONNX_TYPE[np.dtype(self.y_type)], [], [0.0])]
        for i, (K, N) in enumerate(itertools.pairwise(widths)):
            activation = same or list(ACTIVATIONS)[i % len(ACTIVATIONS)]
            W = (rng.standard_normal((K, N)) * (2 / K) ** 0.5).astype(np.float32)
            form = FORMATS[dtype][i % len(FORMATS[dtype])]
            if kinds:
                form, activation = kinds[i]
            packed = pack_weight(W, form)
            bias = rng.standard_normal(N).astype(np.float32) / 4
            self.layers.append((packed, bias, activation))
            last = i + 2 == len(widths)
            alpha, beta = ACTIVATIONS.get(activation, (0.2, 0.5))
            output_type = ONNX_TYPE[np.dtype(self.y_type if last else dtype)]
            names = ["X", f"W{i}", f"W{i}_scale", f"bias{i}"]
            node = gemm_node(names, "Y", packed, activation=activation, alpha=alpha, beta=beta, output_type=output_type)
            nodes.append({a.name: _value(a) for a in node.attribute})
            initializers += [*weight_tensors(packed, f"W{i}"), numpy_helper.from_array(bias, f"bias{i}")]
            inputs += names[1:]
        node = mlp_node(inputs, "Y", nodes, name="chain", compute=compute)
        ends = [
            helper.make_tensor_value_info(name, ONNX_TYPE[np.dtype(kind)], ["rows", width])
            for name, kind, width in (("X", self.x_type, widths[0]), ("Y", self.y_type, widths[-1]))
        ]
        graph = helper.make_graph([node], "chain", ends[:1], ends[1:], initializers)
        opsets = [helper.make_opsetid("", opset)]
        self.model = attach_mlp_functions(helper.make_model(graph, opset_imports=opsets, ir_version=10))

    def rows(self, M):
        """X (M, K)."""
        return np.random.default_rng(M).standard_normal((M, self.widths[0])).astype(self.x_type)

    def expected(self, X):
        """Y in float64."""
        Y = X.astype(self.dtype).astype(np.float64)
        for i, (packed, bias, activation) in enumerate(self.layers):
            z = Y @ unpack_weight(packed).astype(np.float64) + bias
            Y = activate(activation, z, *ACTIVATIONS[activation])
            if i + 1 < len(self.layers):
                Y = Y.astype(self.dtype).astype(np.float64)
        return Y

    def session(self, options, graph=False):
        """A session on the GPU."""
        onnx.checker.check_model(self.model)
        providers = [("CUDAExecutionProvider", {"enable_cuda_graph": str(int(graph))})]
        return onnxruntime.InferenceSession(self.model.SerializeToString(), options, providers=providers)

    def error(self, Y, X):
        """‖Δ‖/‖y‖ of a result, in tolerances: a value between two layers may round to its other neighbour."""
        expected = self.expected(X)
        assert Y.dtype == self.y_type
        assert Y.shape == expected.shape
        norms = np.linalg.norm(Y.astype(np.float64) - expected), np.linalg.norm(expected)
        return norms[0] / norms[1] / (len(self.layers) * TOLERANCE[self.dtype])


def _value(attribute):
    value = helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value


def run_mlp(session, X):
    """Y of a session's model as an array of its own type."""
    (Y,) = session.run_with_ort_values(["Y"], {"X": ort_value(X)})
    return to_array(Y)
