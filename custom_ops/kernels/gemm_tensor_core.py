"""DeftGemm on tensor cores: Y = activation(X · (value(W)ᵀ * scale) + bias + residual), sums in float32.

X is (M, features) row-major, W the codes (N, Kp) of layout version 1, Y and residual (M, N). One program makes
one (BLOCK_M, BLOCK_N) tile of Y; its K loop walks all features or the kept blocks alone.

W is multiplied in 16 bits, exactly:
  * codes that are of X's own type go straight to the tensor core;
  * deft8 codes are unpacked in registers, two or four an instruction, with E a run-time value (decode.py);
  * where the weights need bfloat16's range and X is wider than that, X is split into TERMS bfloat16 values
    whose sum it is (two for float16, three for float32), one multiplication each.

LOADER tells how tiles reach shared memory:
  tma         tensor maps; K, features and N multiples of 16; kept blocks of whole K steps.
  aligned     pointers, 16-byte loads; K, features and N multiples of 16; kept blocks multiples of 8 features.
  element     pointers, any shape, any kept block.
"""

import triton
import triton.language as tl
from decode import decode_deft8
from epilogue import finish, store_tile


@triton.jit
def _tile_index(M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The tile of this program: columns of 8 row tiles, so that neighbours in time share rows of W in L2."""
    GROUP: tl.constexpr = 8
    rows = tl.cdiv(M, BLOCK_M)
    columns = tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    group = program // (GROUP * columns)
    first = group * GROUP
    height = tl.minimum(rows - first, GROUP)
    within = program % (GROUP * columns)
    return first + within % height, within // height


@triton.jit
def _multiply(x, w, acc, TERMS: tl.constexpr, COMPUTE: tl.constexpr, SWAP: tl.constexpr):
    """acc + x · wᵀ, or its transpose if SWAP; x (BLOCK_M, BLOCK_K) in TERMS parts, smallest first."""
    high = x.to(COMPUTE)
    if TERMS == 3:
        rest = x.to(tl.float32) - high.to(tl.float32)
        middle = rest.to(COMPUTE)
        low = (rest - middle.to(tl.float32)).to(COMPUTE)
        acc = _dot(low, w, acc, SWAP)
        acc = _dot(middle, w, acc, SWAP)
    elif TERMS == 2:
        low = (x.to(tl.float32) - high.to(tl.float32)).to(COMPUTE)
        acc = _dot(low, w, acc, SWAP)
    return _dot(high, w, acc, SWAP)


@triton.jit
def _dot(x, w, acc, SWAP: tl.constexpr):
    # both returns need their branch: a compile-time return does not end the function
    if SWAP:
        return tl.dot(w, x.T, acc)
    else:  # noqa: RET505
        return tl.dot(x, w.T, acc)


@triton.jit
def _kept_columns(k, kept, block_shift, K, LOADER: tl.constexpr):
    """Columns of X of the features k of the shortened K, by the list of kept blocks, unless it is null."""
    columns = k
    if kept.to(tl.int64) != 0:
        within = k & ((1 << block_shift) - 1)
        columns = (tl.load(kept + (k >> block_shift), mask=k < K, other=0) << block_shift) + within
    if LOADER == "aligned":
        columns = tl.max_contiguous(tl.multiple_of(columns, 8), 8)
    return columns


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
):
    row_tile, column_tile = _tile_index(M, N, BLOCK_M, BLOCK_N)
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    ROWS: tl.constexpr = BLOCK_N if SWAP else BLOCK_M
    COLUMNS: tl.constexpr = BLOCK_M if SWAP else BLOCK_N
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)

    if LOADER == "tma":
        for step in range(tl.cdiv(K, BLOCK_K)):
            x_column = step * BLOCK_K
            if kept.to(tl.int64) != 0:
                per_block = block_shift - tl.constexpr(BLOCK_K.bit_length() - 1)
                x_column = (
                    (tl.load(kept + (step >> per_block)) << per_block) + (step & ((1 << per_block) - 1))
                ) * BLOCK_K
            x_tile = x.load([row_tile * BLOCK_M, x_column])
            w_tile = w.load([column_tile * BLOCK_N, step * BLOCK_K])
            w_tile = decode_deft8(w_tile, decode_shift, decode_factor, COMPUTE) if DECODE else w_tile
            acc = _multiply(x_tile, w_tile, acc, TERMS, COMPUTE, SWAP)
    else:
        # rows beyond the end read the last row: their results are not stored
        x_rows = tl.minimum(rows, M - 1).to(tl.int64)[:, None] * features
        w_rows = tl.minimum(columns, N - 1).to(tl.int64)[:, None] * padded_K
        for step in range(tl.cdiv(K, BLOCK_K)):
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)
            inside = (k < K)[None, :]
            x_columns = _kept_columns(k, kept, block_shift, K, LOADER)
            x_tile = tl.load(x + x_rows + x_columns[None, :], mask=inside, other=0.0)
            w_tile = tl.load(w + w_rows + k[None, :], mask=inside, other=0)
            w_tile = decode_deft8(w_tile, decode_shift, decode_factor, COMPUTE) if DECODE else w_tile
            acc = _multiply(x_tile, w_tile, acc, TERMS, COMPUTE, SWAP)

    if SWAP:
        acc = acc.T
    first = column_tile * BLOCK_N
    if BLOCK_M * BLOCK_N > 8192:
        # in halves: the whole tile and its addresses would not fit the registers
        left, right = acc.reshape(BLOCK_M, 2, BLOCK_N // 2).permute(0, 2, 1).split()
    else:
        left = acc
    HALF: tl.constexpr = left.shape[1]
    for part in tl.static_range(BLOCK_N // HALF):
        part_columns = first + part * HALF + tl.arange(0, HALF)
        z = left if part == 0 else right
        scales = tl.load(scale + part_columns, mask=part_columns < N, other=0.0) * accumulator_scale
        biases = tl.load(bias + part_columns, mask=part_columns < N, other=0.0)
        z = z * scales[None, :] + biases[None, :]
        inside = (rows < M)[:, None] & (part_columns < N)[None, :]
        offsets = rows.to(tl.int64)[:, None] * N + part_columns[None, :]
        z = finish(z, residual, offsets, inside, y_type, curve, gated, slope, offset, low, high)
        store_tile(y, offsets, z, inside, y_type)
