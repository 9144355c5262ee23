"""Compiles one Triton variant to machine code, without a GPU."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from families.tensor_core import Variant

KERNELS = Path(__file__).parent / "kernels"
_SOURCES = ("gemm_tensor_core.py", "decode.py", "epilogue.py")

# Triton numbers some element types of a tensor map otherwise than the driver does
_TO_DRIVER_TYPE = {8: 10, 9: 8, 10: 9}


@dataclass(frozen=True)
class TensorBox:
    """How a tensor map reads one operand, in the driver's enumerators."""

    rows: int
    columns: int
    type: int
    element_bytes: int
    swizzle: int


@dataclass(frozen=True)
class CompiledKernel:
    """Machine code and what a launch needs."""

    cubin: bytes
    entry: str
    shared_bytes: int
    threads: int
    boxes: tuple[TensorBox, ...]  # of x and w, if they are tensor maps


def cache_key(variant: Variant) -> str:
    """A digest of everything the machine code depends on."""
    options = {k: v for k, v in asdict(variant).items() if not k.endswith("_ns")}
    types, constants, multiples = variant.signature([])
    inputs = [options, types, constants, sorted(multiples), version("triton")]
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode())
    for name in (*_SOURCES, "../compile_triton.py"):
        digest.update((KERNELS / name).read_bytes())
    return digest.hexdigest()[:32]


def compile_cached(variant: Variant, cache: Path) -> CompiledKernel:
    """Return the compiled variant, from the folder `cache` if it is there."""
    entry = cache / cache_key(variant)
    code, record = entry.with_suffix(".cubin"), entry.with_suffix(".json")
    if not record.exists():
        kernel = _compile(variant)
        cache.mkdir(parents=True, exist_ok=True)
        code.write_bytes(kernel.cubin)
        # the record last, and at once, so that an interrupted build leaves no half entry
        pending = entry.with_suffix(f".{os.getpid()}")
        pending.write_text(json.dumps(asdict(kernel) | {"cubin": None}))
        pending.replace(record)
    fields: dict[str, Any] = json.loads(record.read_text())
    boxes = tuple(TensorBox(**box) for box in fields.pop("boxes"))
    return CompiledKernel(**fields | {"cubin": code.read_bytes(), "boxes": boxes})


def _compile(variant: Variant) -> CompiledKernel:
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"  # a third of the size
    sys.path.insert(0, str(KERNELS))
    import triton
    import triton.language as tl
    from gemm_tensor_core import gemm_tensor_core
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = gemm_tensor_core.arg_names
    types, constants, multiples = variant.signature(names)
    constants["COMPUTE"] = {"fp16": tl.float16, "bf16": tl.bfloat16, "fp32": tl.float32}[constants["COMPUTE"]]
    source = ASTSource(
        fn=gemm_tensor_core,
        signature=types,
        constexprs={(names.index(k),): v for k, v in constants.items()},
        attrs={(names.index(k),): [["tt.divisibility", 16]] for k in multiples},
    )
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", variant.architecture, 32), options=options)
    metadata = compiled.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        raise RuntimeError(f"{variant.name}: the launcher passes no scratch memory, but the kernel needs it")
    boxes = tuple(
        TensorBox(
            meta["block_size"][0],
            meta["block_size"][1],
            _TO_DRIVER_TYPE.get(meta["elem_type"], meta["elem_type"]),
            meta["elem_size"],
            meta["swizzle"],
        )
        for meta in metadata.tensordesc_meta or []
    )
    return CompiledKernel(compiled.asm["cubin"], metadata.name, metadata.shared, 32 * metadata.num_warps, boxes)
