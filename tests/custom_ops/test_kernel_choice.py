"""Which kernel would serve a node on a GPU that is not here, and what a table of measured times changes."""

import json
import os
import time
from functools import partial

import numpy as np
import onnxruntime
import pytest
from conv_model import conv_model
from gemm_model import gemm_model, reference, run_gemm
from onnx import TensorProto

from deftonnx.errors import UnsupportedError
from deftonnx.formats import GEMM_FORMAT_NAMES, PackedWeight, get_format, pack_weight
from deftonnx.formats.conv_function import Window
from deftonnx.formats.gemm_function import gemm_node
from deftonnx.runtime.cuda import Device
from deftonnx.runtime.kernel_choice import conv_kernels_for, kernels_for
from deftonnx.runtime.manifest import read_manifest
from deftonnx.version import __version__

H200 = Device("NVIDIA H200", 90, 132, 141 << 30)


@pytest.fixture(scope="module")
def manifest(operator_library):
    found = read_manifest(operator_library)
    if 90 not in found.kernels:
        pytest.skip("the library was built without kernels for sm_90")
    return found


@pytest.fixture(autouse=True)
def no_table_of_this_user(monkeypatch):
    monkeypatch.setenv("DEFTONNX_TUNING", "")


def node(K=4096, N=512, **attributes):
    X = np.zeros((1, K), np.float16)
    packed = pack_weight(np.zeros((K, N), np.float32), "half")
    return gemm_model(X, packed, np.zeros(N, np.float32), **attributes).graph.node[0]


@pytest.fixture
def kernels(operator_library):
    def ask(rows, capability=90, x_type=TensorProto.FLOAT16, multiprocessors=132, severity=4, **attributes):
        device = Device("a GPU", capability, multiprocessors, 1)
        return kernels_for(node(**attributes), x_type, TensorProto.FLOAT16, rows, device, operator_library, severity)

    return ask


def test_manifest(manifest):
    assert manifest.version == __version__
    assert all(len(set(names)) > 10 for names in manifest.kernels.values())
    assert manifest.code_for(90) == 90
    assert manifest.code_for(70) is None
    if 80 in manifest.kernels:
        assert manifest.code_for(89) == 80


@pytest.mark.parametrize(("rows", "most"), [(1, 8), (8, 8), (9, 16), (16, 16), (17, 32), (32, 32)])
def test_few_rows_are_streamed(manifest, kernels, rows, most):
    assert kernels([rows])[0].kernel == f"fp16_fp16_stream_{most}"


def test_tall_tiles_that_share_out_K_are_for_more_rows_than_low_ones_have(kernels, manifest):
    fastest = {}
    for kernel in kernels([64, 96, 128], N=4096):
        fastest.setdefault(kernel.M, kernel.kernel)
    assert {M for M, name in fastest.items() if "128x64_split2" in name} == {96, 128}


@pytest.mark.parametrize(("name", "x_type"), [("half", TensorProto.FLOAT16), ("deft16", TensorProto.BFLOAT16)])
@pytest.mark.parametrize(("K", "N"), [(64, 64), (1024, 1024), (4096, 14336), (8192, 8192), (1000, 24)])
def test_16_bit_weights_are_for_wgmma(manifest, fastest, name, x_type, K, N):
    """Also those of any size: the kernel that loads element by element takes ten times as long."""
    found = fastest([33, 64, 65, 128, 500, 4096], K, N, name, x_type)
    assert len(found) == 6
    assert all("_hopper_" in kernel for kernel in found.values())


def test_tiles_have_as_many_rows_as_fill_the_GPU(manifest, fastest):
    """11 tiles of 144 rows by 24 of 128 features are two rounds on 132 multiprocessors, of 128 rows more than two."""
    assert fastest([1576], 768, 3072, "half")[1576] == "fp16_fp16_hopper_144x128_transposed"
    assert fastest([640], 2048, 2048, "half")[640] == "fp16_fp16_hopper_80x128_transposed"
    assert "transposed" not in fastest([1576], 768, 3072, "half", features=1536, block=64)[1576]


