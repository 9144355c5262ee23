"""A reduced set of cases under compute-sanitizer: out-of-bounds accesses and races in shared memory.

    python tests/gpu/sanitize.py [memcheck|racecheck|synccheck|initcheck ...]

The set: two rows of the covering array of DeftGemm for every operand and path, every kernel of DeftGemm that is made
for few rows or for Hopper by its name (with all features and with kept blocks), one for each type of X that multiplies
8-bit weights in 16 bits, and the float16 kernels of DeftConv, DeftAttention and DeftMlp. Those for other architectures
than this GPU's are not in it. Processes, one for every two cores, share the set out, and all tools run at one time.
Exits 1 if a tool finds anything or a result is wrong.

What racecheck can see: it follows ordinary accesses to shared memory, and barriers by the threads that arrive. So a
warp whose ordinary accesses an mbarrier orders lets all its lanes arrive; one lane after __syncwarp() would order them
too, but is reported. What the copy engine and wgmma read and write it does not see: the order of those is in the tests
of repeated runs instead.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

with contextlib.suppress(ImportError):
    import torch  # noqa: F401  (its CUDA libraries must be in the process before onnxruntime's)

import ml_dtypes
import numpy as np
import onnxruntime
from attention_model import case as attention_case
from attention_model import run as run_attention
from conv_model import conv_case, conv_model
from conv_model import reference as conv_reference
from gemm_cases import TOLERANCE, Case, covering_rows, failure, make_case, run_cases
from gemm_model import ONNX_TYPE, run_gemm
from mlp_model import Chain, run_mlp

from deftonnx import runtime
from deftonnx.errors import UnsupportedError
from deftonnx.formats import get_format, pack_weight
from deftonnx.formats.conv_function import Window
from deftonnx.formats.gemm_function import gemm_node
from deftonnx.runtime.cuda import devices
from deftonnx.runtime.kernel_choice import kernels_for
from deftonnx.runtime.manifest import read_manifest

PARTS = max(1, len(os.sched_getaffinity(0)) // 2)
CHUNK = 16  # cases of a session
CUDA = "CUDAExecutionProvider"
# how the names of DeftGemm's kernels begin → the type of X, and the formats of W for kernels of one name in turn
GEMM_OPERANDS = {
    "fp16_fp16": (np.float16, ["half"]),
    "bf16_bf16": (ml_dtypes.bfloat16, ["deft16"]),
    "fp16_u8": (np.float16, ["deft8:3", "deft8:4", "deft8:7"]),
    "bf16_u8": (ml_dtypes.bfloat16, ["deft8:3"]),
}
UNPACKED = ("fp16_fp16_hopper_64x64_unpacked", "bf16_bf16_hopper_64x64_unpacked")
SAME = Window.of((3, 3), pads=(1, 1, 1, 1))
# image, channels and outputs of convolutions: of kernels for many channels, and of those for few
CONV_MANY, CONV_FEW = ((9, 7), 64, 136), ((29, 50), 3, 72)


def reduced_rows():
    """Two rows of the covering array for every operand and path: small, but of every kind of tail."""
    chosen, counts = [], {}
    for row in covering_rows():
        small = row["features"] in ("odd", "sixteens") and row["rows"] in ("few", "some")
        if small and counts.get(row["operands"], 0) < 2:
            counts[row["operands"]] = counts.get(row["operands"], 0) + 1
            chosen.append(row)
    return chosen


def kernel_names():
    """The kernels that the library has for this GPU."""
    manifest = read_manifest(Path(runtime.get_library_path()))
    code = manifest.code_for(devices()[0].capability)
    return manifest.kernels[code] if code else []


def serves(case):
    """Whether the kernel that the case names takes such a node."""
    x_type, y_type = ONNX_TYPE[case.X.dtype], ONNX_TYPE[np.dtype(case.output_type)]
    options = {"features": case.X.shape[-1], "block": case.row["block"], "output_type": y_type}
    node = gemm_node(["X", "W", "scale", "bias"], "Y", case.packed, name="layer", compute=case.compute, **options)
    w_type = get_format(case.packed.format).onnx_type
    try:
        return bool(kernels_for(node, x_type, w_type, [len(case.X)], devices()[0], runtime.get_library_path()))
    except UnsupportedError:
        return False


def named_case(kernel, block, turn):
    """A case for the DeftGemm kernel of that name, or None if it is not one of those meant; `turn`: among its like."""
    match = re.match(r"([^_]+_[^_]+)_(?:stream_(\d+)|hopper)", kernel)
    if not match or match[1] not in GEMM_OPERANDS:
        return None
    dtype, formats = GEMM_OPERANDS[match[1]]
    name = "deft8:4" if kernel in UNPACKED else formats[turn % len(formats)]
    # of few rows, K that one block multiplies, and K that blocks of a cluster share
    M, K, N = (int(match[2]) - 1, 1040 if block else 4112, 296) if match[2] else (150, 520, 296)
    features = 2 * K if block else K
    kept = list(range(0, features // block, 2)) if block else None
    index = (np.array(kept)[:, None] * block + np.arange(block)).ravel() if block else np.arange(K)
    rng = np.random.default_rng(len(kernel))
    row = {"output": dtype, "activation": "gelu", "block": block}
    weight = (rng.standard_normal((K, N)) * K**-0.5).astype(np.float32)
    X = rng.standard_normal((M, features)).astype(dtype)
    return Case(row, kernel, X, kept, index, pack_weight(weight, name), rng.standard_normal(N).astype(np.float32), None)


def gemm_cases():
    """All cases of DeftGemm."""
    cases = [make_case(row, seed) for seed, row in enumerate(reduced_rows())]
    for block in (0, 8):
        kernels = [*kernel_names(), *UNPACKED]
        named = [named_case(kernel, block, kernels[:i].count(kernel)) for i, kernel in enumerate(kernels)]
        cases += [case for case in named if case and serves(case)]
    return cases


def conv_failure(kernel, block, options):
    """What is wrong with a convolution by that kernel, or None; a kernel may refuse it."""
    few = "few_channels" in kernel
    how = {"block": min(block, 1) if few else block, "activation": "relu"}
    if kernel.endswith("_pooled"):
        kernel, how = kernel.removesuffix("_pooled"), how | {"pool": (2, 2)}
    shape = CONV_FEW if few else CONV_MANY
    X, packed, bias, kept = conv_case(1, *shape, SAME, "deft8:4", np.float16, batch=3, block=how["block"])
    model = conv_model(X, packed, bias, SAME, compute=kernel, kept=kept, **how)
    try:
        Y = run_gemm(model, X, None, options, (CUDA,)).astype(np.float64)
    except Exception as error:  # ONNX Runtime's own errors have no common class
        if "no kernel" in str(error):
            return None
        raise
    expected = conv_reference(X, packed, bias, SAME, kept=kept, **how)
    error = np.linalg.norm(Y - expected) / np.linalg.norm(expected)
    return None if error <= TOLERANCE[np.float16] else f"{kernel}, block {block}: error {error:.3g}"


def attention_failure(kernel, options):
    """What is wrong with an attention by that kernel, or None."""
    size = int(kernel.replace("hopper_", "").split("_")[2])
    kind = (2, True, "positions")
    inputs, model, expected = attention_case((2, 149, 2, size), "rows", np.float16, compute=kernel, kind=kind)
    Y = run_attention(model, inputs, options, (CUDA,)).astype(np.float64)
    error = np.linalg.norm(Y - expected) / np.linalg.norm(expected)
    return None if error <= 2 * TOLERANCE[np.float16] else f"{kernel}: error {error:.3g}"


def mlp_failure(kernel, options):
    """What is wrong with a chain of layers by that kernel, or None; float32 X is rounded."""
    chain = Chain((40, 100, 36, 70, 9), np.float16, x_type=np.float32, compute=kernel)
    X = chain.rows(130)
    error = chain.error(run_mlp(chain.session(options), X), X)
    return None if error <= 1 else f"{kernel}: error of {error:.3g} tolerances"


def run(part):
    """Run a part of the set in this process; returns what is wrong."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    runtime.register(options)
    cases = gemm_cases()[part::PARTS]
    failures = []
    for first in range(0, len(cases), CHUNK):
        chunk = cases[first : first + CHUNK]
        outputs = run_cases(chunk, options, CUDA)
        failures += [f for case, Y in zip(chunk, outputs, strict=True) if (f := failure(case, Y))]
    kernels = [k for k in kernel_names() if re.match(r"fp16_(hopper|direct|few_channels)", k)]
    convs = [(kernel, block) for kernel in kernels for block in (0, 16)][part::PARTS]
    failures += [f for conv in convs if (f := conv_failure(*conv, options))]
    attentions = [kernel for kernel in kernel_names() if kernel.startswith("attention_fp16")][part::PARTS]
    failures += [f for kernel in attentions if (f := attention_failure(kernel, options))]
    chains = [*(kernel for kernel in kernel_names() if re.fullmatch(r"fp16_mlp_\d+", kernel)), "layers"][part::PARTS]
    failures += [f for kernel in chains if (f := mlp_failure(kernel, options))]
    counts = {"Gemm": cases, "Conv": convs, "Attention": attentions, "Mlp": chains}
    print(", ".join(f"{len(set_)} cases of Deft{name}" for name, set_ in counts.items()), flush=True)
    return failures


def start(sanitizer, tool, part, output):
    """Start a part of the set under a tool."""
    command = [sanitizer, "--tool", tool, "--error-exitcode", "1", sys.executable, __file__, "--inside", str(part)]
    return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)


def main():
    """Run the set under the tools that are asked for."""
    if "--inside" in sys.argv:
        sys.exit("\n".join(run(int(sys.argv[-1]))) or 0)
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        sys.exit("compute-sanitizer is not on the path; it comes with CUDA")
    found = False
    with contextlib.ExitStack() as stack:
        running = []
        for tool in sys.argv[1:] or ("memcheck", "racecheck"):
            for part in range(PARTS):
                output = stack.enter_context(tempfile.TemporaryFile("w+"))
                running.append((tool, part, output, start(sanitizer, tool, part, output)))
        for tool, part, output, process in running:
            found |= process.wait() != 0
            output.seek(0)
            print(f"{tool}, part {part}\n{output.read()}", flush=True)
    sys.exit(int(found))


if __name__ == "__main__":
    main()
