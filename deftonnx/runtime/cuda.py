"""Whether ONNX Runtime can use a GPU here, and the one sentence that says why not."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io

import onnxruntime

PROVIDER = "CUDAExecutionProvider"


@functools.cache
def preload() -> str:
    """Load the CUDA and cuDNN libraries of installed Python packages; returns what was said about missing ones."""
    said = io.StringIO()
    if hasattr(onnxruntime, "preload_dlls"):  # only builds with CUDA have it
        with contextlib.redirect_stdout(said):
            onnxruntime.preload_dlls()
    return said.getvalue()


def driver() -> ctypes.CDLL | None:
    """The initialised CUDA driver, or None if there is no usable one."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return library if library.cuInit(0) == 0 else None


def device_count() -> int:
    """GPUs that the driver shows to this process."""
    library, count = driver(), ctypes.c_int(0)
    if library is None or library.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


@functools.cache
def obstacle() -> str | None:
    """Return why ONNX Runtime's CUDA provider cannot be used here, or None if it can.

    Loads the provider, but only where there is a GPU.
    """
    if PROVIDER not in onnxruntime.get_available_providers():
        return f"this build of ONNX Runtime ({onnxruntime.__version__}) has no CUDA provider: install onnxruntime-gpu"
    if driver() is None:
        return "no NVIDIA driver, or no GPU that it can use"
    if device_count() == 0:
        return "the NVIDIA driver shows no GPU (CUDA_VISIBLE_DEVICES?)"
    missing = preload()
    try:
        onnxruntime.OrtValue.ortvalue_from_shape_and_type([1], "float32", "cuda", 0)
    except Exception as error:  # ONNX Runtime's own errors have no common class
        reason = missing.strip().splitlines()[0] if missing.strip() else str(error).strip().splitlines()[-1]
        return f"ONNX Runtime's CUDA provider does not load: {reason}"
    return None
