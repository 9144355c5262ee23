"""Whether ONNX Runtime can use a GPU here, and the one sentence that says why not."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
from dataclasses import dataclass
from pathlib import Path

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


LIBRARIES = ("cudart", "cublas", "cublasLt", "cudnn", "cufft", "curand", "nvrtc")
"""What ONNX Runtime's CUDA provider loads, the last four only for some operators."""


def libraries() -> dict[str, str | None]:
    """Where each of LIBRARIES was loaded from, None for those that are not to be found."""
    preload()
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if line.count("/") > 1}
    found: dict[str, str | None] = dict.fromkeys(LIBRARIES)
    for path in sorted(paths):
        stem = Path(path).name.split(".so")[0].removeprefix("lib")
        if stem in found:
            found[stem] = path
    return found


@dataclass(frozen=True)
class Device:
    """One GPU."""

    name: str
    capability: int  # 90 for compute capability 9.0
    multiprocessors: int
    memory_bytes: int


@functools.cache
def devices() -> tuple[Device, ...]:
    """The GPUs that the driver shows to this process."""
    return tuple(_device(i) for i in range(device_count()))


def _device(index: int) -> Device:
    library = driver()
    assert library is not None
    handle, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    library.cuDeviceGet(ctypes.byref(handle), index)
    library.cuDeviceGetName(name, len(name), handle)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        library.cuDeviceGetAttribute(ctypes.byref(value), number, handle)
        return value.value

    # the driver's CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR and _MULTIPROCESSOR_COUNT
    capability = 10 * attribute(75) + attribute(76)
    return Device(name.value.decode(errors="replace"), capability, attribute(16), memory.value)


def free_memory(index: int = 0) -> int | None:
    """Bytes of a GPU's memory that nobody has allocated, None without a GPU."""
    library, context = driver(), ctypes.c_void_p()
    if library is None or library.cuDevicePrimaryCtxRetain(ctypes.byref(context), index) != 0:
        return None
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    library.cuCtxPushCurrent_v2(context)
    library.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    library.cuCtxPopCurrent_v2(ctypes.byref(context))
    library.cuDevicePrimaryCtxRelease_v2(index)
    return free.value


def driver_version() -> str | None:
    """The NVIDIA driver's version, as 580.95.05, or None without one."""
    try:
        management = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    text = ctypes.create_string_buffer(96)
    if management.nvmlInit_v2() != 0 or management.nvmlSystemGetDriverVersion(text, len(text)) != 0:
        return None
    return text.value.decode(errors="replace")


def cuda_version() -> str | None:
    """The newest CUDA that the driver runs, as 13.0, or None without one."""
    library, version = driver(), ctypes.c_int()
    if library is None or library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


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
