"""DeftConv on the GPU against float64 arithmetic on the same unpacked operands."""

import dataclasses
import threading

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from conv_model import conv_case, conv_model, output_image, reference
from covering import pairwise
from gemm_model import DTYPES, ort_value, run_gemm, to_array

from deftonnx.formats import FORMAT_NAMES
from deftonnx.formats.activation import ACTIVATIONS
from deftonnx.formats.conv_function import SQUARES, Window, attach_conv_functions

TOLERANCE = {np.float32: 1e-5, np.float16: 5e-4, ml_dtypes.bfloat16: 4e-3}
CUDA = ("CUDAExecutionProvider",)
HALVES = (np.float16, ml_dtypes.bfloat16)
SAME = Window.of((3, 3), pads=(1, 1, 1, 1))
# image, channels, outputs, window
LAYERS = {
    "1x1": ((9, 11), 64, 72, Window.of((1, 1))),
    "1x1_strided": ((9, 11), 128, 64, Window.of((1, 1), strides=(2, 2))),
    "3x3": ((13, 7), 64, 136, SAME),
    "3x3_strided": ((15, 14), 32, 64, Window.of((3, 3), strides=(2, 2), pads=(1, 1, 1, 1))),
    "no_padding": ((8, 9), 40, 24, Window.of((3, 2))),
    "asymmetric": ((10, 12), 96, 40, Window.of((3, 3), strides=(1, 2), pads=(0, 1, 2, 0), dilations=(2, 1))),
    "5x5": ((9, 9), 16, 32, Window.of((5, 5), pads=(2, 2, 2, 2))),
    "first": ((23, 21), 3, 64, Window.of((7, 7), strides=(2, 2), pads=(3, 3, 3, 3))),
    "odd": ((6, 5), 7, 9, SAME),
    "one_output": ((7, 7), 24, 1, SAME),
    "groups": ((8, 8), 128, 128, Window.of((3, 3), pads=(1, 1, 1, 1), group=2)),
    "small_groups": ((8, 8), 32, 48, Window.of((3, 3), pads=(1, 1, 1, 1), group=4)),
    "depthwise": ((11, 9), 48, 48, Window.of((3, 3), pads=(1, 1, 1, 1), group=48)),
    "depthwise_strided": ((11, 9), 20, 40, Window.of((3, 3), strides=(2, 2), group=20)),
    "1d": ((50,), 64, 136, Window.of((7,), strides=(3,), pads=(3, 3), dilations=(2,))),
    "1d_odd": ((17,), 5, 6, Window.of((4,), pads=(1, 2))),
    "many_tiles": ((56, 57), 64, 72, SAME),
}
# tile, how two blocks share, into how many parts K is split
HOPPER = (
    *("128x256", "128x256_rows", "128x256_columns", "128x192", "128x192_columns", "192x128", "192x128_rows"),
    *("128x128_turns", "128x128_turns_rows", "128x128_turns_columns", "128x128", "128x64_turns"),
    *("64x128", "64x128_split2", "64x128_split4", "64x64", "64x64_split2", "64x64_split4", "64x64_split8"),
)
# those that copy kept blocks of less than a K step by threads
VECTORS = (
    *("128x256_vectors", "128x256_vectors_rows", "128x256_vectors_split2", "128x256_vectors_rows_split2"),
    *("128x128_turns_vectors", "128x128_turns_vectors_rows"),
)
# those that keep W in shared memory: outputs of a tile, warpgroups
RESIDENT = ("resident_64x4", "resident_128x2")


def resident_serves(kernel, window, channels, outputs):
    """Whether a kernel of RESIDENT serves a layer with all of its features."""
    columns, warpgroups = map(int, kernel.removeprefix("resident_").split("x"))
    steps = int(np.prod(window.kernel_shape)) * channels // window.group / 64
    others = warpgroups * 8 + 5 * (64 * 128 + 16)
    fits = steps * (columns * 128 + 8) + others <= 227 * 1024
    alone = window.group == 1 or outputs // window.group % columns == 0
    return fits and alone and channels // window.group % 64 == 0


