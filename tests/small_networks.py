"""A small transformer block as exporters write it, a small convolutional network, and inputs for both."""

from typing import Any

import numpy as np
import onnx
from models import model

TRANSFORMER = """graph (float[N,10,32] x) => (float[N,10,32] z)
    <float[32,32] wq, float[32] bq, float[32,32] wk, float[32,32] wv, float[32,32] wo, float[32] bo, float[32] g,
     float[32] h, float[32,64] w1, float[64] b1, float[64,32] w2, float[32] b2, float scale, float root, float one,
     float half> {
    n = LayerNormalization (x, g, h)
    [q] q0 = MatMul (n, wq) q = Add (bq, q0) [k] k = MatMul (n, wk) [v] v = MatMul (n, wv)
    kt = Transpose <perm = [0,2,1]> (k) s = MatMul (q, kt) t = Mul (s, scale) p = Softmax <axis = -1> (t)
    a = MatMul (p, v) [o] o0 = MatMul (a, wo) o = Add (o0, bo) r = Add (x, o)
    [up] u0 = MatMul (r, w1) u = Add (u0, b1)
    e0 = Div (u, root) e1 = Erf (e0) e2 = Add (e1, one) e3 = Mul (u, e2) e = Mul (e3, half)
    [down] d0 = MatMul (e, w2) d = Add (d0, b2) z = Add (r, d) }"""
NUMBERS = {"scale": np.array(32**-0.5), "root": np.array(2**0.5), "one": np.array(1), "half": np.array(0.5)}


def transformer(opset: int = 17) -> onnx.ModelProto:
    """One block: attention and a GELU feed-forward part, both with residuals."""
    return model(TRANSFORMER, opset=opset, **NUMBERS)


def convolutional() -> onnx.ModelProto:
    """A convolution whose blocks can be eliminated, between another one and two dense layers."""
    return model("""graph (float[N,16,6,6] x) => (float[N,10] z)
        <float[32,16,1,1] u, float[32,32,3,3] v, float[512,40] w, float[40] b, float[40,10] t> {
        [stem] s = Conv (x, u) p = Relu (s) [body] c = Conv (p, v) q = Relu (c) f = Flatten (q)
        [fc] h = Gemm (f, w, b) r = Relu (h) [head] z = MatMul (r, t) }""")


def with_a_branch(opset: int) -> onnx.ModelProto:
    """A layer, and an If whose branches read it."""
    return model(
        """graph (float[N,16] x, bool b) => (float[N,16] y) <float[16,16] w> {
            a = MatMul (x, w)
            y = If (b) <then_branch = g () => (float[N,16] t) { t = Relu (a) },
                        else_branch = h () => (float[N,16] e) { e = Neg (a) }> }""",
        opset=opset,
    )


def images(count: int = 60) -> np.ndarray[Any, Any]:
    """Inputs of `convolutional`."""
    return np.random.default_rng(4).standard_normal((count, 16, 6, 6)).astype(np.float32)


def samples(count: int = 40) -> np.ndarray[Any, Any]:
    """Inputs of `transformer`, correlated."""
    rng = np.random.default_rng(3)
    return (rng.standard_normal((count, 10, 8)) @ rng.standard_normal((8, 32))).astype(np.float32)
