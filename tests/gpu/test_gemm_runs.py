"""What holds over many runs of DeftGemm: same bits, with and without CUDA graphs, in several threads and sessions."""

import threading

import numpy as np
import onnxruntime
import pytest
from gemm_cases import TOLERANCE
from gemm_model import gemm_model, ort_value, reference, to_array

from deftonnx.formats import pack_weight

CUDA = ["CUDAExecutionProvider"]
# rows of X, format, path: one of each kind of kernel
KINDS = [(1, "half", "auto"), (8, "deft8:3", "auto"), (100, "half", "auto"), (100, "deft8:3", "auto"),
         (100, "deft16", "auto"), (100, "deft16q", "auto"), (100, "deft16q", "simt"), (700, "half", "auto"),
         (8, "fp8", "auto"), (700, "fp8", "auto")]  # fmt: skip


def case(M, K, N, name):
    rng = np.random.default_rng(M + K + N)
    X = rng.standard_normal((M, K)).astype(np.float16)
    packed = pack_weight((rng.standard_normal((K, N)) * K**-0.5).astype(np.float32), name)
    return X, packed, rng.standard_normal(N).astype(np.float32)


def check(Y, expected):
    assert np.linalg.norm(Y.astype(np.float64) - expected) <= TOLERANCE[np.float16] * np.linalg.norm(expected)


class Bound:
    """A session whose input and output stay on the GPU."""

    def __init__(self, options, X, packed, bias, path, graph):
        model = gemm_model(X, packed, bias, activation="gelu", compute=path)
        providers = [("CUDAExecutionProvider", {"enable_cuda_graph": str(int(graph))})]
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
        self.binding = self.session.io_binding()
        self.x = onnxruntime.OrtValue.ortvalue_from_numpy(X, "cuda", 0)
        self.y = onnxruntime.OrtValue.ortvalue_from_shape_and_type([X.shape[0], packed.N], X.dtype, "cuda", 0)
        self.binding.bind_ortvalue_input("X", self.x)
        self.binding.bind_ortvalue_output("Y", self.y)

    def run(self):
        self.session.run_with_iobinding(self.binding)
        return self.y.numpy()


@pytest.mark.parametrize(("M", "name", "path"), KINDS)
def test_a_thousand_runs_are_identical_with_and_without_a_graph(options, M, name, path):
    X, packed, bias = case(M, 1024, 512, name)
    outputs = set()
    for graph in (False, True):
        bound = Bound(options, X, packed, bias, path, graph)
        outputs |= {bound.run().tobytes() for _ in range(500)}
    assert len(outputs) == 1
    check(bound.run(), reference(X, packed, bias, activation="gelu"))


def test_a_captured_graph_reads_new_input(options):
    X, packed, bias = case(100, 512, 256, "deft8:4")
    bound = Bound(options, X, packed, bias, "auto", graph=True)
    for factor in (1, 2, -3):
        bound.x.update_inplace(X * np.float16(factor))
        check(bound.run(), reference(X * np.float16(factor), packed, bias, activation="gelu"))


def chain(X, packed, bias, layers):
    """A model of `layers` layers of one weight that feed each other: ONNX Runtime gives them few buffers in turn."""
    model = gemm_model(X, packed, bias, activation="tanh")
    (node,) = model.graph.node
    del model.graph.node[:]
    for i in range(layers):
        layer = model.graph.node.add()
        layer.CopyFrom(node)
        layer.name = f"layer{i}"
        layer.input[0] = f"Y{i - 1}" if i else "X"
        layer.output[0] = f"Y{i}" if i + 1 < layers else "Y"
    return model


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(
    ("M", "K", "name"),
    [
        (1, 512, "half"),
        (1, 4096, "half"),
        (16, 256, "half"),
        (16, 2048, "deft8:4"),
        (16, 4096, "deft8:4"),
        (16, 4608, "deft8:4"),
        (16, 512, "fp8"),
        (300, 512, "fp8"),
    ],
)
def test_layers_that_start_early_wait_for_their_input(options, M, K, name, graph):
    """And copies into shared memory wait for who reads what was there: where not, it shows once in thousands of runs."""
    X, packed, bias = case(M, K, K, name)
    provider = ("CUDAExecutionProvider", {"enable_cuda_graph": str(int(graph))})
    model = chain(X, packed, bias, 24).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=[provider])
    binding = session.io_binding()
    binding.bind_ortvalue_input("X", onnxruntime.OrtValue.ortvalue_from_numpy(X, "cuda", 0))
    y = onnxruntime.OrtValue.ortvalue_from_shape_and_type(X.shape, X.dtype, "cuda", 0)
    binding.bind_ortvalue_output("Y", y)
    outputs = set()
    for _ in range(1000 if graph else 100):
        session.run_with_iobinding(binding)
        outputs.add(y.numpy().tobytes())
    assert len(outputs) == 1
    model = gemm_model(X, packed, bias, activation="tanh").SerializeToString()
    one = onnxruntime.InferenceSession(model, options, providers=CUDA)
    expected = X
    for _ in range(24):  # one at a time, so that nothing can start early
        (expected,) = one.run(["Y"], {"X": expected})
    assert np.array_equal(y.numpy(), expected)


def in_threads(count, work):
    """Run work(0) ... work(count - 1) at once; raises the first error."""
    errors = []

    def guarded(i):
        try:
            work(i)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def free_rows(model):
    """`model` with any number of rows."""
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "rows"
    return model.SerializeToString()


def test_threads_share_a_session(options):
    X, packed, bias = case(1, 512, 256, "deft8:4")
    session = onnxruntime.InferenceSession(free_rows(gemm_model(X, packed, bias)), options, providers=CUDA)

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(20):
            x = rng.standard_normal((int(rng.integers(1, 300)), 512)).astype(np.float16)
            (Y,) = session.run_with_ort_values(["Y"], {"X": ort_value(x)})
            check(to_array(Y), reference(x, packed, bias))

    in_threads(8, work)


def test_sessions_run_at_once(options):
    def work(i):
        M, name, path = KINDS[i]
        X, packed, bias = case(M, 512, 256, name)
        session = onnxruntime.InferenceSession(
            free_rows(gemm_model(X, packed, bias, compute=path)), options, providers=CUDA
        )
        for rows in (M, max(1, M // 2), M):
            (Y,) = session.run_with_ort_values(["Y"], {"X": ort_value(X[:rows])})
            check(to_array(Y), reference(X[:rows], packed, bias))

    in_threads(len(KINDS), work)