def hopper_serves(kernel, window, features, outputs):
    """Whether a kernel of HOPPER serves a layer: a tile has outputs of one group, every part of K a step."""
    tile, *sharing = kernel.split("_")
    splits = next((int(word.removeprefix("split")) for word in sharing if word.startswith("split")), 1)
    columns = int(tile.split("x")[1]) * (2 if "columns" in sharing else 1)
    return splits <= -(-features // 64) and (window.group == 1 or outputs // window.group % columns == 0)


def check(Y, expected, dtype):
    assert Y.dtype == dtype
    assert Y.shape == expected.shape
    assert np.linalg.norm(Y.astype(np.float64) - expected) <= TOLERANCE[dtype] * np.linalg.norm(expected)


def prefix(dtype):
    return {np.float32: "fp32", np.float16: "fp16", ml_dtypes.bfloat16: "bf16"}[dtype]


def name_of(dtype):
    return np.dtype(dtype).name


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("layer", LAYERS)
def test_layers(options, layer, dtype):
    name = "half" if dtype == np.float16 else "deft16"
    run_case(options, 3, LAYERS[layer], dtype, name, compute="auto", batch=3)


KERNEL_LAYERS = {
    **{name: LAYERS[name] for name in ("1x1", "3x3", "asymmetric", "groups", "1d")},
    "tiles": ((14, 27), 192, 328, SAME),
}
KERNEL_FACTORS = {
    "kernel": ["cudnn", "direct", *(f"hopper_{name}" for name in (*HOPPER, *VECTORS, *RESIDENT))],
    "layer": list(KERNEL_LAYERS),
    "dtype": HALVES,
    "block": [0, 8, 16, 32, 64],
    "activation": ["none", "relu", "clip", "gelu"],
    "residual": [False, True],
}


def served(row):
    """Whether a kernel serves a layer, and a layer has such blocks, as far as a row says."""
    kernel, block = row.get("kernel", ""), row.get("block", 0)
    if kernel == "cudnn" and (block or row.get("activation", "relu") != "relu"):
        return False  # of its other activations it may have none for a layer
    name = kernel.removeprefix("hopper_")
    if name in VECTORS and row.get("block", 8) in (0, 64):
        return False
    if name in RESIDENT and row.get("block", 0) not in (0, 64):
        return False
    if "layer" not in row:
        return True
    _, channels, outputs, window = KERNEL_LAYERS[row["layer"]]
    features = int(np.prod(window.kernel_shape)) * channels // window.group
    if block and channels // window.group % block:
        return False
    if name in RESIDENT:
        return resident_serves(name, window, channels, outputs)
    return name not in (*HOPPER, *VECTORS) or hopper_serves(name, window, features // 2, outputs)  # half may be kept


def run_case(options, seed, layer, dtype, name, *, compute, block=0, density=0.5, residual=False, batch=2, **epilogue):
    """Check one convolution by the kernel `compute`, whose name goes without the type."""
    *shape, window = layer
    sizes = {"batch": batch, "block": block, "density": density}
    X, packed, bias, kept = conv_case(seed, *shape, window, name, dtype, **sizes)
    if residual:
        sample = np.random.default_rng(seed + 1).standard_normal((batch, *output_image(window, shape[0]), packed.N))
        epilogue["residual"] = sample.astype(dtype)
    kernel = compute if compute in ("auto", "cudnn") else f"{prefix(dtype)}_{compute}"
    model = conv_model(X, packed, bias, window, kept=kept, block=block, compute=kernel, **epilogue)
    Y = run_gemm(model, X, epilogue.get("residual"), options, CUDA)
    check(Y, reference(X, packed, bias, window, kept=kept, block=block, **epilogue), dtype)


def label(row):
    return "-".join(name_of(row[k]) if k == "dtype" else str(row[k]) for k in sorted(row))


# so many tiles that each block makes several: with more K steps than a ring has stages, and with few
RESIDENT_LAYERS = {
    "3x3": ((28, 39), 64, 328, SAME),
    "1x1": ((28, 39), 64, 584, Window.of((1, 1))),
    "groups": ((28, 39), 128, 128, dataclasses.replace(SAME, group=2)),
}
RESIDENT_FACTORS = {
    "kernel": list(RESIDENT),
    "layer": list(RESIDENT_LAYERS),
    "dtype": HALVES,
    "activation": ["relu", "clip", "gelu", "leaky_relu"],
    "residual": [False, True],
}


def fits(row):
    """Whether W fits shared memory, as far as a row says."""
    if "kernel" not in row or "layer" not in row:
        return True
    _, channels, outputs, window = RESIDENT_LAYERS[row["layer"]]
    return resident_serves(row["kernel"], window, channels, outputs)


@pytest.mark.parametrize("row", pairwise(RESIDENT_FACTORS, fits), ids=label)
def test_weights_that_stay_in_shared_memory(options, row):
    how = {name: row[name] for name in ("residual", "activation")} | {"alpha": -0.2, "beta": 0.5}
    layer, compute = RESIDENT_LAYERS[row["layer"]], f"hopper_{row['kernel']}"
    run_case(options, 34, layer, row["dtype"], "deft16", compute=compute, batch=8, **how)


# so many tiles that some blocks make several
TRANSPOSED_LAYERS = {
    "3x3": RESIDENT_LAYERS["3x3"],
    "1x1": ((28, 39), 128, 584, Window.of((1, 1))),
    "asymmetric": ((20, 31), 192, 136, Window.of((3, 3), strides=(1, 2), pads=(0, 1, 2, 0), dilations=(2, 1))),
    "groups": ((28, 39), 128, 512, dataclasses.replace(SAME, group=2)),
}
TRANSPOSED_FACTORS = {
    "kernel": ["192x128_transposed", "192x128_transposed_columns", "96x128_transposed", "96x128_transposed_columns"],
    "layer": list(TRANSPOSED_LAYERS),
    "dtype": HALVES,
    "block": [0, 64],
    "activation": ["none", "relu", "clip", "gelu", "silu", "leaky_relu"],
}


@pytest.mark.parametrize("row", pairwise(TRANSPOSED_FACTORS), ids=label)
def test_weights_as_the_left_operand(options, row):
    how = {"block": row["block"], "activation": row["activation"], "alpha": -0.2, "beta": 0.5}
    layer, compute = TRANSPOSED_LAYERS[row["layer"]], f"hopper_{row['kernel']}"
    run_case(options, 36, layer, row["dtype"], "deft16", compute=compute, batch=8, **how)


@pytest.mark.parametrize("how", [{"block": 32}, {"residual": True}], ids=str)
def test_weights_are_no_left_operand_of_short_blocks_or_with_a_residual(options, how):
    with pytest.raises(Exception, match="no kernel 'fp16_hopper_192x128_transposed'"):
        run_case(options, 37, LAYERS["3x3"], np.float16, "half", compute="hopper_192x128_transposed", **how)


def test_half_of_a_filter_may_stay_where_all_does_not(options):
    layer = ((28, 29), 128, 136, SAME)
    how = {"compute": "hopper_resident_128x2", "activation": "clip", "alpha": -0.2, "beta": 0.5}
    run_case(options, 35, layer, np.float16, "half", block=64, batch=8, **how)
    with pytest.raises(Exception, match="no kernel 'fp16_hopper_resident_128x2'"):
        run_case(options, 35, layer, np.float16, "half", **how)


@pytest.mark.parametrize("row", pairwise(KERNEL_FACTORS, served), ids=label)
def test_each_kernel(options, row):
    layer = KERNEL_LAYERS[row["layer"]]
    options_of_row = {name: row[name] for name in ("block", "activation", "residual")}
    numbers = {"alpha": -0.2, "beta": 0.5}
    compute = row["kernel"]
    run_case(options, 7, layer, row["dtype"], "deft16", compute=compute, batch=9, **options_of_row, **numbers)


FORMAT_FACTORS = {"name": FORMAT_NAMES, "dtype": DTYPES, "layer": ["3x3", "odd"], "eliminated": [False, True]}


@pytest.mark.parametrize("row", pairwise(FORMAT_FACTORS), ids=label)
def test_formats(options, row):
    block = (32 if row["layer"] == "3x3" else 1) if row["eliminated"] else 0
    run_case(options, 9, LAYERS[row["layer"]], row["dtype"], row["name"], compute="auto", block=block)


EPILOGUE_FACTORS = {
    "activation": list(ACTIVATIONS),
    "dtype": DTYPES,
    "layer": ["1x1", "3x3"],
    "block": [0, 16],
    "residual": [False, True],
    "kernel": ["auto", "direct", "hopper_64x64", "hopper_128x128_turns"],
}


def has_epilogue(row):
    return row.get("kernel", "direct") in ("auto", "direct") or row.get("dtype") is not np.float32


@pytest.mark.parametrize("row", pairwise(EPILOGUE_FACTORS, has_epilogue), ids=label)
def test_epilogue(options, row):
    options_of_row = {name: row[name] for name in ("activation", "block", "residual")}
    numbers = {"alpha": 0.2, "beta": 0.5}
    layer, compute = LAYERS[row["layer"]], row["kernel"]
    run_case(options, 11, layer, row["dtype"], "deft8:4", compute=compute, **options_of_row, **numbers)


ELIMINATED_LAYERS = {
    "1x1_strided": LAYERS["1x1_strided"],
    "groups": LAYERS["groups"],
    "wide": ((14, 15), 256, 264, SAME),
    "1d_wide": ((40,), 128, 64, Window.of((5,), pads=(2, 2))),
}
ELIMINATION_FACTORS = {
    "block": [1, 4, 8, 16, 32, 64],
    "dtype": DTYPES,
    "density": [0.1, 0.5, 1.0],
    "layer": list(ELIMINATED_LAYERS),
}


@pytest.mark.parametrize("row", pairwise(ELIMINATION_FACTORS), ids=label)
def test_elimination(options, row):
    sizes = {"block": row["block"], "density": row["density"]}
    run_case(options, 13, ELIMINATED_LAYERS[row["layer"]], row["dtype"], "deft16", compute="auto", **sizes)


FEW_CHANNELS = {
    "first": LAYERS["first"],
    "odd_steps": ((61, 50), 3, 64, SAME),
    "grey": ((28, 28), 1, 72, Window.of((5, 5), pads=(2, 2, 2, 2))),
    "four": ((33, 35), 4, 32, Window.of((3, 3), strides=(2, 2), pads=(1, 0, 1, 0), dilations=(1, 2))),
    "twelve": ((20, 9), 12, 136, Window.of((3, 2), strides=(1, 3), dilations=(2, 1))),
    "1d": ((300,), 5, 16, Window.of((9,), strides=(2,), pads=(4, 4))),
}


@pytest.mark.parametrize("layer", FEW_CHANNELS)
@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
@pytest.mark.parametrize("block", [0, 1])
def test_few_channels(options, layer, dtype, block):
    *shape, window = FEW_CHANNELS[layer]
    X, packed, bias, kept = conv_case(20, *shape, window, "deft16", dtype, batch=3, block=block)
    added = np.random.default_rng(21).standard_normal((3, *output_image(window, X.shape[1:-1]), packed.N))
    for epilogue in ({"activation": "relu"}, {"activation": "gelu", "residual": added.astype(dtype)}):
        model = conv_model(
            X, packed, bias, window, kept=kept, block=block, compute=f"{prefix(dtype)}_few_channels", **epilogue
        )
        Y = run_gemm(model, X, epilogue.get("residual"), options, CUDA)
        check(Y, reference(X, packed, bias, window, kept=kept, block=block, **epilogue), dtype)


@pytest.mark.parametrize("layer", [name for name in FEW_CHANNELS if name != "1d"])
@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
@pytest.mark.parametrize("kernel", ["few_channels", "direct"])
def test_pooled(options, layer, dtype, kernel):
    *shape, window = FEW_CHANNELS[layer]
    X, packed, bias, _ = conv_case(25, *shape, window, "deft16", dtype, batch=3)
    X[1, 2, 3] = np.nan
    for activation in ("relu", "gelu"):
        how = {"activation": activation, "pool": SQUARES}
        Y = run_gemm(
            conv_model(X, packed, bias, window, compute=f"{prefix(dtype)}_{kernel}", **how), X, None, options, CUDA
        )
        want = reference(X, packed, bias, window, **how)
        numbers = ~np.isnan(want)
        assert np.array_equal(~np.isnan(Y), numbers)
        check(Y[numbers], want[numbers], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("layer", ["odd", "first", "groups", "depthwise"])
def test_pooled_by_what_serves_it(options, layer, dtype):
    *shape, window = LAYERS[layer]
    X, packed, bias, _ = conv_case(26, *shape, window, "half" if dtype == np.float16 else "deft16", dtype)
    Y = run_gemm(conv_model(X, packed, bias, window, pool=SQUARES), X, None, options, CUDA)
    check(Y, reference(X, packed, bias, window, pool=SQUARES), dtype)


# the kernel's name, channels (and groups), window without its groups
DEPTHWISE = {
    "3": (48, Window.of((3, 3), pads=(1, 1, 1, 1))),
    "3_stride2": (8, Window.of((3, 3), strides=(2, 2), pads=(0, 1, 1, 0))),
    "5": (72, Window.of((2, 5), dilations=(2, 1), pads=(1, 2, 1, 2))),
    "5_stride2": (16, Window.of((5, 5), strides=(1, 2), pads=(2, 2, 2, 2))),
    "7": (24, Window.of((7, 7), pads=(3, 3, 3, 3))),
    "any": (40, Window.of((3, 4), strides=(2, 3), pads=(1, 2, 0, 1), dilations=(1, 2))),
}


@pytest.mark.parametrize("kernel", DEPTHWISE)
@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_depthwise(options, kernel, dtype):
    channels, shape = DEPTHWISE[kernel]
    window = dataclasses.replace(shape, group=channels)
    X, packed, bias, _ = conv_case(22, (13, 22), channels, channels, window, "deft8:4", dtype, batch=3)
    added = np.random.default_rng(23).standard_normal((3, *output_image(window, X.shape[1:-1]), packed.N))
    for epilogue in ({"activation": "hard_swish"}, {"activation": "relu", "residual": added.astype(dtype)}):
        compute = f"{prefix(dtype)}_depthwise_{kernel}"
        model = conv_model(X, packed, bias, window, compute=compute, **epilogue)
        Y = run_gemm(model, X, epilogue.get("residual"), options, CUDA)
        check(Y, reference(X, packed, bias, window, **epilogue), dtype)


@pytest.mark.parametrize(
    ("channels", "outputs", "group"), [(128, 128, 32), (64, 128, 4), (32, 48, 4), (24, 24, 3), (16, 32, 16)]
)
@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_groups_taken_together(options, channels, outputs, group, dtype):
    window = dataclasses.replace(SAME, group=group)
    X, packed, bias, _ = conv_case(24, (14, 13), channels, outputs, window, "deft16", dtype, batch=3)
    model = conv_model(X, packed, bias, window, compute=f"{prefix(dtype)}_hopper_64x64", activation="relu")
    Y = run_gemm(model, X, None, options, CUDA)
    check(Y, reference(X, packed, bias, window, activation="relu"), dtype)


def test_weights_beyond_the_range_of_float16(options):
    X, packed, bias, _ = conv_case(15, *LAYERS["3x3"], "deft16", np.float16)
    for power in (-30, 18):
        codes = packed.codes.copy()
        codes = (codes.view(ml_dtypes.bfloat16).astype(np.float32) * 2.0**power).astype(ml_dtypes.bfloat16)
        scaled = type(packed)(packed.format, codes.view(packed.codes.dtype), packed.scale / 2.0**power, packed.K)
        Y = run_gemm(conv_model(X, scaled, bias, SAME), X, None, options, CUDA)
        check(Y, reference(X, packed, bias, SAME), np.float16)


MOST_TAPS = {  # a list of vectors tells 31 taps of a filter apart
    "row": ((5, 40), 64, 264, Window.of((1, 31), pads=(0, 15, 0, 15))),
    "column": ((40, 5), 64, 264, Window.of((31, 1), pads=(15, 0, 15, 0))),
    "1d": ((50,), 64, 264, Window.of((31,), strides=(2,), pads=(20, 20))),
}


@pytest.mark.parametrize("layer", MOST_TAPS)
@pytest.mark.parametrize(
    ("kernel", "dtype", "block", "density"),
    [
        ("128x256_vectors", np.float16, 8, 0.5),
        ("128x256_vectors_split2", ml_dtypes.bfloat16, 16, 0.3),
        ("128x128_turns_vectors", ml_dtypes.bfloat16, 8, 1),
    ],
)
def test_vectors_of_as_many_taps_as_a_list_tells_apart(options, layer, kernel, dtype, block, density):
    how = {"compute": f"hopper_{kernel}", "block": block, "density": density}
    run_case(options, 31, MOST_TAPS[layer], dtype, "deft16", **how)


# a filter's rows of X fit into the first-level cache, or do not: another order of vectors
@pytest.mark.parametrize("image", [(12, 9), (5, 100)], ids=str)
@pytest.mark.parametrize("block", [8, 16, 32])
def test_vectors_in_the_order_of_lines(options, image, block):
    layer = (image, 192, 136, SAME)
    run_case(options, 38, layer, np.float16, "half", compute="hopper_128x256_vectors", block=block, density=0.4)


@pytest.mark.parametrize("window", [Window.of((4, 8), pads=(2, 4, 1, 3)), Window.of((1, 32), pads=(0, 16, 0, 15))])
def test_vectors_of_more_taps(options, window):
    layer = ((9, 40), 64, 264, window)
    run_case(options, 32, layer, np.float16, "half", compute="auto", block=8)
    with pytest.raises(Exception, match="no kernel 'fp16_hopper_128x256_vectors'"):
        run_case(options, 32, layer, np.float16, "half", compute="hopper_128x256_vectors", block=8)


@pytest.mark.parametrize(
    ("kernel", "block"),
    [
        *(("cudnn", 0), ("direct", 8), ("hopper_128x128_turns", 0), ("hopper_64x64_split2", 64)),
        ("hopper_192x128_transposed", 64),
        *(("hopper_128x256_vectors", 8), ("hopper_128x128_turns_vectors", 8)),
    ],
)
@pytest.mark.parametrize(("dtype", "activation"), [(np.float16, "relu"), (ml_dtypes.bfloat16, "clip")])
def test_not_a_number_passes_where_a_window_sees_it(options, kernel, block, dtype, activation):
    X, packed, bias, kept = conv_case(33, (13, 11), 128, 264, SAME, "deft16", dtype, block=block, density=1)
    X[1, 4, 5] = np.nan
    epilogue = {"activation": activation, "alpha": -0.2, "beta": 0.5, "kept": kept, "block": block}
    compute = kernel if kernel == "cudnn" else f"{prefix(dtype)}_{kernel}"
    Y = run_gemm(conv_model(X, packed, bias, SAME, compute=compute, **epilogue), X, None, options, CUDA)
    assert np.array_equal(np.isnan(Y), np.isnan(reference(X, packed, bias, SAME, **epilogue)))


def test_an_empty_batch(options):
    X, packed, bias, _ = conv_case(16, *LAYERS["3x3"], "half", np.float16, batch=0)
    assert run_gemm(conv_model(X, packed, bias, SAME), X, None, options, CUDA).size == 0


def binding_of(options, model, X, shape, **provider_options):
    providers = [("CUDAExecutionProvider", provider_options)]
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    binding = session.io_binding()
    binding.bind_ortvalue_input("X", onnxruntime.OrtValue.ortvalue_from_numpy(X, "cuda", 0))
    output = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, X.dtype, "cuda", 0)
    binding.bind_ortvalue_output("Y", output)
    return session, binding, output


@pytest.mark.parametrize(
    ("block", "kernel"),
    [
        (0, "auto"),
        (8, "auto"),
        (32, "auto"),
        *((8, f"fp16_hopper_{name}") for name in VECTORS),
        (0, "fp16_hopper_resident_128x2"),
        (64, "fp16_hopper_192x128_transposed"),
        (64, "fp16_hopper_96x128_transposed_columns"),
    ],
)
def test_graphs_and_repeats_give_the_same_bits(options, block, kernel):
    X, packed, bias, kept = conv_case(17, (28, 28), 64, 192, SAME, "half", np.float16, batch=8, block=block)
    model = conv_model(X, packed, bias, SAME, kept=kept, block=block, activation="relu", compute=kernel)
    results = set()
    for provider_options in ({}, {"enable_cuda_graph": "1"}):
        session, binding, output = binding_of(options, model, X, [8, 28, 28, 192], **provider_options)
        for _ in range(200):
            session.run_with_iobinding(binding)
            results.add(output.numpy().tobytes())
    assert len(results) == 1
    check(output.numpy(), reference(X, packed, bias, SAME, kept=kept, block=block, activation="relu"), np.float16)


def test_cudnn_waits_for_its_residual(options):
    # the kernel ahead lets those behind it start early; cuDNN's fused kernels do not wait before the residual
    X, packed, bias, _ = conv_case(25, (14, 14), 512, 64, SAME, "half", np.float16, batch=2)
    Z, other, other_bias, _ = conv_case(26, (14, 14), 64, 64, Window.of((1, 1)), "half", np.float16, batch=2)
    added = reference(X, packed, bias, SAME)
    ahead = conv_model(X, packed, bias, SAME, compute="fp16_hopper_64x64")
    behind = conv_model(Z, other, other_bias, Window.of((1, 1)), residual=added.astype(np.float16), compute="cudnn")
    session = onnxruntime.InferenceSession(chained(ahead, behind).SerializeToString(), options, providers=list(CUDA))
    expected = reference(Z, other, other_bias, Window.of((1, 1)), residual=added)
    silence = np.zeros_like(X)
    for _ in range(200):  # in between, another residual lies where this one will
        session.run_with_ort_values(["Y"], {"X": ort_value(silence), "Z": ort_value(Z)})
        (Y,) = session.run_with_ort_values(["Y"], {"X": ort_value(X), "Z": ort_value(Z)})
        check(to_array(Y), expected, np.float16)


def chained(ahead, behind):
    """Two one-layer models as one: the first one's Y is the second one's residual, whose X is called Z."""
    names = {name: f"behind_{name}" for name in ("W", "W_scale", "bias", "kept")} | {"X": "Z", "residual": "R"}
    model = onnx.ModelProto.FromString(behind.SerializeToString())
    (first,), (second,) = ahead.graph.node, model.graph.node
    model.graph.node.insert(0, first)
    model.graph.node[0].name, model.graph.node[0].output[0] = "ahead", "R"
    for i, name in enumerate(second.input):
        second.input[i] = names[name]
    for tensor in (*model.graph.initializer, *model.graph.input):
        tensor.name = names[tensor.name]
    model.graph.initializer.extend(ahead.graph.initializer)
    del model.graph.input[1]
    model.graph.input.extend(ahead.graph.input)
    del model.functions[:]
    return attach_conv_functions(model)


def test_threads_share_a_session(options):
    X, packed, bias, _ = conv_case(18, *LAYERS["3x3"], "half", np.float16, batch=9)
    model = conv_model(X, packed, bias, SAME, batch="batch")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=list(CUDA))
    expected = reference(X, packed, bias, SAME)
    failures = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(10):
            count = int(rng.integers(1, 9))
            (Y,) = session.run_with_ort_values(["Y"], {"X": ort_value(X[:count])})
            try:
                check(to_array(Y), expected[:count], np.float16)
            except AssertionError as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_the_node_runs_on_the_gpu(options):
    X, packed, bias, _ = conv_case(19, *LAYERS["3x3"], "deft8:4", np.float16)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    run_gemm(conv_model(X, packed, bias, SAME), X, None, options, CUDA)
    with pytest.raises(Exception, match="no kernel 'nonsense'"):
        run_gemm(conv_model(X, packed, bias, SAME, compute="nonsense"), X, None, options, CUDA)
