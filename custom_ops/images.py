"""The tables of compiled kernels inside the library: machine code in assembler, its descriptions in C++."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ARCHITECTURES = (80, 90, 100, 120)  # compute capabilities; machine code of 80 also runs on 86 and 89
MANIFEST_MARK = "deftonnx-manifest:"
"""What the library's manifest begins with; deftonnx/runtime/manifest.py looks for it. A zero byte ends it."""
ONNX_TYPE = {"fp32": 1, "u8": 2, "fp16": 10, "u32": 12, "bf16": 16}


@dataclass(frozen=True)
class Image:
    """A compiled kernel: KernelImage of runtime/kernel_image.h."""

    name: str
    entry: str  # the function in the machine code
    architecture: int  # compute capability, 90 for 9.0
    code: bytes
    shared_bytes: int
    threads: int


@dataclass(frozen=True)
class Row:
    """An image and, as C++ expressions, the other fields of its family's struct."""

    image: Image
    fields: tuple[object, ...]


@dataclass(frozen=True)
class Table:
    """Where a family's rows go: `name`, an ImageTable<struct> that `header` declares."""

    header: str
    struct: str
    name: str


def element_type(name: str) -> str:
    """The C++ expression for a type of ONNX_TYPE."""
    return f"static_cast<ElementType>({ONNX_TYPE[name]})"


def write_tables(tables: Mapping[Table, Sequence[Row]], folder: Path, version: str) -> tuple[Path, Path]:
    """Write the machine code and the tables into `folder`; returns the files, in assembler and in C++."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(_manifest(tables, version)))
    # kernels of one source share their machine code
    codes = dict.fromkeys(row.image.code for rows in tables.values() for row in rows)
    index = {code: i for i, code in enumerate(codes)}
    path = folder / "tables.cpp"
    path.write_text(_tables_source(tables, index))
    return _write_code(index, folder), path


def _manifest(tables: Mapping[Table, Sequence[Row]], version: str) -> dict[str, object]:
    """What tools want to know of a library without loading it."""
    kernels: dict[str, list[str]] = {}
    for rows in tables.values():
        for row in rows:
            kernels.setdefault(str(row.image.architecture), []).append(row.image.name)
    return {"version": version, "fingerprint": _fingerprint(tables), "kernels": kernels}


def _fingerprint(tables: Mapping[Table, Sequence[Row]]) -> str:
    """Changes with the machine code of any kernel, and with what its time is estimated from."""
    digest = hashlib.sha256()
    for rows in tables.values():
        for row in rows:
            description = replace(row.image, code=b"")
            digest.update(repr((description, row.fields)).encode() + row.image.code)
    return digest.hexdigest()[:16]


def _write_code(index: Mapping[bytes, int], folder: Path) -> Path:
    assembly = ['.section .rodata, "a"', f'.ascii "{MANIFEST_MARK}"']
    assembly += [f'.incbin "{folder / "manifest.json"}"', ".byte 0"]
    for code, i in index.items():
        (folder / f"{i}.cubin").write_bytes(code)
        assembly += [".balign 64", f".hidden cubin_{i}", f".global cubin_{i}", f"cubin_{i}:"]
        assembly += [f'.incbin "{folder / f"{i}.cubin"}"']
    assembly.append('.section .note.GNU-stack, "", @progbits')
    path = folder / "cubins.S"
    path.write_text("\n".join(assembly) + "\n")
    return path


def _tables_source(tables: Mapping[Table, Sequence[Row]], index: Mapping[bytes, int]) -> str:
    """All in one file: most of what compiling one takes is its headers."""
    headers = "".join(f'#include "{header}"\n' for header in ("measured_times.h", *(table.header for table in tables)))
    declarations = "".join(f"extern const unsigned char cubin_{i}[];\n" for i in index.values())
    return (
        f'{headers}extern "C" {{\n{declarations}}}\n'
        f'const char* const deftonnx::kLibraryFingerprint = "{_fingerprint(tables)}";\n'
        f"namespace deftonnx {{\n{''.join(_table_source(table, rows, index) for table, rows in tables.items())}"
        "}  // namespace deftonnx\n"
    )


def _table_source(table: Table, rows: Sequence[Row], index: Mapping[bytes, int]) -> str:
    lines = "".join(f"    {_row_source(row, index[row.image.code])},\n" for row in rows)
    name = f"{table.name}Rows"
    array = f"static const {table.struct} {name}[] = {{\n{lines}}};\n" if rows else ""
    return f"{array}const ImageTable<{table.struct}> {table.name} = {{{name if rows else 'nullptr'}, {len(rows)}}};\n"


def _row_source(row: Row, code: int) -> str:
    image = row.image
    head = f'"{image.name}", "{image.entry}", {image.architecture}, cubin_{code}, {image.shared_bytes}, {image.threads}'
    return "{" + ", ".join([f"{{{head}}}", *map(str, row.fields)]) + "}"
