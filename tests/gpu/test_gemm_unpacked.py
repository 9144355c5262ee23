"""8-bit weights that are kept a second time, unpacked: by kernel name, and where the choice keeps such copies."""

import contextlib
import ctypes
import gc
import os
import threading

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from gemm_model import gemm_model, ort_value, reference
from test_gemm import CUDA, case, check, check_every_code, check_kernel, gpu_capability

from deftonnx.runtime import cuda

X_TYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
TILES = {
    "128x256": (128, 256), "128x192_turns": (128, 192), "128x128_turns": (128, 128), "128x64_split2": (128, 64),
    "64x128": (64, 128), "64x64": (64, 64), "64x64_split4": (64, 64),
}  # fmt: skip


@pytest.fixture(autouse=True)
def hopper(options):
    if gpu_capability() != (9, 0):
        pytest.skip("these kernels are for compute capability 9.0 alone")


def name_of(prefix, tile):
    return f"{prefix}_{prefix}_hopper_{tile}_unpacked"


def run(options, tile, shape, prefix="fp16", exponent_bits=4, features=None, index=None, **attributes):
    """Run one node by the kernel of that tile and compare."""
    operands = X_TYPES[prefix], f"deft8:{exponent_bits}"
    check_kernel(options, name_of(prefix, tile), shape, *operands, features, index, **attributes)


@pytest.mark.parametrize("prefix", X_TYPES)
@pytest.mark.parametrize("exponent_bits", range(1, 8))
def test_every_code(options, exponent_bits, prefix):
    check_every_code(options, name_of(prefix, "64x64"), exponent_bits, X_TYPES[prefix])


@pytest.mark.parametrize("prefix", X_TYPES)
@pytest.mark.parametrize("tile", TILES)
def test_every_format_and_edge_of_tiles(options, tile, prefix):
    rows, columns = TILES[tile]
    shapes = [(1, 1000, 1), (rows + 1, 1032, columns + 8), (rows - 1, 648, 2 * columns - 3), (2 * rows, 512, columns)]
    for exponent_bits, shape in enumerate(shapes, start=1 if prefix == "fp16" else 4):
        run(options, tile, shape, prefix, exponent_bits, activation="relu")


@pytest.mark.parametrize("activation", ["none", "clip", "gelu", "silu"])
def test_epilogues(options, activation):
    epilogue = {"activation": activation, "alpha": -0.2, "beta": 0.5}
    for output in (np.float16, np.float32, ml_dtypes.bfloat16):
        run(options, "64x128", (150, 200, 168), output_dtype=output, **epilogue)
    run(options, "128x128_turns", (150, 200, 168), "bf16", 7, with_residual=True, **epilogue)


