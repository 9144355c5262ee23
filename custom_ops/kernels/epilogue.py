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
FLOAT16 = tl.constexpr(1)
BFLOAT16 = tl.constexpr(2)


@triton.jit
def _address(base, element: tl.constexpr):
    return base.to(tl.pointer_type(element))


@triton.jit
def _load_float(base, offsets, inside, element: tl.constexpr):
    return tl.load(_address(base, element) + offsets, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def finish(z, residual, offsets, inside, y_type, curve, gated, slope, offset, low, high):
    """Activation of z (BLOCK_M, BLOCK_N) float32 plus the residual, unless that is null."""
    if residual.to(tl.int64) != 0:
        if y_type == FLOAT32:
            z += _load_float(residual, offsets, inside, tl.float32)
        elif y_type == FLOAT16:
            z += _load_float(residual, offsets, inside, tl.float16)
        else:
            z += _load_float(residual, offsets, inside, tl.bfloat16)
    if curve == 0:
        g = tl.minimum(
            tl.maximum(z * slope + offset, low, propagate_nan=tl.PropagateNan.ALL),
            high,
            propagate_nan=tl.PropagateNan.ALL,
        )
    elif curve == 1:
        g = slope * tl.sigmoid(z * (low + high * z * z)) + offset
    elif curve == 2:
        g = slope * (1.0 + tl.erf(z * 0.7071067811865476)) + offset
    else:
        g = tl.where(z < 0, z * slope, z)
    if gated:
        g = g * z
    return g


@triton.jit
def store_tile(y, offsets, value, inside, y_type):
    """Store float32 values in Y's type."""
    if y_type == FLOAT32:
        tl.store(_address(y, tl.float32) + offsets, value, mask=inside)
    elif y_type == FLOAT16:
        tl.store(_address(y, tl.float16) + offsets, value.to(tl.float16), mask=inside)
    else:
        tl.store(_address(y, tl.bfloat16) + offsets, value.to(tl.bfloat16), mask=inside)
