"""The GPU that is asked about: this machine's, or one that is known by name."""

from __future__ import annotations

from deftonnx.errors import UsageError
from deftonnx.runtime import cuda
from deftonnx.runtime.cuda import Device

GPUS = {
    "t4": Device("NVIDIA T4", 75, 40, 16 << 30),
    "a100": Device("NVIDIA A100", 80, 108, 80 << 30),
    "a10": Device("NVIDIA A10", 86, 72, 24 << 30),
    "l4": Device("NVIDIA L4", 89, 58, 24 << 30),
    "l40s": Device("NVIDIA L40S", 89, 142, 48 << 30),
    "h100": Device("NVIDIA H100 SXM", 90, 132, 80 << 30),
    "h200": Device("NVIDIA H200", 90, 132, 141 << 30),
    "b200": Device("NVIDIA B200", 100, 148, 180 << 30),
    "rtx4090": Device("NVIDIA GeForce RTX 4090", 89, 128, 24 << 30),
    "rtx5090": Device("NVIDIA GeForce RTX 5090", 120, 170, 32 << 30),
}
"""GPUs that can be asked about where they are not."""


def chosen_device(gpu: str | None) -> Device | None:
    """The GPU of that name in GPUS, or the first of this machine, or None."""
    return next(iter(cuda.devices()), None) if gpu is None else known_gpu(gpu)


def known_gpu(name: str) -> Device:
    """The GPU of that name in GPUS, in upper or lower case; raises UsageError if there is none."""
    if name.lower() not in GPUS:
        raise UsageError(f"--gpu {name} is not one of {', '.join(GPUS)}")
    return GPUS[name.lower()]