@pytest.mark.parametrize(("M", "K", "N"), [(64, 1024, 1024), (128, 4096, 4096), (12608, 768, 3072)])
def test_a_curve_ended_in_registers_changes_little(manifest, fastest, M, K, N):
    assert fastest([M], K, N, "half", activation="gelu") == fastest([M], K, N, "half", activation="relu")


def test_a_residual_counts_against_tiles_that_end_it_apart(manifest, operator_library):
    layer = node(768, 768)
    ask = partial(kernels_for, layer, TensorProto.FLOAT16, TensorProto.FLOAT16, [6304], H200, operator_library)
    assert "transposed" in ask()[0].kernel
    assert "turns" in ask(has_residual=True)[0].kernel


def test_other_files_have_no_manifest(tmp_path):
    for content in (b"", b"no library", b"deftonnx-manifest:{}\0", b"deftonnx-manifest:{"):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(UnsupportedError, match="not an operator library"):
            read_manifest(tmp_path / "file")


def test_a_library_made_anew_has_its_own_manifest(tmp_path):
    for version in ("1.0", "1.0.1"):
        fields = f'{{"version": "{version}", "fingerprint": "0", "kernels": {{}}}}'
        (tmp_path / "file").write_text(f"deftonnx-manifest:{fields}\0")
        assert read_manifest(tmp_path / "file").version == version


def test_kernels_are_those_of_the_library_the_fastest_first(manifest, kernels):
    found = kernels([1, 4096])
    assert {k.kernel for k in found} <= set(manifest.kernels[90])
    assert {k.M for k in found} == {1, 4096}
    for M in (1, 4096):
        times = [k.time for k in found if k.M == M]
        assert times == sorted(times)
        assert times[0] > 0
    assert found[0].kernel != next(k.kernel for k in found if k.M == 4096)
    assert all(k.time == k.estimate for k in found)


def test_a_node_may_name_its_kernel(manifest, kernels):
    name = kernels([4096])[-1].kernel
    assert [k.kernel for k in kernels([4096], compute=name)] == [name]


@pytest.mark.parametrize(("block", "gathered"), [(1, True), (8, True), (32, False), (64, False)])
def test_short_kept_blocks_are_gathered_ahead_of_large_products(manifest, kernels, block, gathered):
    found = kernels([8, 4096], N=4096, features=8192, block=block)
    assert next(k.kernel for k in found if k.M == 4096).endswith("_gathered") == gathered
    assert next(k.kernel for k in found if k.M == 8).endswith("_gathered") == (block == 1)
    assert any(k.kernel.endswith("_gathered") for k in found) == (block < 64)
    if gathered:
        name = next(k.kernel for k in found if k.M == 4096)
        assert {k.kernel for k in kernels([4096], N=4096, features=8192, block=block, compute=name)} == {name}


def test_pairs_share_X_in_large_products_of_kept_blocks(fastest):
    large = fastest([4096], 2048, 4096, "half", features=4096, block=64)
    small = fastest([1024], 512, 1024, "half", features=1024, block=64)
    assert large[4096].endswith("_columns")
    assert not small[1024].endswith(("_rows", "_columns"))


def test_refusals_are_the_library_s(manifest, kernels, operator_library):
    with pytest.raises(UnsupportedError, match="node 'layer': no kernel for compute capability 30"):
        kernels([1], capability=30)
    with pytest.raises(UnsupportedError, match="no kernel 'no_such_kernel'"):
        kernels([1], compute="no_such_kernel")
    softmax = node()
    next(a for a in softmax.attribute if a.name == "activation").s = b"softmax"
    with pytest.raises(UnsupportedError, match="unknown activation 'softmax'"):
        kernels_for(softmax, TensorProto.FLOAT16, TensorProto.FLOAT16, [1], H200, operator_library)


def _names(name, K, N, x_type, output, library, **attributes):
    """The kernels for 1 and for 500 rows of X."""
    packed = pack_weight(np.zeros((K, N), np.float32), name)
    layer = gemm_node(["X", "W", "scale", "bias"], "Y", packed, name="layer", output_type=output, **attributes)
    return {k.kernel for k in kernels_for(layer, x_type, get_format(name).onnx_type, [1, 500], H200, library)}


