"""Unpacking deft8 codes to 16 bits, four codes at a time, without branches, for every E at run time.

The code's bits, moved to the top of a 16-bit word and its magnitude shifted right until the exponent's lowest
bit meets the target's, are a 16-bit float too small by 2^(target bias - code bias), subnormals included:

  float16 (E <= 5)   shift 5 - E; the factor is left to the float32 accumulator's scale.
  bfloat16           shift 8 - E; the products would leave float32's range, so the factor, a power of two, is
                     multiplied in at once (fma with -0: sm_80 has no bfloat16 multiplication).
"""

import triton
import triton.language as tl

_TO_FLOAT16 = tl.constexpr("""
{
    .reg .b32 a, b, m;
    prmt.b32 a, $2, 0, 0x1404;
    prmt.b32 b, $2, 0, 0x3424;
    and.b32 m, a, 0x7f007f00;
    shr.u32 m, m, $3;
    lop3.b32 $0, a, 0x80008000, m, 0xea;
    and.b32 m, b, 0x7f007f00;
    shr.u32 m, m, $3;
    lop3.b32 $1, b, 0x80008000, m, 0xea;
}
""")

_TO_BFLOAT16 = tl.constexpr("""
{
    .reg .b32 a, b, m, z;
    mov.b32 z, 0x80008000;
    prmt.b32 a, $2, 0, 0x1404;
    prmt.b32 b, $2, 0, 0x3424;
    and.b32 m, a, 0x7f007f00;
    shr.u32 m, m, $3;
    lop3.b32 a, a, 0x80008000, m, 0xea;
    and.b32 m, b, 0x7f007f00;
    shr.u32 m, m, $3;
    lop3.b32 b, b, 0x80008000, m, 0xea;
    fma.rn.bf16x2 $0, a, $7, z;
    fma.rn.bf16x2 $1, b, $7, z;
}
""")


@triton.jit
def decode_deft8(codes, shift, factor, TARGET: tl.constexpr):
    """Codes (uint8) to TARGET, float16 or bfloat16; shift and factor as above, factor twice in one int32."""
    if tl.float16 == TARGET:
        return tl.inline_asm_elementwise(
            _TO_FLOAT16, "=r,=r,r,r,r,r,r", [codes, shift], dtype=tl.float16, is_pure=True, pack=4
        )
    else:  # noqa: RET505  (a compile-time return does not end the function)
        return tl.inline_asm_elementwise(
            _TO_BFLOAT16,
            "=r,=r,r,r,r,r,r,r,r,r,r",
            [codes, shift, factor],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=4,
        )
