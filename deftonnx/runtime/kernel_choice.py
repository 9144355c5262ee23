"""Which kernels the operator library would run for a node on a GPU, which need not be there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from deftonnx.errors import UnsupportedError
from deftonnx.runtime.cuda import Device
from deftonnx.runtime.failure import reason

_DOMAIN = "ai.deftonnx.choice"
_WITH_CHOICES = "deftonnx.choice_operators"
"""What asks the library for the operators of that domain, which sessions of models need not enter."""


@dataclass(frozen=True)
class TimedKernel:
    """A kernel that can serve a node at M rows; nanoseconds: its estimate, and that corrected by `deftonnx tune`."""

    M: int
    kernel: str
    estimate: float
    time: float


def kernels_for(
    node: onnx.NodeProto,
    x_type: int,
    w_type: int,
    rows: Sequence[int],
    device: Device,
    library: str,
    severity: int = 4,
    known_rows: int = 0,
    has_residual: bool = False,
) -> list[TimedKernel]:
    """Return every kernel that can serve a DeftGemm `node` at each of `rows`, the fastest of each first.

    `x_type` and `w_type` are element types of X and W; kept blocks are not looked at. Raises UnsupportedError with the
    library's own words if it refuses the node. `severity`: the least that ONNX Runtime logs. `known_rows`: those that X
    has in every run, if ONNX Runtime knows that when it makes the session; else 0. `has_residual`: whether a residual
    is added to the product, which an input that only tells Y's type is not.
    """
    extra = {"x_type": x_type, "w_type": w_type, "rows": known_rows, "has_residual": int(has_residual)}
    found = [_timed(line) for line in _answer("DeftGemmChoice", node, extra, np.array(rows), device, library, severity)]
    return sorted(found, key=lambda kernel: (kernel.M, kernel.time))


def conv_kernels_for(
    node: onnx.NodeProto, x_type: int, w_type: int, image: Sequence[int], device: Device, library: str
) -> list[tuple[str, float]]:
    """Return the kernels that a DeftConv `node` would measure at the first run of a shape, with estimated nanoseconds.

    The least estimate comes first; cuDNN counts as installed. `image`: batch, rows and columns of X. Raises
    UnsupportedError with the library's own words if it refuses the node or the shape.
    """
    has_residual = int(len(node.input) > 5 and bool(node.input[5]))
    extra = {"x_type": x_type, "w_type": w_type, "has_residual": has_residual}
    lines = _answer("DeftConvChoice", node, extra, np.array([image]), device, library, 4)
    return [(kernel, float(time)) for _, kernel, time in (line.split("\t") for line in lines)]


def _answer(
    operator: str,
    node: onnx.NodeProto,
    extra: Mapping[str, int],
    sizes: np.ndarray,
    device: Device,
    library: str,
    severity: int,
) -> list[str]:
    """The lines that one of the library's operators for such questions answers for `node`."""
    attributes: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    attributes |= {**extra, "capability": device.capability, "multiprocessors": device.multiprocessors}
    question = helper.make_node(operator, ["sizes"], ["lines"], name=node.name, domain=_DOMAIN, **attributes)
    graph = helper.make_graph(
        [question],
        "choice",
        [helper.make_tensor_value_info("sizes", TensorProto.INT64, [None] * sizes.ndim)],
        [helper.make_tensor_value_info("lines", TensorProto.UINT8, ["bytes"])],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid(_DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = severity
    options.intra_op_num_threads = 1
    options.add_session_config_entry(_WITH_CHOICES, "1")
    options.register_custom_ops_library(library)
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        (text,) = session.run(None, {"sizes": sizes.astype(np.int64)})
    except Exception as error:
        raise UnsupportedError(reason(error).removeprefix("Exception during initialization: ")) from error
    return bytes(text).decode().splitlines()


def _timed(line: str) -> TimedKernel:
    M, kernel, estimate, time = line.split("\t")
    return TimedKernel(int(M), kernel, float(estimate), float(time))
