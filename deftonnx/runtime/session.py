"""onnxruntime.InferenceSession for people who want the fastest session that their machine offers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import onnx
import onnxruntime

from deftonnx.errors import UnsupportedError
from deftonnx.runtime import cuda
from deftonnx.runtime.library import get_library_path
from deftonnx.runtime.manifest import read_manifest

_GPU_ALONE = "deftonnx.gpu_alone"
"""What tells the library that its kernels for the CPU are not needed."""

Providers = Sequence[str | tuple[str, dict[Any, Any]]]


class InferenceSession(onnxruntime.InferenceSession):
    """An ONNX Runtime session on the GPU, with the operator library, where there is one; else on the CPU.

    Takes what onnxruntime.InferenceSession takes. Providers that are given are used as they are. Without any, the
    session gets the CUDA provider if it can be used here, and the CPU. CUDA libraries of installed Python packages
    (torch, nvidia-*) are found. The operator library is registered in `sess_options` where the CUDA provider is
    asked for and can be used: on the CPU alone, ONNX Runtime's own operators are faster.
    """

    def __init__(
        self,
        path_or_bytes: str | bytes | os.PathLike[str] | onnx.ModelProto,
        sess_options: onnxruntime.SessionOptions | None = None,
        providers: Providers | None = None,
        provider_options: Sequence[dict[Any, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        options = sess_options if sess_options is not None else onnxruntime.SessionOptions()
        if providers is None and not _chooses_providers(options):
            providers = default_providers()
        if serves(providers or ()):
            device = _device_id(providers or (), provider_options)
            # options of the caller's may make other sessions too
            register_if_built(options, device, gpu_alone=sess_options is None)
        model = path_or_bytes.SerializeToString() if isinstance(path_or_bytes, onnx.ModelProto) else path_or_bytes
        super().__init__(model, options, providers, provider_options, **kwargs)


def default_providers() -> list[str]:
    """The CUDA provider if it can be used here, and the CPU."""
    gpu = [cuda.PROVIDER] if cuda.obstacle() is None else []
    return [*gpu, "CPUExecutionProvider"]


def serves(providers: Providers) -> bool:
    """Whether the library's kernels would run: the CUDA provider is among `providers` and can be used here."""
    names = [p if isinstance(p, str) else p[0] for p in providers]
    return cuda.PROVIDER in names and cuda.obstacle() is None


def register_if_built(options: onnxruntime.SessionOptions, device_id: int = 0, *, gpu_alone: bool = True) -> bool:
    """Register the library in `options` if this installation has it, with machine code for the GPU of that number.

    Returns whether it was. Without such code the function bodies run. gpu_alone: all sessions of these options use the
    CUDA provider; they are made sooner without the library's kernels for the CPU.
    """
    try:
        library = get_library_path()
        manifest = read_manifest(library)
    except UnsupportedError:
        return False
    devices = cuda.devices()
    if device_id < len(devices) and manifest.code_for(devices[device_id].capability) is None:
        return False
    if gpu_alone:
        options.add_session_config_entry(_GPU_ALONE, "1")
    options.register_custom_ops_library(library)
    return True


def _device_id(providers: Providers, provider_options: Sequence[dict[Any, Any]] | None) -> int:
    """The GPU that the CUDA provider is asked to use, 0 by default."""
    pairs = [(p, {}) if isinstance(p, str) else p for p in providers]
    choices = [own for name, own in pairs if name == cuda.PROVIDER]
    names = [name for name, _ in pairs]
    if provider_options and cuda.PROVIDER in names:
        choices.append(provider_options[names.index(cuda.PROVIDER)])
    return next((int(choice["device_id"]) for choice in choices if "device_id" in choice), 0)


def _chooses_providers(options: onnxruntime.SessionOptions) -> bool:
    """Whether `options` name execution providers themselves, which newer versions of ONNX Runtime allow."""
    return hasattr(options, "has_providers") and bool(options.has_providers())
