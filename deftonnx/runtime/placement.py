"""What a CUDA session makes of a model: copies between the GPU and the host, nodes on the CPU, CUDA graphs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime

from deftonnx.errors import DeftError, UnsupportedError
from deftonnx.model_file import bodies
from deftonnx.runtime import cuda
from deftonnx.runtime.bench import Settings, bench, uses_library
from deftonnx.runtime.failure import reason
from deftonnx.runtime.session import register_if_built

_CONTROL_FLOW = ("If", "Loop", "Scan")


@dataclass(frozen=True)
class Placement:
    """Memcpy nodes that ONNX Runtime inserts, and `operator name` of nodes it runs on the CPU (None: it cannot say)."""

    memcpy: int
    on_cpu: list[str] | None


def placement(path: str | Path, model: onnx.ModelProto) -> Placement:
    """Make a CUDA session of the model at `path` and look at it. Raises UnsupportedError if there can be none."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
    if uses_library(model):
        register_if_built(options)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "optimized.onnx")
        options.optimized_model_filepath = str(written)
        providers = [cuda.PROVIDER, "CPUExecutionProvider"]
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
        except Exception as error:
            raise UnsupportedError(f"ONNX Runtime cannot load '{path}': {reason(error)}") from error
        graph = onnx.load(str(written), load_external_data=False).graph
        memcpy = sum(node.op_type.startswith("Memcpy") for node in _nodes(graph))
    return Placement(memcpy, _on_cpu(session))


def _on_cpu(session: onnxruntime.InferenceSession) -> list[str] | None:
    if not hasattr(session, "get_provider_graph_assignment_info"):  # ONNX Runtime before 1.25 or so
        return None
    parts = [p for p in session.get_provider_graph_assignment_info() if p.ep_name == "CPUExecutionProvider"]
    return [f"{node.op_type} {node.name}".strip() for part in parts for node in part.get_nodes()]


def cuda_graph_obstacle(
    path: str | Path, model: onnx.ModelProto, batch: int | None, sizes: Mapping[str, int]
) -> str | None:
    """Return why the model cannot run as a CUDA graph, or None if it can: it is tried, where there is a GPU.

    Without one only what rules it out anyway is found; UnsupportedError says that the rest is not known.
    """
    if found := sorted({node.op_type for node in _nodes(model.graph) if node.op_type in _CONTROL_FLOW}):
        return f"it has control flow: {', '.join(found)}"
    if obstacle := cuda.obstacle():
        raise UnsupportedError(f"not known without a usable GPU: {obstacle}")
    try:
        bench([path], Settings("cuda", (batch,), cuda_graph=True, rounds=1, seconds=0, sizes=sizes), lambda text: None)
    except DeftError as error:
        return str(error)
    return None


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for body in bodies(graph) for node in body.node]
