"""The Triton kernels in Triton's interpreter, on the CPU: the same source as the GPU's, against the oracle.

The interpreter knows neither bfloat16 nor the inline assembly that unpacks deft8: those are tested on a GPU.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from gemm_model import reference

from deftonnx.formats import pack_weight

if find_spec("triton") is None:
    pytest.skip("Triton is not installed: 'make ops' gets it", allow_module_level=True)


class Memory:
    """As much of a torch.Tensor as the interpreter asks for: an address and a type. The array may be None: null."""

    def __init__(self, array):
        self.array, self.dtype = array, np.dtype(np.int32) if array is None else array.dtype

    def data_ptr(self):
        return 0 if self.array is None else self.array.ctypes.data

    def untyped_storage(self):
        return self

    def cpu(self):
        return self

    def copy_(self, other):
        pass  # the interpreter has written to the array itself

    def new_empty(self, size, device):
        return Memory(self.array)

    def set_(self, *view):
        pass

    def storage_offset(self):
        return 0

    def size(self):
        return () if self.array is None else self.array.shape

    def stride(self):
        return () if self.array is None else tuple(s // self.array.itemsize for s in self.array.strides)

    @property
    def shape(self):
        return self.size()


@pytest.fixture(scope="module")
def interpreter():
    """The kernel and what its arguments are made with, imported while Triton is told to interpret."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.syspath_prepend(Path(__file__).parents[2] / "custom_ops" / "kernels")
        import triton.language as tl
        from gemm_tensor_core import gemm_tensor_core
        from triton.runtime import interpreter as interpreting
        from triton.tools.tensor_descriptor import TensorDescriptor

        replace = interpreting._patch_lang_tensor

        def replace_for_newer_numpy(tensor, scope):
            replace(tensor, scope)
            # Triton 3.6 calls int() of an array of one element, which NumPy 2.4 no longer allows
            scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

        patch.setattr(interpreting, "_patch_lang_tensor", replace_for_newer_numpy)
        yield gemm_tensor_core, tl, TensorDescriptor


ACTIVATIONS = {  # curve, gated, slope, offset, low, high: see kernels/epilogue.py
    "none": (0, 0, 1.0, 0.0, -np.inf, np.inf),
    "relu": (0, 0, 1.0, 0.0, 0.0, np.inf),
    "silu": (1, 1, 1.0, 0.0, 1.0, 0.0),
    "gelu": (2, 1, 0.5, 0.0, 0.0, 0.0),
}


CODES = {"half": np.float16, "fp32": np.float32, "deft16q": np.uint32}


def run(interpreter, X, packed, bias, loader, tile, swap=False, kept=None, block=0, residual=None, activation="none",
        apart=False):  # fmt: skip
    """Y of the kernel, all of its tiles: as float16 where X and W are that, else as TF32, here float32."""
    kernel, tl, TensorDescriptor = interpreter
    (M, features), N, (block_m, block_n, block_k) = X.shape, packed.N, tile
    W = packed.codes.view(CODES[packed.format])
    wide = (X.dtype, W.dtype) != (np.float16, np.float16)
    padded_K = W.shape[1] * (2 if packed.format == "deft16q" else 1)
    Y = np.full((M, N), np.nan, X.dtype)
    x, w = Memory(X), Memory(W)
    if loader.startswith("tma"):
        x = TensorDescriptor(x, list(X.shape), [features, 1], [block_m, block_k])
        w = TensorDescriptor(w, list(W.shape), [W.shape[1], 1], [block_n, block_k])
    grid = (-(-M // block_m) * -(-N // block_n),)
    kernel[grid](
        x, w, Memory(packed.scale), Memory(bias), Memory(kept), Memory(residual), Memory(Y),
        M, N, packed.K, features, padded_K, block.bit_length() - 1, 0, 0, 1.0,
        *ACTIVATIONS[activation], {"float32": 0, "float16": 1}[X.dtype.name],
        LOADER=loader, TERMS=1, DECODE=False, COMPUTE=tl.float32 if wide else tl.float16,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, SWAP=swap, APART=wide or apart,
    )  # fmt: skip
    return Y


def case(M, K, N, features=None, name="half", dtype=np.float16):
    rng = np.random.default_rng(M * 10000 + K * 100 + N)
    X = rng.standard_normal((M, features or K)).astype(dtype)
    packed = pack_weight(rng.standard_normal((K, N)).astype(np.float32) / K**0.5, name)
    return X, packed, rng.standard_normal(N).astype(np.float32)


def check(Y, expected):
    tolerance = {np.float16: 5e-4, np.float32: 1e-6}[Y.dtype.type]
    assert np.linalg.norm(Y.astype(np.float64) - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("loader", "shape"),
    [
        ("tma", (20, 80, 48)),
        ("aligned", (33, 64, 32)),
        ("aligned_kept", (33, 64, 32)),
        ("element", (17, 37, 21)),
        ("element", (1, 1, 1)),
    ],
)
def test_loaders(interpreter, loader, shape, swap):
    X, packed, bias = case(*shape)
    Y = run(interpreter, X, packed, bias, loader, (16, 16, 32), swap)
    check(Y, reference(X, packed, bias))


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("loader", "name", "dtype"),
    [
        ("tma", "half", np.float32),
        ("aligned", "half", np.float32),
        ("aligned", "fp32", np.float32),
        ("element", "fp32", np.float32),
        ("aligned", "deft16q", np.float32),
        ("element", "deft16q", np.float32),
        ("element", "deft16q", np.float16),
    ],
)
def test_tf32(interpreter, loader, name, dtype, swap):
    X, packed, bias = case(20, *((61, 19) if loader == "element" else (64, 48)), name=name, dtype=dtype)
    check(run(interpreter, X, packed, bias, loader, (16, 16, 32), swap), reference(X, packed, bias))


def test_sums_apart(interpreter):
    X, packed, bias = case(20, 200, 48)
    check(run(interpreter, X, packed, bias, "element", (16, 16, 32), apart=True), reference(X, packed, bias))


@pytest.mark.parametrize("loader", ["aligned_kept", "element"])
def test_kept_blocks(interpreter, loader):
    X, packed, bias = case(18, 64, 32, features=128)
    kept = np.array([1, 3], np.int32)
    Y = run(interpreter, X, packed, bias, loader, (16, 16, 16), kept=kept, block=32)
    check(Y, reference(np.concatenate([X[:, 32:64], X[:, 96:]], axis=1), packed, bias))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue(interpreter, activation):
    X, packed, bias = case(19, 32, 20)
    residual = np.random.default_rng(0).standard_normal((19, 20)).astype(np.float16)
    Y = run(interpreter, X, packed, bias, "element", (16, 16, 32), residual=residual, activation=activation)
    check(Y, reference(X, packed, bias, activation=activation, residual=residual))
