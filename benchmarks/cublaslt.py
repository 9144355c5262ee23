"""cuBLASLt's matrix multiply with its fused epilogues, through its C API: the fastest of several plans.

PyTorch takes the first plan that cuBLASLt's heuristics give; another one is often faster.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from ctypes import byref, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p

import torch
from gemm_sessions import Layers

EPILOGUES = {"none": 4, "relu": 6, "gelu": 36, "gelu_tanh": 36}
"""cublasLtEpilogue_t, each with a bias; its only GELU is the one with tanh."""
MOST_PLANS = 12
WORKSPACE = 64 << 20
_TYPES = {torch.float16: 2, torch.bfloat16: 14}  # cudaDataType_t
_COMPUTE_FLOAT32, _FLOAT32 = 68, 0
_TRANSPOSE_A, _EPILOGUE, _BIAS, _MOST_WORKSPACE = 3, 7, 8, 1  # attributes


class _Plan(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algorithm", c_uint64 * 8),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    ]


class FusedLinear:
    """activation(X (M, K) · W (N, K)ᵀ + bias (N,)) by cuBLASLt, all of one 16-bit type; `plans` ways of doing it."""

    def __init__(self, M: int, K: int, N: int, dtype: torch.dtype, activation: str) -> None:
        self._library = ctypes.CDLL("libcublasLt.so.13")
        self._handle, self._operation, preference = c_void_p(), c_void_p(), c_void_p()
        self._call("cublasLtCreate", byref(self._handle))
        self._call("cublasLtMatmulDescCreate", byref(self._operation), _COMPUTE_FLOAT32, _FLOAT32)
        self._set(_TRANSPOSE_A, c_int(1))
        self._set(_EPILOGUE, c_int(EPILOGUES[activation]))
        # in its columns-first order: Yᵀ (N, M) = W · Xᵀ
        self._layouts = [self._layout(dtype, *shape) for shape in ((K, N), (K, M), (N, M))]
        self._workspace = torch.empty(WORKSPACE, dtype=torch.uint8, device="cuda")
        self._set(_BIAS, c_void_p(self._workspace.data_ptr()))  # plans depend on its alignment
        most = c_size_t(WORKSPACE)
        self._call("cublasLtMatmulPreferenceCreate", byref(preference))
        self._call("cublasLtMatmulPreferenceSetAttribute", preference, _MOST_WORKSPACE, byref(most), c_size_t(8))
        w, x, y = self._layouts
        self._plans, found = (_Plan * MOST_PLANS)(), c_int()
        self._call(
            *("cublasLtMatmulAlgoGetHeuristic", self._handle, self._operation, w, x, y, y, preference, MOST_PLANS),
            *(self._plans, byref(found)),
        )
        self.plans = found.value

    def enqueue(self, plan: int, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, y: torch.Tensor) -> None:
        """Compute y on the current stream by the plan of that number. Raises RuntimeError."""
        self._set(_BIAS, c_void_p(bias.data_ptr()))
        w_layout, x_layout, y_layout = self._layouts
        one, zero, out = c_float(1), c_float(0), c_void_p(y.data_ptr())
        self._call(
            *("cublasLtMatmul", self._handle, self._operation, byref(one), c_void_p(weight.data_ptr()), w_layout),
            *(c_void_p(x.data_ptr()), x_layout, byref(zero), out, y_layout, out, y_layout),
            *(byref(self._plans[plan].algorithm), c_void_p(self._workspace.data_ptr()), c_size_t(WORKSPACE)),
            c_void_p(torch.cuda.current_stream().cuda_stream),
        )

    def _call(self, name: str, *arguments: object) -> None:
        if status := getattr(self._library, name)(*arguments):
            raise RuntimeError(f"{name}: status {status}")

    def _set(self, attribute: int, value: c_int | c_void_p) -> None:
        size = c_size_t(ctypes.sizeof(value))
        self._call("cublasLtMatmulDescSetAttribute", self._operation, attribute, byref(value), size)

    def _layout(self, dtype: torch.dtype, rows: int, columns: int) -> c_void_p:
        layout, type_code = c_void_p(), _TYPES[dtype]
        arguments = (type_code, c_uint64(rows), c_uint64(columns), c_int64(rows))
        self._call("cublasLtMatrixLayoutCreate", byref(layout), *arguments)
        return layout


def fastest_graph(layers: Layers) -> Callable[[], None]:
    """Return a function that runs the layers as a CUDA graph, all by the plan that is fastest for them."""
    dtype = getattr(torch, layers.dtype)
    linear = FusedLinear(layers.M, layers.K, layers.N, dtype, layers.activation)
    inputs = [torch.randn(layers.M, layers.K, device="cuda", dtype=dtype) for _ in range(layers.repeats)]
    weights = [torch.randn(layers.N, layers.K, device="cuda", dtype=dtype) for _ in range(layers.count)]
    outputs = [torch.empty(layers.M, layers.N, device="cuda", dtype=dtype) for _ in range(layers.nodes)]
    bias = torch.randn(layers.N, device="cuda", dtype=dtype)
    graphs = []
    for plan in range(linear.plans):
        try:
            linear.enqueue(plan, inputs[0], weights[0], bias, outputs[0])
        except RuntimeError:
            continue  # offered, but refused
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            for i, y in enumerate(outputs):
                linear.enqueue(plan, inputs[i // layers.count], weights[i % layers.count], bias, y)
    fastest = min(graphs, key=_seconds)

    def run(keep: object = (linear, inputs, weights, bias, outputs)) -> None:
        fastest.replay()

    return run


def _seconds(graph: torch.cuda.CUDAGraph) -> float:
    """The least of three runs."""
    times = []
    for _ in range(3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        graph.replay()
        graph.replay()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
