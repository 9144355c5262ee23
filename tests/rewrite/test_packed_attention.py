"""MultiHeadAttention between DeftGemm nodes becomes one product and DeftAttention, which compute the same."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from deftonnx.formats import pack_weight
from deftonnx.formats.functions import attach_functions
from deftonnx.formats.gemm_function import gemm_node, weight_tensors
from deftonnx.rewrite.attention.pack import pack_attention
from deftonnx.rewrite.finish import finish
from deftonnx.rewrite.normalise import import_model

FEATURES, HEADS = 32, 2


def attention(
    *, N=32, others="qkv", biased=True, kept=(), activations=("none",) * 3, more=(), scale=0.25, **attributes
):
    """X → three DeftGemm nodes → MultiHeadAttention, all float16; `others`: which of them read X."""
    rng = np.random.default_rng(0)
    nodes, initializers = [], []
    for part, activation in zip("qkv", activations, strict=True):
        packed = pack_weight(rng.standard_normal((16 * len(kept) or FEATURES, N)).astype(np.float32), "half")
        initializers += weight_tensors(packed, f"W{part}")
        initializers.append(onnx.numpy_helper.from_array(rng.standard_normal(N).astype(np.float32), f"bias{part}"))
        x = "X" if part in others else "other"
        names = [x, f"W{part}", f"W{part}_scale", f"bias{part}"]
        if kept:
            initializers.append(onnx.numpy_helper.from_array(np.array(kept, np.int32), f"kept{part}"))
            names.append(f"kept{part}")
        blocks = {"features": FEATURES, "block": 16} if kept else {}
        options = {"name": f"make_{part}", "output_type": TensorProto.FLOAT16, "activation": activation}
        nodes.append(gemm_node(names, part, packed, **options, **blocks))
    inputs = ["q", "k", "v", *(["", "", "mask"] if biased else [])]
    attributes |= {"num_heads": HEADS, "scale": scale} if scale else {"num_heads": HEADS}
    nodes.append(helper.make_node("MultiHeadAttention", inputs, ["Y"], "attend", domain="com.microsoft", **attributes))
    given = [("X", ["B", "S", FEATURES]), ("other", ["B", "S", FEATURES]), ("mask", ["B", 1, "S", "S"])]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name, shape in given]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["B", "S", N]) for name in ("Y", *more)]
    graph = helper.make_graph(nodes, "attention", tensors, results, initializers)
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 17), ("com.microsoft", 1))]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    attach_functions(model, 17)
    return model


def packed(model):
    graph = import_model(model)
    count = pack_attention(graph)
    return count, finish(graph, model, {}).whole()


def run(model):
    rng = np.random.default_rng(1)
    mask = np.where(rng.random((3, 1, 7, 7)) < 0.3, -1e4, 0).astype(np.float16)
    feed = {name: rng.standard_normal((3, 7, FEATURES)).astype(np.float16) for name in ("X", "other")}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["Y"], {**feed, "mask": mask})[0].astype(np.float64)


@pytest.mark.parametrize(
    "options",
    [{}, {"biased": False}, {"N": 64}, {"kept": (1,)}, {"activations": ("relu",) * 3}],
    ids=["masked", "plain", "wider_heads", "kept_blocks", "activation"],
)
def test_one_product_and_one_attention(options):
    model = attention(**options)
    count, result = packed(model)
    assert count == 1
    assert [node.op_type for node in result.graph.node] == ["DeftGemm", "DeftAttention"]
    want = run(model)
    assert np.linalg.norm(run(result) - want) <= 2e-3 * np.linalg.norm(want)


@pytest.mark.parametrize(
    "options",
    [
        {"others": "qk"},
        {"N": 24},
        {"activations": ("none", "none", "relu")},
        {"more": ("k",)},
        {"scale": None},
        {"unidirectional": 1},
    ],
    ids=["another_input", "odd_head_size", "other_activation", "key_is_an_output", "default_scale", "causal"],
)
def test_what_is_left(options):
    count, result = packed(attention(**options))
    assert count == 0
    assert "MultiHeadAttention" in [node.op_type for node in result.graph.node]
