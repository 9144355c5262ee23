"""DeftGemm on tensor cores: Y = activation(X · (value(W)ᵀ * scale) + bias + residual), sums in float32.

X is (M, features) row-major, W the codes (N, Kp) of layout version 1, Y and residual (M, N). One program
makes one (BLOCK_M, BLOCK_N) tile of Y; its K loop walks all features or the kept blocks alone.

W is multiplied exactly:
  * codes that are of X's own type go straight to the tensor core;
  * deft8 codes are unpacked in registers, two or four an instruction, with E a run-time value (decode.py);
  * where the weights need bfloat16's range and X is wider than that, X is split into TERMS bfloat16 values
    whose sum it is (two for float16, three for float32), one multiplication each;
  * what fits neither (COMPUTE float32: half weights under bfloat16 or float32, deft16q, fp32) is multiplied
    as TF32, operands of more than its 11 bits in two parts.

Tensor cores cut a sum off at each step where float32 addition rounds it: measured on Hopper, 1.2e-9 of the
result per feature. Over a long K that is too much for float32 results; APART sums every K step apart and adds
these sums with rounding.

LOADER tells how tiles reach shared memory:
  tma         tensor maps; K, features and N multiples of 16; all features.
  aligned     pointers, 16-byte loads; K, features and N multiples of 16; all features.
  aligned_kept  the same; all features, or kept blocks of 8 features or more.
  element     pointers, any shape, any kept block.
"""

import triton
import triton.language as tl
from decode import decode_deft8
from epilogue import finish, store_tile


