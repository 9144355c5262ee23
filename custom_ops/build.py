"""Builds libdeftonnx_ops.so: kernels → machine code → a table of them → one library.

    python custom_ops/build.py [--arch 90 ...] [--jobs 2] [--output PATH]

Needs Triton and a C++17 compiler (CXX, or c++), no GPU. Compiled kernels are kept by content in
custom_ops/build/cache, so that a second build takes seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from compile_triton import CompiledKernel, TensorBox, compile_cached  # noqa: E402
from variants import Variant, load_variants  # noqa: E402

BUILD = HERE / "build"
LIBRARY = HERE.parent / "deftonnx" / "runtime" / "libdeftonnx_ops.so"
_ONNX_TYPE = {"fp32": 1, "fp16": 10, "bf16": 16}
_OPERANDS = {"native": "kNative", "deft8": "kDeft8", "deft8_split": "kDeft8", "split": "kSplit"}
_LOADERS = {"tma": "kTma", "aligned": "kAligned", "element": "kElement"}
_SHARED_MEMORY = {80: 164, 90: 228, 100: 228, 120: 100}  # KiB a multiprocessor has
_RESERVED_SHARED_MEMORY = 1  # KiB a block costs beside its own
_MAX_BLOCKS_BY_REGISTERS = {4: 4, 8: 2}  # warps a block → blocks, at 128 registers a thread


def blocks_per_multiprocessor(variant: Variant, kernel: CompiledKernel) -> int:
    """An estimate of how many blocks run at once on a multiprocessor."""
    by_memory = _SHARED_MEMORY[variant.architecture] // (kernel.shared_bytes / 1024 + _RESERVED_SHARED_MEMORY)
    accumulator_registers = variant.tile[0] * variant.tile[1] // (32 * variant.warps)
    by_registers = (
        1 if accumulator_registers >= 128 and variant.warps == 8 else _MAX_BLOCKS_BY_REGISTERS[variant.warps]
    )
    return max(1, min(int(by_memory), by_registers))


def _box(box: TensorBox | None) -> str:
    values = (box.rows, box.columns, box.type, box.element_bytes, box.swizzle) if box else (0, 0, 0, 0, 0)
    return "{" + ", ".join(map(str, values)) + "}"


def _table_row(index: int, variant: Variant, kernel: CompiledKernel) -> str:
    x_box, w_box = kernel.boxes if kernel.boxes else (None, None)
    m, n, k = variant.tile
    return (
        f'    {{"{variant.name}", "{kernel.entry}", {variant.architecture}, cubin_{index}, '
        f"{kernel.shared_bytes}, {kernel.threads}, {_ONNX_TYPE[variant.x_type]}, Operands::{_OPERANDS[variant.operands]}, "
        f"{variant.terms}, Loader::{_LOADERS[variant.loader]}, {m}, {n}, {k}, {_box(x_box)}, {_box(w_box)}, "
        f"{variant.step_ns}, {variant.fixed_ns}, {blocks_per_multiprocessor(variant, kernel)}}},"
    )


def write_table(variants: list[Variant], kernels: list[CompiledKernel], folder: Path) -> tuple[Path, Path]:
    """Write the machine code as an assembler file and the table as C++; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    assembly = ['.section .rodata, "a"']
    for index, kernel in enumerate(kernels):
        path = folder / f"{index}.cubin"
        path.write_bytes(kernel.cubin)
        assembly += [".balign 64", f".hidden cubin_{index}", f".global cubin_{index}", f"cubin_{index}:"]
        assembly += [f'.incbin "{path}"']
    assembly.append('.section .note.GNU-stack, "", @progbits')
    code = folder / "kernel_images.S"
    code.write_text("\n".join(assembly) + "\n")
    rows = [_table_row(i, v, k) for i, (v, k) in enumerate(zip(variants, kernels, strict=True))]
    table = folder / "kernel_images.cpp"
    table.write_text(
        '#include "kernel_image.h"\n'
        'extern "C" {\n'
        + "".join(f"extern const unsigned char cubin_{i}[];\n" for i in range(len(rows)))
        + "}\nnamespace deftonnx {\nconst KernelImage kKernelImages[] = {\n"
        + "\n".join(rows)
        + f"\n}};\nconst size_t kKernelImageCount = {len(rows)};\n}}  // namespace deftonnx\n"
    )
    return code, table


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
    compile_one = partial(compile_cached, cache=BUILD / "cache")
    if jobs > 1:
        with ProcessPoolExecutor(jobs) as pool:
            kernels = list(pool.map(compile_one, variants))
    else:
        kernels = [compile_one(variant) for variant in variants]
    link(list(write_table(variants, kernels, BUILD / "table")), output)
    print(f"{output}: {len(kernels)} kernels, {output.stat().st_size / 2**20:.1f} MiB")


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", type=int, action="append", help="only this compute capability, as in 90")
    parser.add_argument("--jobs", type=int, default=1, help="kernels compiled at once")
    parser.add_argument("--output", type=Path, default=LIBRARY)
    arguments = parser.parse_args()
    build(arguments.arch, arguments.jobs, arguments.output)


if __name__ == "__main__":
    main()
