"""Whole models on the GPU and on the CPU, for comparison."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import onnx
import onnxruntime

from deftonnx import evaluation, runtime
from deftonnx.runtime.bench import device_value


class GpuSession:
    """A session with the operator library, inputs and outputs in the GPU's memory.

    With `cuda_graph`, every feed gets a graph of its own, which a run captures and later runs replay.
    """

    def __init__(self, model, *, cuda_graph=False):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        runtime.register(options)
        providers = [("CUDAExecutionProvider", {"enable_cuda_graph": str(int(cuda_graph))}), "CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
        self.names = [output.name for output in self.session.get_outputs()]
        self.cuda_graph, self.graphs = cuda_graph, 0

    def run(self, feed, times=1):
        """Outputs by name of the last of so many runs, bfloat16 as float32."""
        values = [(t.name, device_value(_typed(feed[t.name], t.type))) for t in self.session.get_inputs()]
        first = self._binding(values)
        for name in self.names:
            first.bind_output(name, "cuda")
        self.session.run_with_iobinding(first, self._graph(-1))  # tells the shapes of the outputs
        outputs, binding = first.get_outputs(), self._binding(values)
        for name, value in zip(self.names, outputs, strict=True):
            binding.bind_ortvalue_output(name, value)
        self.graphs += 1
        for _ in range(times):
            self.session.run_with_iobinding(binding, self._graph(self.graphs))
        return {name: _host(value) for name, value in zip(self.names, outputs, strict=True)}

    def _binding(self, values):
        binding = self.session.io_binding()
        for name, value in values:
            binding.bind_ortvalue_input(name, value)
        return binding

    def _graph(self, number):
        """Options of a run that captures, or replays, the graph of that number; -1: neither."""
        options = onnxruntime.RunOptions()
        if self.cuda_graph:
            options.add_run_config_entry("gpu_graph_id", str(number))
        return options


def _typed(array, kind):
    wanted = evaluation.NARROW.get(kind)
    return np.ascontiguousarray(array if wanted is None else array.astype(wanted))


def _host(value):
    if value.element_type() != onnx.TensorProto.BFLOAT16:
        return value.numpy()
    words = np.empty(value.shape(), np.uint16)  # ONNX Runtime's own conversion does not know bfloat16
    driver = ctypes.CDLL("libcuda.so.1")
    done = driver.cuMemcpyDtoH_v2(
        words.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint64(value.data_ptr()), words.nbytes
    )
    assert done == 0, f"cuMemcpyDtoH: error {done}"
    return words.view(ml_dtypes.bfloat16).astype(np.float32)


def distance(got, want):
    """‖Δ‖/‖y‖ of the output where it is largest."""
    norms = [
        (np.linalg.norm(got[n].astype(np.float64) - want[n]), np.linalg.norm(want[n].astype(np.float64))) for n in want
    ]
    return max(d / max(norm, 1e-4) for d, norm in norms)
