"""The fused end of a kernel: residual, activation, the store in Y's type. All choices are run-time values.

Three curves g(z) cover the activations; Y is z * g(z) if `gated`, else g(z):

  0 LINEAR   clamp(slope z + offset, low, high)          none, relu, clip, hard_sigmoid, hard_swish
  1 SIGMOID  slope sigmoid(z (low + high z²)) + offset   sigmoid, tanh, silu, gelu_tanh
  2 ERF      slope (1 + erf(z / sqrt 2)) + offset        gelu
  3 SLOPES   z if z >= 0 else slope z                    leaky_relu
"""

import triton
import triton.language as tl

FLOAT32 = tl.constexpr(0)
FLOAT16 = tl.constexpr(1)  # 2 is bfloat16


@triton.jit
def _address(base, element: tl.constexpr):
    return base.to(tl.pointer_type(element))


@triton.jit
def _s_curve(z, is_erf, slope, low, high):
    """Curve 1, or 2 if `is_erf`, without its offset: one code for both, since every element repeats it.

    (1 + erf(z / sqrt 2)) / 2 is sigmoid(z p(z²)), to 3e-8 with this polynomial p, fitted up to |z| = 5.6; beyond that
    it is 0 or 1 to 1e-8, as the sigmoid is.
    """
    square = tl.minimum(z * z, 64.0)
    p = tl.where(is_erf, 3.51234618e-09, 0.0)
    p = p * square + tl.where(is_erf, -2.64526834e-07, 0.0)
    p = p * square + tl.where(is_erf, 7.92949061e-06, 0.0)
    p = p * square + tl.where(is_erf, -1.10612396e-04, 0.0)
    p = p * square + tl.where(is_erf, -6.51899326e-05, 0.0)
    p = p * square + tl.where(is_erf, 7.26661691e-02, high)
    p = p * square + tl.where(is_erf, 1.59576988, low)
    return tl.where(is_erf, 2.0 * slope, slope) * tl.sigmoid(z * p)


@triton.jit
def finish(z, residual, offsets, inside, y_type, curve, gated, slope, offset, low, high):
    """Activation of z (BLOCK_M, BLOCK_N) float32 plus the residual, unless that is null."""
    if residual.to(tl.int64) != 0:
        if y_type == FLOAT32:
            z += tl.load(_address(residual, tl.float32) + offsets, mask=inside, other=0.0)
        else:
            bits = tl.load(_address(residual, tl.int16) + offsets, mask=inside, other=0)
            half = bits.to(tl.float16, bitcast=True).to(tl.float32)
            bfloat16 = bits.to(tl.bfloat16, bitcast=True).to(tl.float32)
            z += tl.where(y_type == FLOAT16, half, bfloat16)
    if curve == 0:
        g = tl.minimum(
            tl.maximum(z * slope + offset, low, propagate_nan=tl.PropagateNan.ALL),
            high,
            propagate_nan=tl.PropagateNan.ALL,
        )
    elif curve == 3:
        g = tl.where(z < 0, z * slope, z)
    else:
        g = _s_curve(z, curve == 2, slope, low, high) + offset
    if gated:
        g = g * z
    return g


@triton.jit
def store_tile(y, offsets, value, inside, y_type):
    """Store float32 values in Y's type."""
    if y_type == FLOAT32:
        tl.store(_address(y, tl.float32) + offsets, value, mask=inside)
    else:
        half = value.to(tl.float16).to(tl.int16, bitcast=True)
        bfloat16 = value.to(tl.bfloat16).to(tl.int16, bitcast=True)
        tl.store(_address(y, tl.int16) + offsets, tl.where(y_type == FLOAT16, half, bfloat16), mask=inside)