@pytest.mark.parametrize("block", [8, 16, 32, 64, 256])
@pytest.mark.parametrize("tile", ["128x128_turns", "64x64_split2"])
def test_kept_blocks(options, tile, block):
    for prefix, exponent_bits, features, M in (("bf16", 6, 1000, 70), ("fp16", 7, 2056, 131)):
        blocks = -(-features // block)
        kept = np.sort(np.random.default_rng(block).permutation(blocks)[: max(1, blocks // 2)])
        index = np.concatenate([np.arange(b * block, min(b * block + block, features)) for b in kept])
        tiles = [tile] if block >= 64 else [tile, f"{tile}_gathered"]
        for name in tiles:
            if "gathered" in name or index.size > 64 or "split" not in name:
                elimination = {"block": block, "kept": kept.tolist()}
                run(options, name, (M, index.size, 528), prefix, exponent_bits, features, index, **elimination)


def session_of(options, compute="auto", shape=(64, 1024, 1024)):
    """A session of one node with X of any number of rows, and its operands."""
    X, packed, bias = case(shape, "deft8:3", np.float16)
    model = gemm_model(X, packed, bias, compute=compute)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "rows"
    return onnxruntime.InferenceSession(model.SerializeToString(), options, list(CUDA)), X, packed, bias


@pytest.mark.parametrize("compute", ["auto", "packed"])
def test_any_number_of_rows_in_one_session(options, compute):
    session, X, packed, bias = session_of(options, compute)
    for rows in (1, 32, 33, 64, 700, 1, 64):
        some = np.resize(X, (rows, X.shape[1]))
        check(session.run(None, {"X": some})[0], reference(some, packed, bias), np.float16)


def test_a_copy_lives_as_long_as_a_session_that_needs_it(options):
    for name in ("auto", "packed", "auto"):
        session, X, packed, bias = session_of(options, name)
        again, *_ = session_of(options, name)
        expected = reference(X, packed, bias)
        first = session.run(None, {"X": X})[0]
        check(first, expected, np.float16)
        del session
        gc.collect()
        assert np.array_equal(again.run(None, {"X": X})[0], first)


EXACT = [("CUDAExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})]  # holds what it is asked for


class ProcessInfo(ctypes.Structure):
    """NVML's nvmlProcessInfo_t."""

    _fields_ = [
        ("pid", ctypes.c_uint), ("bytes", ctypes.c_ulonglong), ("instance", ctypes.c_uint), ("part", ctypes.c_uint),
    ]  # fmt: skip


def held_bytes():
    """Device memory of this process, whatever others on the GPU do."""
    gc.collect()
    management, device = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
    found, count = (ProcessInfo * 256)(), ctypes.c_uint(256)
    management.nvmlInit_v2()
    management.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device))
    management.nvmlDeviceGetComputeRunningProcesses_v3(device, ctypes.byref(count), found)
    held = next((process.bytes for process in found[: count.value] if process.pid == os.getpid()), None)
    if held is None:
        pytest.skip("the driver does not tell this process's memory")
    return held


def test_a_session_dropped_by_another_thread_frees_its_copies(options):
    """A thread without a CUDA context."""
    X, packed, bias = case((64, 2048, 4096), "deft8:3", np.float16)
    model = gemm_model(X, packed, bias, compute=name_of("fp16", "64x64")).SerializeToString()
    count, left = 9, []
    for _ in range(2):  # at first, what ONNX Runtime keeps of so many sessions stays behind
        sessions = [onnxruntime.InferenceSession(model, options, EXACT) for _ in range(count)]
        for session in sessions:
            session.run(None, {"X": X})
        del session
        thread = threading.Thread(target=sessions.clear)
        thread.start()
        thread.join()
        left.append(held_bytes())
    assert left[1] - left[0] < count * 2 * packed.codes.size / 2


def test_nodes_share_what_is_made_of_their_weight(options):
    """Two nodes of one weight hold as much as one: W written anew as deft8:5, and in 16 bits."""
    X, packed, bias = case((64, 2048, 4096), "deft8:7", np.float16)
    model = gemm_model(X, packed, bias, compute=name_of("fp16", "64x64"))

    def held_by_session():
        before = held_bytes()
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, EXACT)
        session.run(None, {"X": X})
        return held_bytes() - before

    held_by_session()  # with what a process loads once
    one = held_by_session()
    for repeated in (model.graph.node, model.graph.output):
        repeated.add().CopyFrom(repeated[0])
    model.graph.node[1].name = model.graph.node[1].output[0] = model.graph.output[1].name = "again"
    assert held_by_session() < one + packed.codes.size


@contextlib.contextmanager
def little_memory():
    """Leave less than half of the GPU's memory free."""
    driver, context, filler = cuda.driver(), ctypes.c_void_p(), ctypes.c_uint64()
    spare = cuda.free_memory() - cuda.devices()[0].memory_bytes * 45 // 100
    driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
    driver.cuCtxPushCurrent_v2(context)
    if spare > 0:
        assert driver.cuMemAlloc_v2(ctypes.byref(filler), ctypes.c_size_t(spare)) == 0
    try:
        yield
    finally:
        driver.cuMemFree_v2(filler)
        driver.cuCtxPopCurrent_v2(ctypes.byref(context))
        driver.cuDevicePrimaryCtxRelease_v2(0)


def test_no_copy_where_memory_is_scarce(options):
    X, packed, bias = case((64, 2048, 4096), "deft8:3", np.float16)

    def held_by_session(compute):
        before = held_bytes()
        model = gemm_model(X, packed, bias, compute=compute)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, EXACT)
        session.run(None, {"X": X})
        return held_bytes() - before

    held_by_session("auto")  # with what a process loads once
    without = held_by_session("packed")
    with little_memory():
        assert held_by_session("auto") < without + packed.codes.size


@pytest.mark.parametrize("tile", ["128x64_split2", "64x64_split4"])
def test_repeated_runs_are_equal(options, tile):
    X, packed, bias = case((128, 2048, 1000), "deft8:6", np.float16)
    model = gemm_model(X, packed, bias, compute=name_of("fp16", tile), activation="silu")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, list(CUDA))
    binding = session.io_binding()
    binding.bind_ortvalue_input("X", ort_value(X))
    first = None
    for _ in range(50):
        binding.bind_output("Y", "cuda")
        session.run_with_iobinding(binding)
        Y = binding.get_outputs()[0].numpy()
        first = Y if first is None else first
        assert np.array_equal(Y, first)