@pytest.mark.parametrize("output", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("x_type", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("name", ["fp32", *GEMM_FORMAT_NAMES])
def test_every_operand_is_served(manifest, operator_library, name, x_type, output):
    for K, N in ((4096, 512), (8192, 48), (33, 7)):
        names = _names(name, K, N, x_type, output, operator_library)
        exact = name == "fp32" and x_type != TensorProto.FLOAT
        as_tf32 = name in ("fp32", "deft16q") or (name == "half" and x_type != TensorProto.FLOAT16)
        only_simt = exact or (as_tf32 and K % 16 != 0)
        assert all("simt" in kernel for kernel in names) == only_simt
        assert any("simt" in kernel for kernel in names) == only_simt
        if (name, x_type) == ("deft16", TensorProto.FLOAT16):  # written anew as half
            assert all(kernel.startswith("fp16_fp16") for kernel in names)
        if name in ("deft8:6", "deft8:7") and x_type == TensorProto.FLOAT16:  # written anew as deft8:5
            assert names == _names("deft8:5", K, N, x_type, output, operator_library)
        assert len(_names(name, K, N, x_type, output, operator_library, compute="simt")) == 2


@pytest.mark.parametrize("x_type", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("exponent_bits", range(1, 8))
def test_codes_of_8_bits_are_unpacked_beside_the_multiply(manifest, operator_library, exponent_bits, x_type):
    packed = pack_weight(np.zeros((4096, 512), np.float32), f"deft8:{exponent_bits}")
    layer = gemm_node(["X", "W", "scale", "bias"], "Y", packed, name="layer", output_type=x_type, compute="packed")
    found = kernels_for(layer, x_type, TensorProto.UINT8, [33, 128, 8192], H200, operator_library)
    for M in (33, 128, 8192):
        assert "_u8_hopper_" in next(k.kernel for k in found if k.M == M)
    assert not any("unpacked" in k.kernel for k in found)


@pytest.fixture
def fastest(manifest, operator_library):
    """The kernel that would serve a node of 8-bit weights at each number of rows."""

    def ask(rows, K, N, name="deft8:4", x_type=TensorProto.FLOAT16, known_rows=0, **attributes):
        packed = pack_weight(np.zeros((1, 1), np.float32), name)
        packed = PackedWeight(name, np.broadcast_to(packed.codes[:, :1], (N, K)), packed.scale, K)
        layer = gemm_node(["X", "W", "scale", "bias"], "Y", packed, name="layer", output_type=x_type, **attributes)
        found: dict[int, str] = {}
        w_type = get_format(name).onnx_type
        for kernel in kernels_for(layer, x_type, w_type, rows, H200, operator_library, known_rows=known_rows):
            found.setdefault(kernel.M, kernel.kernel)
        return found

    return ask


@pytest.mark.parametrize("x_type", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("exponent_bits", range(1, 8))
def test_small_weights_are_unpacked_once(fastest, exponent_bits, x_type):
    found = fastest([1, 32, 33, 64, 1024], 1024, 1024, f"deft8:{exponent_bits}", x_type)
    assert {M for M, kernel in found.items() if kernel.endswith("_unpacked")} == {33, 64, 1024}
    kept = fastest([64], 1024, 1024, f"deft8:{exponent_bits}", x_type, features=2048, block=64)
    assert kept[64].endswith("_unpacked")
    short = fastest([1024], 1024, 1024, f"deft8:{exponent_bits}", x_type, features=2048, block=8)
    assert short[1024].endswith("_gathered_unpacked")


def test_weights_that_are_never_unpacked(fastest):
    """Those of other arithmetic, or where the node forbids it."""
    rows = [33, 64, 128, 1024]
    for nodes in (
        fastest(rows, 1024, 1024, compute="packed"),
        fastest(rows, 1024, 1024, "fp8"),
        fastest(rows, 1024, 1024, x_type=TensorProto.FLOAT),
        fastest(rows, 1024, 1024, "half"),
    ):
        assert set(nodes) == set(rows)
        assert not any("unpacked" in kernel for kernel in nodes.values())


def test_whole_rounds_of_tiles_and_the_rest(fastest):
    """448 tiles of 256×128 are 3.4 rounds on 132 multiprocessors, 256 are 1.9."""
    assert fastest([512], 8192, 28672, compute="packed")[512] == "fp16_u8_hopper_256x128_rounds"
    assert fastest([512], 16384, 16384, compute="packed")[512] == "fp16_u8_hopper_256x128_columns"


def test_weights_of_any_size_are_unpacked_once(fastest):
    found = fastest([512], 8192, 28672, "deft8:3", TensorProto.BFLOAT16, known_rows=512)
    assert found[512].endswith("_unpacked")


def test_large_weights_are_read_as_codes_for_few_rows(fastest):
    """Where W comes from device memory whenever it is used, half the bytes are worth more than a copy."""
    found = fastest([64, 128, 256, 8192], 8192, 8192, "deft8:3", TensorProto.BFLOAT16)
    assert [found[M].endswith("_unpacked") for M in (64, 128, 256, 8192)] == [False, False, True, True]


def test_known_rows_decide_whether_a_weight_is_unpacked(fastest):
    """128 rows of 8192×8192 are multiplied by codes faster than by a copy of them, 384 rows are not."""
    assert fastest([384], 8192, 8192)[384].endswith("_unpacked")
    assert fastest([384], 8192, 8192, known_rows=384)[384].endswith("_unpacked")
    assert not fastest([384], 8192, 8192, known_rows=128)[384].endswith("_unpacked")


@pytest.mark.parametrize(
    "name", ["fp16_fp16_hopper_64x64_unpacked", "fp16_fp16_hopper_128x128_turns_gathered_unpacked"]
)
def test_a_node_may_name_an_unpacked_kernel(fastest, name):
    options = {"features": 16384, "block": 8} if "gathered" in name else {}
    assert fastest([1, 64], 8192, 4096, compute=name, **options) == {1: name, 64: name}


def test_only_the_fp32_units_serve_below_sm_80(manifest, kernels):
    if 75 not in manifest.kernels:
        pytest.skip("the library was built without kernels for sm_75")
    assert {k.kernel for k in kernels([1, 500], capability=75)} == {"fp16_half_simt_64x64", "fp16_half_simt_128x128"}


@pytest.fixture
def table(manifest, monkeypatch, tmp_path):
    """Writes a tuning table and makes the library read it."""
    path = tmp_path / "table.json"
    monkeypatch.setenv("DEFTONNX_TUNING", str(path))

    def write(**changes):
        content = {"library": manifest.fingerprint, "architecture": 90, "multiprocessors": 132, "kernels": {}}
        path.write_text(json.dumps(content | changes))
        os.utime(path, ns=(time.time_ns(), time.time_ns() + 10**9 * next(_seconds)))  # surely changed

    write.path = path
    return write


_seconds = iter(range(1, 1000))


def test_measured_times_decide(kernels, table):
    table()
    first, second, *_ = kernels([4096])
    points = [[4096, 4096, 512, 50e3, 1e3], [1, 64, 64, 1e3, 1e3]]
    table(kernels={first.kernel: points, second.kernel: [[8, 8, 8, 3, 1]]})
    found = {k.kernel: k for k in kernels([4096])}
    assert found[first.kernel].time == pytest.approx(50 * first.estimate, rel=1e-4)  # the nearer point
    assert found[second.kernel].time == pytest.approx(3 * second.estimate, rel=1e-4)
    assert found[first.kernel].estimate == first.estimate
    assert kernels([4096])[0].kernel != first.kernel


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "a value expected at character 0"),
        ("{", "expected at character"),
        ("[" * 1000, "nested too deeply"),
        ('{"library": "x', "a string without end"),
        ("{} {}", "more text after the value"),
        ("null", "'library' is missing"),
        ({"library": "0"}, "another build of the library"),
        ({"architecture": 80}, "made on another GPU"),
        ({"multiprocessors": 100}, "made on another GPU"),
        ({"kernels": []}, "'kernels' is missing or of the wrong kind"),
        ({"kernels": {"k": [[1, 2, 3, 4]]}}, "'k' needs rows of 5 numbers"),
        ({"kernels": {"k": [[1, 2, 3, 4, 0]]}}, "not positive"),
        ({"kernels": {"k": [[1, 2, 3, 4, "five"]]}}, "not positive"),
        (None, "does not exist"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_a_broken_table_is_a_warning(kernels, table, capfd, content, reason):
    if isinstance(content, str):
        table.path.write_text(content)
    elif content is not None:
        table(**content)
    found = kernels([4096], severity=2)
    assert all(k.time == k.estimate for k in found)
    log = capfd.readouterr().err
    assert "tuning table" in log
    assert reason in log


def test_unpacked_weights_are_measured_as_16_bit_ones(manifest, fastest, table):
    """A table in which 16-bit kernels are slow leaves no reason for a copy."""
    table()
    chosen = fastest([64], 1024, 1024)[64]
    assert chosen.endswith("_unpacked")
    table(kernels={name: [[64, 1024, 1024, 100, 1]] for name in manifest.kernels[90] if "fp16_fp16" in name})
    assert not fastest([64], 1024, 1024)[64].endswith("_unpacked")


def test_cpu_sessions_do_not_look_for_a_table(operator_library, table):
    table.path.write_text("broken")
    X = np.ones((2, 16), np.float32)
    packed = pack_weight(np.ones((16, 3), np.float32), "deft16")
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(operator_library)
    Y = run_gemm(gemm_model(X, packed, np.zeros(3, np.float32)), X, options=options)
    np.testing.assert_allclose(Y, reference(X, packed, 0.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "batch", "asked"),
    [
        (256, 128, 1, 64, False),
        (64, 64, 3, 64, False),
        (128, 32, 3, 64, True),  # a tile has 64 outputs at least
        (512, 512, 3, 64, True),  # so long that a small gain counts
        (512, 512, 3, 1, False),
    ],
)
def test_cudnn_is_asked_where_it_may_gain(operator_library, manifest, channels, outputs, kernel, batch, asked):
    window = Window.of((kernel, kernel), pads=(kernel // 2,) * 4)
    packed = pack_weight(np.zeros((kernel * kernel * channels, outputs), np.float32), "half")
    X = np.zeros((1, 56, 56, channels), np.float16)
    node = conv_model(X, packed, np.zeros(outputs, np.float32), window).graph.node[0]
    kind = TensorProto.FLOAT16
    names = [name for name, _ in conv_kernels_for(node, kind, kind, (batch, 56, 56), H200, operator_library)]
    assert ("cudnn" in names) == asked
    if 80 in manifest.kernels:
        a100 = Device("NVIDIA A100", 80, 108, 40 << 30)
        names = [name for name, _ in conv_kernels_for(node, kind, kind, (batch, 56, 56), a100, operator_library)]
        assert "cudnn" in names


@pytest.mark.parametrize("count", [0, -5, 1 << 32])
def test_a_gpu_without_multiprocessors_is_refused(operator_library, kernels, count):
    with pytest.raises(UnsupportedError, match=f"multiprocessors = {count} is out of range"):
        kernels([64], multiprocessors=count)
    with pytest.raises(UnsupportedError, match=f"multiprocessors = {count} is out of range"):
        colours(operator_library, (1, 56, 56), multiprocessors=count)


@pytest.mark.parametrize("image", [(1,), (1, 56), (1, 56, 56, 3)], ids=len)
def test_images_of_other_than_three_sizes_are_refused(operator_library, image):
    with pytest.raises(UnsupportedError, match=r"expected \(count, 3\)"):
        colours(operator_library, image)


def colours(library, image, multiprocessors=132):
    """The kernels of a filter for three colours."""
    packed = pack_weight(np.zeros((27, 64), np.float32), "half")
    X = np.zeros((1, 56, 56, 3), np.float16)
    node = conv_model(X, packed, np.zeros(64, np.float32), Window.of((3, 3))).graph.node[0]
    kind = TensorProto.FLOAT16
    return conv_kernels_for(node, kind, kind, image, Device("a GPU", 90, multiprocessors, 1), library)
