"""DeftMlp on the GPU against float64 arithmetic of its layers, each rounded as the next one reads it."""

import numpy as np
import onnxruntime
import pytest
from mlp_model import MLP_TYPES, Chain, run_mlp

from deftonnx.runtime.bench import device_value

WIDTHS = [(13, 70, 33, 7), (400, 120, 84, 10), (1024, 256, 10), (256, 256, 256, 256), (64, 512, 512, 512, 1), (1, 1, 1)]


@pytest.mark.parametrize("dtype", MLP_TYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_chains(options, widths, dtype):
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    chain = Chain(widths, dtype)
    session = chain.session(options)
    for M in (1, 3, 16, 17, 64, 300, 1500):
        X = chain.rows(M)
        assert chain.error(run_mlp(session, X), X) <= 1


@pytest.mark.parametrize("rows", [16, 32])
@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_every_kernel(options, name, rows):
    dtype = MLP_TYPES[name == "bf16"]
    chain = Chain((40, 100, 36, 9), dtype, compute=f"{name}_mlp_{rows}")
    session = chain.session(options)
    for M in (1, rows, 5 * rows + 3):
        X = chain.rows(M)
        assert chain.error(run_mlp(session, X), X) <= 1


@pytest.mark.parametrize("dtype", MLP_TYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize(("x_float", "y_float"), [(True, False), (False, True), (True, True)])
def test_float32_ends(options, dtype, x_float, y_float):
    for widths in ((48, 64, 24), (33, 17, 11)):
        chain = Chain(widths, dtype, x_type=np.float32 if x_float else None, y_type=np.float32 if y_float else None)
        X = chain.rows(21)
        assert chain.error(run_mlp(chain.session(options), X), X) <= 1


def test_an_empty_batch(options):
    chain = Chain((16, 16, 16), np.float16)
    assert run_mlp(chain.session(options), chain.rows(0)).shape == (0, 16)


def test_a_deep_chain(options):
    chain = Chain((16,) * 81, np.float16, same="hard_swish")
    X = chain.rows(40)
    assert chain.error(run_mlp(chain.session(options), X), X) <= 1


def test_a_row_that_is_not_a_number_stays_alone(options):
    chain = Chain((32, 64, 32), np.float16, same="relu")
    X = chain.rows(20)
    X[3, 5] = np.nan
    Y = run_mlp(chain.session(options), X)
    assert np.isnan(Y[3]).all()
    assert np.isnan(Y).sum() == Y.shape[1]


@pytest.mark.parametrize("M", [16, 300, 3000])
def test_graphs_and_repeats_give_the_same_bits(options, M):
    chain = Chain((256, 256, 256, 256, 64), np.float16)
    X = chain.rows(M)
    results = set()
    for graph in (False, True):
        session = chain.session(options, graph)
        binding = session.io_binding()
        binding.bind_ortvalue_input("X", device_value(X))
        output = onnxruntime.OrtValue.ortvalue_from_shape_and_type([M, 64], np.float16, "cuda", 0)
        binding.bind_ortvalue_output("Y", output)
        for _ in range(200):
            session.run_with_iobinding(binding)
            results.add(output.numpy().tobytes())
    assert len(results) == 1
    assert chain.error(output.numpy(), X) <= 1


def test_widths_that_no_kernel_takes(options):
    widths = (64, 30000, 64)
    chain = Chain(widths, np.float16)  # layer by layer
    X = chain.rows(20)
    assert chain.error(run_mlp(chain.session(options), X), X) <= 1
    with pytest.raises(Exception, match="no kernel 'fp16_mlp_16' for this GPU, these types and widths"):
        Chain(widths, np.float16, compute="fp16_mlp_16").session(options)


@pytest.mark.parametrize(("M", "x_type"), [(20, np.float16), (20, np.float32), (3000, np.float32)])
def test_layer_by_layer(options, M, x_type):
    chain = Chain((100, 256, 72, 31), np.float16, x_type=x_type, y_type=np.float32, compute="layers")
    X = chain.rows(M)
    assert chain.error(run_mlp(chain.session(options), X), X) <= 1