@triton.jit
def _tile_index(tile, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Row and column of a tile: columns of 8 row tiles, so that neighbours in time share rows of W in L2."""
    GROUP: tl.constexpr = 8
    rows = tl.cdiv(M, BLOCK_M)
    columns = tl.cdiv(N, BLOCK_N)
    group = tile // (GROUP * columns)
    first = group * GROUP
    height = tl.minimum(rows - first, GROUP)
    within = tile % (GROUP * columns)
    return first + within % height, within // height


@triton.jit
def _multiply(
    x, w, acc, zero, TERMS: tl.constexpr, COMPUTE: tl.constexpr, SWAP: tl.constexpr, APART: tl.constexpr
):  # fmt: skip
    """acc + x · wᵀ, or its transpose if SWAP; x (BLOCK_M, BLOCK_K) in TERMS parts, smallest first.

    zero: 0, but not known to the compiler, which would otherwise turn a sum apart into one that is not.
    """
    part = tl.full(acc.shape, zero, tl.float32) if APART else acc
    if tl.float32 == COMPUTE:
        part = _dot_tf32(x, w, part, SWAP)
    else:
        high = x.to(COMPUTE)
        if TERMS > 1:
            rest = x.to(tl.float32) - high.to(tl.float32)
            middle = rest.to(COMPUTE)
            if TERMS > 2:
                part = _dot((rest - middle.to(tl.float32)).to(COMPUTE), w, part, SWAP)
            part = _dot(middle, w, part, SWAP)
        part = _dot(high, w, part, SWAP)
    return acc + part if APART else part


@triton.jit
def _dot_tf32(x, w, acc, SWAP: tl.constexpr):
    """acc + x · wᵀ to about 2^-20 of the products; operands wider than TF32 in two parts, smallest first."""
    x_wide: tl.constexpr = x.dtype == tl.float32
    w_wide: tl.constexpr = w.dtype == tl.float32
    x_high = _cut(x) if x_wide else x.to(tl.float32)
    w_high = _cut(w) if w_wide else w.to(tl.float32)
    if w_wide:
        acc = _dot(x_high, w - w_high, acc, SWAP)
    if x_wide:
        acc = _dot(x - x_high, w_high, acc, SWAP)
    return _dot(x_high, w_high, acc, SWAP)


@triton.jit
def _cut(x):
    """The float32 x without the mantissa bits that TF32 lacks."""
    return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def _dot(x, w, acc, SWAP: tl.constexpr):
    # both returns need their branch: a compile-time return does not end the function
    if SWAP:
        return tl.dot(w, x.T, acc, input_precision="tf32")
    else:  # noqa: RET505
        return tl.dot(x, w.T, acc, input_precision="tf32")


@triton.jit
def _columns(k, kept, block_shift, K, LOADER: tl.constexpr):
    """Columns of X of the features k that are multiplied: k itself, or those of the list of kept blocks.

    Without a branch, which would keep loads by these columns from being started ahead.
    """
    if LOADER == "aligned":
        return k
    else:  # noqa: RET505  (a compile-time return does not end the function)
        listed = kept.to(tl.int64) != 0
        block = tl.load(kept + (k >> block_shift), mask=(k < K) & listed, other=0)
        columns = tl.where(listed, (block << block_shift) + (k & ((1 << block_shift) - 1)), k)
        if LOADER == "aligned_kept":
            # a hint on what a call returns would be lost when the call is inlined
            columns = tl.max_contiguous(tl.multiple_of(columns, 8), 8)
        return columns


@triton.jit
def _product_by_maps(
    x, w, row, column, K, decode_shift, decode_factor,
    TERMS: tl.constexpr, DECODE: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SWAP: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """The tile at (row, column), or its transpose if SWAP, through tensor maps x and w."""
    ROWS: tl.constexpr = BLOCK_N if SWAP else BLOCK_M
    COLUMNS: tl.constexpr = BLOCK_M if SWAP else BLOCK_N
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    zero = (K >> 31).to(tl.float32)
    for step in range(tl.cdiv(K, BLOCK_K)):
        x_tile = x.load([row, step * BLOCK_K])
        w_tile = w.load([column, step * BLOCK_K])
        if DECODE:
            w_tile = decode_deft8(w_tile, decode_shift, decode_factor, COMPUTE)
        acc = _multiply(x_tile, w_tile, acc, zero, TERMS, COMPUTE, SWAP, APART)
    return acc


@triton.jit
def _product_by_pointers(
    x, w, kept, row, column, M, N, K, features, padded_K, block_shift, decode_shift, decode_factor,
    LOADER: tl.constexpr, TERMS: tl.constexpr, DECODE: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SWAP: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """The tile at (row, column), or its transpose if SWAP, through pointers x and w."""
    ROWS: tl.constexpr = BLOCK_N if SWAP else BLOCK_M
    COLUMNS: tl.constexpr = BLOCK_M if SWAP else BLOCK_N
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    zero = (K >> 31).to(tl.float32)
    # rows beyond the end read the last row: their results are not stored
    x_rows = tl.minimum(row + tl.arange(0, BLOCK_M), M - 1).to(tl.int64)[:, None] * features
    w_rows = tl.minimum(column + tl.arange(0, BLOCK_N), N - 1).to(tl.int64)[:, None] * padded_K
    for step in range(tl.cdiv(K, BLOCK_K)):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        inside = (k < K)[None, :]
        x_columns = _columns(k, kept, block_shift, K, LOADER)
        x_tile = tl.load(x + x_rows + x_columns[None, :], mask=inside, other=0.0)
        if w.dtype.element_ty == tl.uint32:
            w_tile = _load_deft16q(w + w_rows // 2, step * BLOCK_K // 2, K, BLOCK_K // 2)
        else:
            w_tile = tl.load(w + w_rows + k[None, :], mask=inside, other=0)
        if DECODE:
            w_tile = decode_deft8(w_tile, decode_shift, decode_factor, COMPUTE)
        acc = _multiply(x_tile, w_tile, acc, zero, TERMS, COMPUTE, SWAP, APART)
    return acc


@triton.jit
def _load_deft16q(rows, first, K, WORDS: tl.constexpr):
    """Words (N, WORDS) of two features each to their float32 values (N, 2 WORDS)."""
    word = first + tl.arange(0, WORDS)
    words = tl.load(rows + word[None, :], mask=(2 * word < K)[None, :], other=0)
    pairs = tl.join((words << 16).to(tl.float32, bitcast=True), words.to(tl.float32, bitcast=True))
    return pairs.reshape(words.shape[0], 2 * WORDS)


@triton.jit
def _finish_tile(
    acc, row, column, scale, bias, residual, y, M, N, accumulator_scale,
    curve, gated, slope, offset, low, high, y_type, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Scale, bias, residual, activation and store of the tile acc (BLOCK_M, BLOCK_N) at (row, column)."""
    rows = row + tl.arange(0, BLOCK_M)
    if BLOCK_M * BLOCK_N > 8192:
        # in halves: the whole tile and its addresses would not fit the registers
        left, right = acc.reshape(BLOCK_M, 2, BLOCK_N // 2).permute(0, 2, 1).split()
    else:
        left = acc
    HALF: tl.constexpr = left.shape[1]
    for part in tl.static_range(BLOCK_N // HALF):
        columns = column + part * HALF + tl.arange(0, HALF)
        z = left if part == 0 else right
        scales = tl.load(scale + columns, mask=columns < N, other=0.0) * accumulator_scale
        biases = tl.load(bias + columns, mask=columns < N, other=0.0)
        z = z * scales[None, :] + biases[None, :]
        inside = (rows < M)[:, None] & (columns < N)[None, :]
        offsets = rows.to(tl.int64)[:, None] * N + columns[None, :]
        z = finish(z, residual, offsets, inside, y_type, curve, gated, slope, offset, low, high)
        store_tile(y, offsets, z, inside, y_type)


@triton.jit
def gemm_tensor_core(
    x,  # (M, features) pointer or tensor map
    w,  # (N, Kp) pointer or tensor map
    scale,  # (N,) float32
    bias,  # (N,) float32
    kept,  # (blocks,) int32 or null
    residual,  # (M, N) of Y's type or null
    y,  # (M, N)
    M,
    N,
    K,  # features that are multiplied
    features,  # row length of X
    padded_K,  # row length of W
    block_shift,  # log2 of the features a kept block has
    decode_shift,  # see decode.py
    decode_factor,
    accumulator_scale,
    curve,  # activation, see epilogue.py
    gated,
    slope,
    offset,
    low,
    high,
    y_type,
    LOADER: tl.constexpr,
    TERMS: tl.constexpr,
    DECODE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr,
    APART: tl.constexpr,
):
    row_tile, column_tile = _tile_index(tl.program_id(0), M, N, BLOCK_M, BLOCK_N)
    row, column = row_tile * BLOCK_M, column_tile * BLOCK_N
    if LOADER == "tma":
        acc = _product_by_maps(
            x, w, row, column, K, decode_shift, decode_factor,
            TERMS, DECODE, COMPUTE, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, APART,
        )  # fmt: skip
    else:
        acc = _product_by_pointers(
            x, w, kept, row, column, M, N, K, features, padded_K, block_shift, decode_shift, decode_factor,
            LOADER, TERMS, DECODE, COMPUTE, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, APART,
        )  # fmt: skip
    _finish_tile(
        acc.T if SWAP else acc, row, column, scale, bias, residual, y, M, N, accumulator_scale,
        curve, gated, slope, offset, low, high, y_type, BLOCK_M, BLOCK_N,
    )  # fmt: skip
