"""Builds libdeftonnx_ops.so: kernels → machine code → a table of them → one library.

    python custom_ops/build.py [--arch 90 ...] [--jobs 2] [--output PATH]

Needs Triton, nvcc (NVCC, or the package nvidia-cuda-nvcc) and a C++17 compiler (CXX, or c++), but no GPU.
Compiled kernels are kept by content in custom_ops/build/cache, so that a second build takes seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import compile_cuda  # noqa: E402
import compile_triton  # noqa: E402
from compile_triton import CompiledKernel, TensorBox  # noqa: E402
from variants import SmallM, Variant, load_variants, small_m_kernels  # noqa: E402

BUILD = HERE / "build"
LIBRARY = HERE.parent / "deftonnx" / "runtime" / "libdeftonnx_ops.so"
_ONNX_TYPE = {"fp32": 1, "fp16": 10, "bf16": 16}
_OPERANDS = {"native": "kNative", "deft8": "kDeft8", "deft8_split": "kDeft8", "split": "kSplit"}
_LOADERS = {
    "tma": "kTma",
    "tma_kept": "kTmaKept",
    "aligned": "kAligned",
    "aligned_kept": "kAlignedKept",
    "element": "kElement",
}
_SHARED_MEMORY = {80: 164, 90: 228, 100: 228, 120: 100}  # KiB a multiprocessor has
_RESERVED_SHARED_MEMORY = 1  # KiB a block costs beside its own
_REGISTERS = 65536  # of a multiprocessor
_OTHER_REGISTERS = 64  # of a thread, beside its accumulators


def blocks_per_multiprocessor(variant: Variant, kernel: CompiledKernel) -> int:
    """An estimate of how many blocks run at once on a multiprocessor."""
    by_memory = _SHARED_MEMORY[variant.architecture] // (kernel.shared_bytes / 1024 + _RESERVED_SHARED_MEMORY)
    threads = 32 * variant.warps
    registers = variant.tile[0] * variant.tile[1] // threads + _OTHER_REGISTERS
    by_registers = _REGISTERS // (threads * min(registers, 255))
    return max(1, min(int(by_memory), by_registers))


@dataclass(frozen=True)
class Row:
    """One row of the kernel table: the fields of KernelImage in runtime/kernel_image.h, but for the code."""

    code: bytes
    fields: tuple[str, ...]  # name, entry, architecture
    rest: tuple[object, ...]


def _box(box: TensorBox | None) -> str:
    values = (box.rows, box.columns, box.type, box.element_bytes, box.swizzle) if box else (0, 0, 0, 0, 0)
    return "{" + ", ".join(map(str, values)) + "}"


def _head(kernel: Variant | SmallM, entry: str) -> tuple[str, ...]:
    return f'"{kernel.name}"', f'"{entry}"', str(kernel.architecture)


def triton_row(variant: Variant, kernel: CompiledKernel) -> Row:
    """The row of a Triton kernel."""
    x_box, w_box = kernel.boxes if kernel.boxes else (None, None)
    rest = (
        kernel.shared_bytes,
        kernel.threads,
        _ONNX_TYPE[variant.x_type],
        f"Operands::{_OPERANDS[variant.operands]}",
        variant.terms,
        f"Loader::{_LOADERS[variant.loader]}",
        *variant.tile,
        _box(x_box),
        _box(w_box),
        variant.step_ns,
        variant.fixed_ns,
        blocks_per_multiprocessor(variant, kernel),
    )
    return Row(kernel.cubin, _head(variant, kernel.entry), rest)


def small_m_row(kernel: SmallM, code: bytes) -> Row:
    """The row of a kernel for few rows, which has no tuned times."""
    rest = (
        kernel.shared_bytes,
        256,
        _ONNX_TYPE[kernel.x_type],
        "Operands::kDeft8" if kernel.w_type == "u8" else "Operands::kNative",
        kernel.terms,
        "Loader::kSmallMCluster" if kernel.cluster else "Loader::kSmallM",
        *(8 * kernel.m_tiles, 16 * kernel.row_tiles, kernel.step),
        *(_box(None), _box(None), 0, 0, 1),
    )
    return Row(code, _head(kernel, kernel.entry), rest)


def write_table(rows: list[Row], folder: Path) -> tuple[Path, Path]:
    """Write the machine code as an assembler file and the table as C++; returns both paths.

    Rows of the same code share it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = {code: i for i, code in enumerate(dict.fromkeys(row.code for row in rows))}
    assembly = ['.section .rodata, "a"']
    for code, i in index.items():
        (folder / f"{i}.cubin").write_bytes(code)
        assembly += [".balign 64", f".hidden cubin_{i}", f".global cubin_{i}", f"cubin_{i}:"]
        assembly += [f'.incbin "{folder / f"{i}.cubin"}"']
    assembly.append('.section .note.GNU-stack, "", @progbits')
    code_file = folder / "kernel_images.S"
    code_file.write_text("\n".join(assembly) + "\n")
    lines = [", ".join([*row.fields, f"cubin_{index[row.code]}", *map(str, row.rest)]) for row in rows]
    table = folder / "kernel_images.cpp"
    table.write_text(
        '#include "kernel_image.h"\n'
        'extern "C" {\n'
        + "".join(f"extern const unsigned char cubin_{i}[];\n" for i in index.values())
        + "}\nnamespace deftonnx {\nconst KernelImage kKernelImages[] = {\n"
        + "".join(f"    {{{line}}},\n" for line in lines)
        + f"}};\nconst size_t kKernelImageCount = {len(rows)};\n}}  // namespace deftonnx\n"
    )
    return code_file, table


def link(sources: list[Path], output: Path) -> None:
    """Compile the C++ runtime with the kernel table and link the library. Raises CalledProcessError."""
    runtime = HERE / "runtime"
    pending = output.with_suffix(f".{os.getpid()}")
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *(os.environ.get("CXX", "c++"), "-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra"),
        *("-fvisibility=hidden", f"-Wl,--version-script={runtime / 'exports.map'}", "-Wl,-z,defs"),
        *("-static-libstdc++", "-static-libgcc", f"-I{runtime}", "-o", str(pending)),
        *map(str, [*sorted(runtime.glob("*.cpp")), *sources]),
        "-ldl",
        "-lpthread",
    ]
    subprocess.run(command, check=True)
    pending.replace(output)


def build(architectures: list[int] | None, jobs: int, output: Path) -> None:
    """Compile what the cache lacks and link the library at `output`."""
    variants = load_variants(architectures)
    cache = BUILD / "cache"
    compile_one = partial(compile_triton.compile_cached, cache=cache)
    if jobs > 1:
        with ProcessPoolExecutor(jobs) as pool:
            kernels = list(pool.map(compile_one, variants))
    else:
        kernels = [compile_one(variant) for variant in variants]
    rows = [triton_row(v, k) for v, k in zip(variants, kernels, strict=True)]
    for kernel in small_m_kernels(architectures):
        code = compile_cuda.compile_cached(kernel.source, kernel.architecture, cache)
        rows.append(small_m_row(kernel, code))
    link(list(write_table(rows, BUILD / "table")), output)
    print(f"{output}: {len(rows)} kernels, {output.stat().st_size / 2**20:.1f} MiB")


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, action="append", help="only this compute capability, as in 90")
    parser.add_argument("--jobs", type=int, default=1, help="kernels compiled at once")
    parser.add_argument("--output", type=Path, default=LIBRARY)
    arguments = parser.parse_args()
    build(arguments.arch, arguments.jobs, arguments.output)


if __name__ == "__main__":
    main()
