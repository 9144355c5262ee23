"""What this machine can run, and what would become of a model on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from deftonnx import model_file
from deftonnx.errors import UnsupportedError
from deftonnx.formats.operator_function import DOMAIN
from deftonnx.runtime import cuda
from deftonnx.runtime.conv_nodes import conv_nodes
from deftonnx.runtime.cuda import Device
from deftonnx.runtime.environment import environment
from deftonnx.runtime.gemm_nodes import gemm_nodes
from deftonnx.runtime.gpus import chosen_device
from deftonnx.runtime.library import LibraryNotFoundError, get_library_path
from deftonnx.runtime.manifest import Manifest, read_manifest
from deftonnx.runtime.mlp_nodes import mlp_nodes
from deftonnx.runtime.placement import cuda_graph_obstacle, placement
from deftonnx.runtime.tuning_table import table_state
from deftonnx.version import __version__

SCHEMA = "deftonnx-doctor"
SCHEMA_VERSION = 1


def examine_machine(gpu: str | None = None) -> dict[str, Any]:
    """Versions, providers, CUDA's libraries, GPUs and the operator library, as JSON can hold them.

    `gpu`, a name of GPUS, is looked at instead of the first one that is there. Raises UsageError for an unknown name.
    """
    device = chosen_device(gpu)
    return {
        "schema": SCHEMA,
        "version": SCHEMA_VERSION,
        "environment": environment(),
        "providers": {name: _provider(name) for name in onnxruntime.get_available_providers()},
        "cuda_libraries": cuda.libraries(),
        "gpu": None if device is None else vars(device),
        "library": _library(device),
    }


def examine_model(path: Path, batch: int | None, sizes: Mapping[str, int], gpu: str | None = None) -> dict[str, Any]:
    """What a CUDA session would make of the model: kernels of its nodes, copies, the CPU's nodes, CUDA graph.

    What needs a GPU is None where there is none, and `unknown` says why. Raises what model_file.read raises.
    """
    proto = model_file.read(path)
    device = chosen_device(gpu)
    try:
        library: str | None = get_library_path()
    except LibraryNotFoundError:
        library = None
    nodes = [node for body in model_file.bodies(proto.graph) for node in body.node]
    content: dict[str, Any] = {
        "path": str(path),
        "batch": batch,
        "nodes": len(nodes),
        "deft_nodes": dict(Counter(node.op_type for node in nodes if node.domain == DOMAIN)),
        "gemms": [vars(node) for node in gemm_nodes(proto, batch, sizes, device, library)],
        "mlps": [vars(node) for node in mlp_nodes(proto, batch, sizes)],
        "convs": [vars(node) for node in conv_nodes(proto, batch, sizes, device, library)],
        "memcpy": None,
        "on_cpu": None,
        "cuda_graph": None,
        "cuda_graph_obstacle": None,
        "unknown": None,
    }
    try:
        content["cuda_graph_obstacle"] = cuda_graph_obstacle(path, proto, batch, sizes)
        content["cuda_graph"] = content["cuda_graph_obstacle"] is None
        if reason := cuda.obstacle():
            raise UnsupportedError(f"not known without a usable GPU: {reason}")
        content |= vars(placement(path, proto))
    except UnsupportedError as error:
        content["unknown"] = str(error)
    return content


def _provider(name: str) -> dict[str, Any]:
    """Whether an execution provider of this build can be used (None: not looked into), and why not."""
    if name == cuda.PROVIDER:
        return {"usable": cuda.obstacle() is None, "reason": cuda.obstacle()}
    return {"usable": True if name == "CPUExecutionProvider" else None, "reason": None}


def _library(device: Device | None) -> dict[str, Any]:
    try:
        path = get_library_path()
        manifest = read_manifest(path)
    except UnsupportedError as error:
        return {"path": None, "problem": str(error)}
    content = {
        "path": path,
        "version": manifest.version,
        "fingerprint": manifest.fingerprint,
        "kernels": {str(architecture): len(names) for architecture, names in sorted(manifest.kernels.items())},
        "bytes": Path(path).stat().st_size,
    }
    tuning = None if device is None else table_state(device, manifest)
    return content | {"tuning": tuning, "problem": _load_problem(path) or _mismatch(manifest, device)}


def _load_problem(path: str) -> str | None:
    try:
        onnxruntime.SessionOptions().register_custom_ops_library(path)
    except Exception as error:
        return f"ONNX Runtime cannot register it: {error}"
    return None


def _mismatch(manifest: Manifest, device: Device | None) -> str | None:
    if manifest.version != __version__:
        return f"it is of version {manifest.version}, the package of {__version__}: build it again"
    if device is not None and manifest.code_for(device.capability) is None:
        return (
            f"it has no machine code for compute capability {device.capability / 10}: DeftGemm fails on {device.name}"
        )
    return None
