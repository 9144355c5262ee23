"""Tensors of more than 2**31 elements: X, W and Y, each in turn, made and compared on the GPU."""

import numpy as np
import onnxruntime
import pytest
from gemm_cases import TOLERANCE
from gemm_model import gemm_model, reference

from deftonnx.formats import PackedWeight, pack_weight

torch = pytest.importorskip("torch")
CUDA = ["CUDAExecutionProvider"]


def weight(K, N, name):
    rng = np.random.default_rng(K + N)
    return pack_weight((rng.standard_normal((K, N)) * K**-0.5).astype(np.float32), name)


def run(session, X, N):
    """Y of the torch tensor X."""
    Y = torch.full((X.shape[0], N), float("nan"), dtype=torch.float16, device="cuda")
    binding = session.io_binding()
    binding.bind_input("X", "cuda", 0, np.float16, list(X.shape), X.data_ptr())
    binding.bind_output("Y", "cuda", 0, np.float16, list(Y.shape), Y.data_ptr())
    session.run_with_iobinding(binding)
    return Y


def check(Y, expected):
    expected = torch.from_numpy(expected).cuda()
    error = torch.linalg.norm(Y.double() - expected) / torch.linalg.norm(expected)
    assert float(error) <= TOLERANCE[np.float16]


@pytest.mark.parametrize("path", ["auto", "simt"])
@pytest.mark.parametrize(("K", "N"), [(2064, 16), (16, 2064), (2057, 3)])
@pytest.mark.parametrize("name", ["half", "deft8:4"])
def test_many_rows(options, name, K, N, path):
    M, pattern = 2**31 // max(K, N) + 1003, 997
    rows = np.random.default_rng(2).standard_normal((pattern, K)).astype(np.float16)
    packed, bias = weight(K, N, name), np.random.default_rng(3).standard_normal(N).astype(np.float32)
    model = gemm_model(np.zeros((M, 0), np.float16), packed, bias, features=K, compute=path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = K
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=CUDA)
    X = torch.from_numpy(rows).cuda().repeat(-(-M // pattern), 1)[:M].contiguous()
    assert max(M * K, M * N) > 2**31
    Y = run(session, X, N)
    expected = reference(rows, packed, bias)
    for start in (0, M // pattern // 2 * pattern, M // pattern * pattern):
        part = Y[start : start + pattern]
        check(part, expected[: part.shape[0]])
    assert not bool(torch.isnan(Y).any())


def test_a_large_weight(options):
    K, N, pattern = 32768, 2**16 + 48, 509
    few = weight(K, pattern, "deft8:4")
    codes = np.resize(few.codes, (N, K))
    stub = PackedWeight("deft8:4", codes[:, :1], np.resize(few.scale, N), K)
    model = gemm_model(np.zeros((1, K), np.float16), stub, np.zeros(N, np.float32))
    for tensor in (model.graph.input[0], model.graph.output[0]):
        tensor.type.tensor_type.shape.dim[0].dim_param = "rows"
    # more than a protobuf holds: the weight comes beside the model
    tensor = next(t for t in model.graph.initializer if t.name == "W")
    model.graph.initializer.remove(tensor)
    tensor.ClearField("raw_data")
    tensor.dims[1] = K
    tensor.data_location = tensor.EXTERNAL
    tensor.external_data.add(key="location", value="W.bin")
    model.graph.initializer.append(tensor)
    options.add_external_initializers(["W"], [onnxruntime.OrtValue.ortvalue_from_numpy(codes)])
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=CUDA)
    for M in (3, 40):
        X = np.random.default_rng(M).standard_normal((M, K)).astype(np.float16)
        expected = np.resize(reference(X, few, 0.0).T, (N, M)).T
        check(run(session, torch.from_numpy(X).cuda(), N), np.ascontiguousarray(expected))
