"""What the build refuses to compile."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNEL = """extern "C" __global__ void sum(const float* x, float* y, int n) {
  float values[64];
  for (int i = 0; i < 64; ++i) values[i] = x[i];
  for (int i = 0; i < n; ++i) values[x[i] > 0 ? i % 64 : 0] += x[n - i];
  for (int i = 0; i < 64; ++i) y[i] = values[i];
}
"""


@pytest.fixture
def compile_cuda(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "custom_ops"))
    monkeypatch.delitem(sys.modules, "compile_cuda", raising=False)
    import compile_cuda

    try:
        compile_cuda.find_nvcc()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(compile_cuda, "KERNELS", tmp_path)
    return compile_cuda


def test_an_array_in_local_memory_is_refused(compile_cuda, tmp_path):
    (tmp_path / "sum.cu").write_text(KERNEL)
    with pytest.raises(RuntimeError, match=r"sum\.cu: kernels with arrays in local memory .*: sum \(256\)"):
        compile_cuda.compile_cached("sum.cu", "90a", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.cubin"))


def test_an_array_in_registers_is_compiled(compile_cuda, tmp_path):
    (tmp_path / "sum.cu").write_text(KERNEL.replace("x[i] > 0 ? i % 64 : 0", "7"))
    assert compile_cuda.compile_cached("sum.cu", "90a", tmp_path / "cache")[:4] == b"\x7fELF"
