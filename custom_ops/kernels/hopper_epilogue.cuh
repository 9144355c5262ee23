// The end of a tile whose sums are in wgmma's registers: scale, bias, residual, activation, store. Works a
// warp at a time, on units of 16 rows (the warp's) by 64 columns, without any barrier among warps.
//
// store_boxes and store_rows are the fast ways: no residual, Y of the operands' type, through shared memory
// in 16 bits. finish_units does everything else, through float32 units in shared memory, from which rows are
// read 8 features at a time.
#pragma once

#include "epilogue.cuh"
#include "ptx_hopper.cuh"

namespace hopper {

// The types' codes as in Epilogue.
template <class Element>
constexpr int kTypeCode = 0;
template <>
constexpr int kTypeCode<__half> = 1;
template <>
constexpr int kTypeCode<__nv_bfloat16> = 2;

struct Output {
  const float* scale;    // (N,)
  const float* bias;     // (N,)
  const void* residual;  // (M, N) of Y's type, or null
  void* y;               // (M, N)
  int M, N;
  int vectors;  // 8 features of Y and of the residual are aligned: N a multiple of 8, pointers of 16 bytes
  Epilogue epilogue;
};

constexpr int kUnitColumns = 64;
constexpr int kUnitBytes = 16 * kUnitColumns * 4;

// Byte offset of an even column of a row of a unit, `width` columns wide: 64, 32, 16 or 8. Chunks of 16 bytes
// are exchanged so that neither the rows of a fragment nor the lanes of a row meet in a bank.
__device__ inline uint32_t unit_offset(int width, int row, int column) {
  int chunk = (column >> 2) ^ (row & (width / 4 - 1) & 7);
  chunk ^= chunk >> 3 & 1;
  return (row * width + chunk * 4 + (column & 3)) * 4;
}

// Writes this warp's sums of COLUMNS columns, from d[first] on, as a unit.
template <int COLUMNS, int COUNT>
__device__ inline void store_unit(uint32_t shared, const float (&d)[COUNT], int first) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll
  for (int j = 0; j < COLUMNS / 8; ++j) {
    const float* four = d + first + 4 * j;
    ptx::store_shared(shared + unit_offset(COLUMNS, g, 8 * j + 2 * q), four[0], four[1]);
    ptx::store_shared(shared + unit_offset(COLUMNS, g + 8, 8 * j + 2 * q), four[2], four[3]);
  }
}

__device__ inline void put(float* to, const float4& v) { to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w; }

template <int COUNT>
__device__ inline void activate_all(const Epilogue& e, float (&z)[COUNT]) {
  // one branch for all elements
  if (e.curve == 0) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) z[i] = activate({0, e.gated, e.slope, e.offset, e.low, e.high, 0}, z[i]);
  } else if (e.curve == 1) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) z[i] = activate({1, e.gated, e.slope, e.offset, e.low, e.high, 0}, z[i]);
  } else if (e.curve == 2) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) z[i] = activate({2, e.gated, e.slope, e.offset, e.low, e.high, 0}, z[i]);
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) z[i] = activate({3, e.gated, e.slope, e.offset, e.low, e.high, 0}, z[i]);
  }
}

__device__ inline float2 unpack_pair(uint32_t pair, int type) {
  if (type == 1) return __half22float2(*reinterpret_cast<const __half2*>(&pair));
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
}

__device__ inline uint32_t pack_pair(float a, float b, int type) {
  uint32_t pair;
  if (type == 1) {
    *reinterpret_cast<__half2*>(&pair) = __floats2half2_rn(a, b);
  } else {
    *reinterpret_cast<__nv_bfloat162*>(&pair) = __floats2bfloat162_rn(a, b);
  }
  return pair;
}

__device__ inline void add_vector(float* z, const void* base, size_t at, int type) {
  if (type == 0) {
    const auto* from = reinterpret_cast<const float4*>(static_cast<const float*>(base) + at);
    const float4 a = from[0], b = from[1];
    z[0] += a.x, z[1] += a.y, z[2] += a.z, z[3] += a.w, z[4] += b.x, z[5] += b.y, z[6] += b.z, z[7] += b.w;
  } else {
    const uint4 raw = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(base) + at);
    const uint32_t pairs[] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 v = unpack_pair(pairs[i], type);
      z[2 * i] += v.x, z[2 * i + 1] += v.y;
    }
  }
}

__device__ inline void store_vector(void* base, size_t at, int type, const float* z) {
  if (type == 0) {
    auto* to = reinterpret_cast<float4*>(static_cast<float*>(base) + at);
    to[0] = make_float4(z[0], z[1], z[2], z[3]);
    to[1] = make_float4(z[4], z[5], z[6], z[7]);
  } else {
    *reinterpret_cast<uint4*>(static_cast<uint16_t*>(base) + at) =
        make_uint4(pack_pair(z[0], z[1], type), pack_pair(z[2], z[3], type), pack_pair(z[4], z[5], type),
                   pack_pair(z[6], z[7], type));
  }
}

// Scale and bias of the 8 columns that a lane ends, of a unit that starts at `column`.
struct LaneColumns {
  int first;  // of the lane's columns
  float4 scale[2] = {}, bias[2] = {};

  __device__ LaneColumns(const Output& o, int column, int width = kUnitColumns)
      : first(column + 8 * (threadIdx.x % (width / 8))) {
    if (!o.vectors || first >= o.N) return;
    const auto* scales = reinterpret_cast<const float4*>(o.scale + first);
    const auto* biases = reinterpret_cast<const float4*>(o.bias + first);
    scale[0] = scales[0], scale[1] = scales[1];
    bias[0] = biases[0], bias[1] = biases[1];
  }
};

// Rows of a unit that a warp ends at a time: a part.
__host__ __device__ constexpr int part_rows(int width) { return width < 16 ? 16 : 256 / width; }

// Ends PARTS parts of a unit from its row `first` on, 8 columns of a row a lane: the unit's sums lie in
// `shared`, and its rows begin at unit_row of Y. Needs output.vectors.
template <int PARTS>
__device__ inline void finish_vectors(const Output& o, uint32_t shared, int unit_row, int first,
                                      const LaneColumns& columns, int width = kUnitColumns) {
  const int lane = threadIdx.x % 32, lanes = width / 8;  // of a row
  const int within = 8 * (lane % lanes), height = part_rows(width);
  if (columns.first >= o.N || lane / lanes >= height) return;
  first += lane / lanes;
  const float4 *s = columns.scale, *b = columns.bias;
  float z[8 * PARTS];
#pragma unroll
  for (int part = 0; part < PARTS; ++part) {
    const int row = first + height * part;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* v = z + 8 * part + 4 * half;
      put(v, ptx::load_shared(shared + unit_offset(width, row, within + 4 * half)));
      v[0] = fmaf(v[0], s[half].x, b[half].x);
      v[1] = fmaf(v[1], s[half].y, b[half].y);
      v[2] = fmaf(v[2], s[half].z, b[half].z);
      v[3] = fmaf(v[3], s[half].w, b[half].w);
    }
    if (o.residual != nullptr && unit_row + row < o.M) {
      const size_t at = static_cast<size_t>(unit_row + row) * o.N + columns.first;
      add_vector(z + 8 * part, o.residual, at, o.epilogue.y_type);
    }
  }
  activate_all(o.epilogue, z);
#pragma unroll
  for (int part = 0; part < PARTS; ++part) {
    const int row = first + height * part;
    if (unit_row + row >= o.M) continue;
    const size_t at = static_cast<size_t>(unit_row + row) * o.N + columns.first;
    store_vector(o.y, at, o.epilogue.y_type, z + 8 * part);
  }
}

// The same of `rows` rows for any N and alignment, an element at a time.
__device__ inline void finish_elements(const Output& o, uint32_t shared, int unit_row, int first, int rows,
                                       int column, int width = kUnitColumns) {
  const int lane = threadIdx.x % 32, fours = width / 4;
#pragma unroll 1
  for (int i = lane; i < rows * fours; i += 32) {  // four columns at a time
    const int row = first + i / fours, within = 4 * (i % fours);
    const float4 v = ptx::load_shared(shared + unit_offset(width, row, within));
    const float values[] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int mine = column + within + j;
      if (unit_row + row >= o.M || mine >= o.N) continue;
      const size_t at = static_cast<size_t>(unit_row + row) * o.N + mine;
      float z = values[j] * o.scale[mine] + o.bias[mine];
      if (o.residual != nullptr) z += load_float(o.residual, at, o.epilogue.y_type);
      store_float(o.y, at, o.epilogue.y_type, activate(o.epilogue, z));
    }
  }
}

// Ends a unit of this warp's rows from `row` on, whatever the epilogue, PARTS parts at a time: its sums lie
// in `shared`.
template <int PARTS>
__device__ inline void finish_unit(const Output& o, uint32_t shared, int row, int column,
                                   const LaneColumns& columns, int width = kUnitColumns) {
  if (o.vectors) {
#pragma unroll 1
    for (int first = 0; first < 16; first += PARTS * part_rows(width)) {
      finish_vectors<PARTS>(o, shared, row, first, columns, width);
    }
  } else {
    finish_elements(o, shared, row, 0, 16, column, width);
  }
}

constexpr int kParts = 2;  // of a unit of 64 columns, that hide each other's latencies

// The same of UNITS units of 64 columns, which put(i) puts into `shared`, i a constant: their rows, from
// row_of(i) on, and first columns, column_of(i). A kernel has it once, because it is long.
template <int UNITS, int PARTS = kParts, class Put, class RowOf, class ColumnOf>
__device__ inline void finish_units(const Output& o, uint32_t shared, const Put& put, const RowOf& row_of,
                                    const ColumnOf& column_of) {
#pragma unroll 1
  for (int unit = 0; unit < UNITS; ++unit) {
    const int column = column_of(unit);
    if (column >= o.N) continue;
    const LaneColumns columns(o, column);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < UNITS; ++i) {  // registers have no run-time index
      if (i == unit) put(i);
    }
    __syncwarp();
    finish_unit<PARTS>(o, shared, row_of(unit), column, columns);
  }
}

__device__ inline float at_least(float v, float low) {  // NaN passes
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(v) : "f"(low));
  return v;
}
__device__ inline float at_most(float v, float high) {
  asm("min.NaN.f32 %0, %0, %1;" : "+f"(v) : "f"(high));
  return v;
}

// The same of two numbers of a 16-bit type each.
template <int TYPE>
__device__ inline uint32_t pair_at_least(uint32_t v, uint32_t low) {
  if (TYPE == 1) {
    asm("max.NaN.f16x2 %0, %0, %1;" : "+r"(v) : "r"(low));
  } else {
    asm("max.NaN.bf16x2 %0, %0, %1;" : "+r"(v) : "r"(low));
  }
  return v;
}
template <int TYPE>
__device__ inline uint32_t pair_at_most(uint32_t v, uint32_t high) {
  if (TYPE == 1) {
    asm("min.NaN.f16x2 %0, %0, %1;" : "+r"(v) : "r"(high));
  } else {
    asm("min.NaN.bf16x2 %0, %0, %1;" : "+r"(v) : "r"(high));
  }
  return v;
}

// GELU of z = 2 h, to 1.6e-4 of the exact one at most and 1.5e-4 of ‖Y‖: enough for Y in 16 bits. The normal
// distribution's integral is 0.5 + 0.5 tanh(u); u / z is fitted by a polynomial of |z| to the least greatest
// error. Few instructions count: while a warpgroup ends a tile, each takes time from the products of the
// other.
__device__ inline float gelu_of_twice(float h) {
  const float a = fabsf(h);
  const float u = a * fmaf(fmaf(0.251057898f, a, 0.042343314f), a, 1.585126954f);
  float t;
  asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(u));  // 1 from u = 8 on
  return fmaf(a, t, h);
}

// Epilogues that end in registers: kFloor is max(z, low) alone, as of ReLU or none; kLine a line and a clamp;
// kSigmoid as in Epilogue; kGelu the exact GELU, as far as 16 bits show it.
enum class Finish { kFloor, kLine, kSigmoid, kGelu };

__device__ inline Finish finish_of(const Epilogue& e) {
  if (e.curve == 1) return Finish::kSigmoid;
  if (e.curve == 2) return Finish::kGelu;
  const bool floor = e.slope == 1.0f && e.offset == 0.0f && e.high == __int_as_float(0x7f800000);
  return floor ? Finish::kFloor : Finish::kLine;
}

template <Finish FINISH>
__device__ inline float finish_one(const Epilogue& e, float z) {
  if (FINISH == Finish::kFloor) return at_least(z, e.low);
  if (FINISH == Finish::kLine) return at_most(at_least(fmaf(z, e.slope, e.offset), e.low), e.high);
  if (FINISH == Finish::kGelu) return gelu_of_twice(0.5f * z);
  return activate({1, e.gated, e.slope, e.offset, e.low, e.high, 0}, z);
}

// Scale and bias of two neighbouring columns.
struct ColumnPair {
  float2 scale, bias;
};

// Of the columns that a lane has sums of (see wgmma.cuh), from `column` on, pair j: read when it is asked
// for.
struct FragmentColumns {
  const Output& o;
  int column;

  __device__ ColumnPair at(int j) const {
    const int mine = min(column + 8 * j + 2 * (threadIdx.x % 4), o.N - 2);  // beyond the end: not stored
    return {*reinterpret_cast<const float2*>(o.scale + mine),
            *reinterpret_cast<const float2*>(o.bias + mine)};
  }
};

// The same, all COLUMNS / 8 pairs read at once, ahead of their use.
template <int COLUMNS>
struct ReadColumns {
  ColumnPair pairs[COLUMNS / 8];

  __device__ void read(const Output& o, int column) {
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; ++j) pairs[j] = FragmentColumns{o, column}.at(j);
  }
  __device__ const ColumnPair& at(int j) const { return pairs[j]; }
};

// Byte offset of 8 columns of a row in a buffer of 16 rows and COLUMNS columns in 16 bits: for 64, the copy
// engine's swizzle.
template <int COLUMNS>
__device__ inline uint32_t piece_offset(int row, int piece) {
  return row * 2 * COLUMNS + (piece ^ (row & (COLUMNS / 8 - 1) & 7)) * 16;
}

// What finish_pair is given of two columns: for GELU half of the scale and bias.
template <Finish FINISH>
__device__ inline ColumnPair prepared(ColumnPair c) {
  if (FINISH == Finish::kGelu) c.scale.x *= 0.5f, c.scale.y *= 0.5f, c.bias.x *= 0.5f, c.bias.y *= 0.5f;
  return c;
}

// Activation of scale d + bias (no residual) of two neighbouring columns, in type TYPE (see Epilogue).
// Clamped when rounded, two at a time: the order changes nothing.
template <int TYPE, Finish FINISH>
__device__ inline uint32_t finish_pair(const Epilogue& e, float a, float b, const ColumnPair& c) {
  const float x = fmaf(a, c.scale.x, c.bias.x), y = fmaf(b, c.scale.y, c.bias.y);
  if (FINISH == Finish::kGelu) return pack_pair(gelu_of_twice(x), gelu_of_twice(y), TYPE);
  if (FINISH == Finish::kSigmoid) {
    return pack_pair(finish_one<FINISH>(e, x), finish_one<FINISH>(e, y), TYPE);
  }
  const uint32_t low = pack_pair(e.low, e.low, TYPE), high = pack_pair(e.high, e.high, TYPE);
  if (FINISH == Finish::kFloor) return pair_at_least<TYPE>(pack_pair(x, y, TYPE), low);
  const uint32_t line = pack_pair(fmaf(x, e.slope, e.offset), fmaf(y, e.slope, e.offset), TYPE);
  return pair_at_most<TYPE>(pair_at_least<TYPE>(line, low), high);
}

// The same of 16 columns of the warp's 16 rows, d from d[first] on, to the lane's address `to` of a buffer.
template <int TYPE, Finish FINISH, int COUNT>
__device__ inline void finish_matrices(const Output& o, const float (&d)[COUNT], int first,
                                       const ColumnPair (&columns)[2], uint32_t to) {
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float* two = d + first + 2 * i;
    pairs[i] = finish_pair<TYPE, FINISH>(o.epilogue, two[0], two[1], columns[i / 2]);
  }
  ptx::store_matrices(to, pairs[0], pairs[1], pairs[2], pairs[3]);
}

// The same of COLUMNS columns, to a buffer; and of `more` blocks of rows, each to the next buffer. What they
// need to know of a column is read once.
template <int TYPE, Finish FINISH, int COLUMNS, int COUNT, class Columns, class... More>
__device__ inline void finish_fragments(const Output& o, const float (&d)[COUNT], int first,
                                        const Columns& columns, uint32_t buffer, const More&... more) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < COLUMNS / 8; j += 2) {
    const ColumnPair two[] = {prepared<FINISH>(columns.at(j)), prepared<FINISH>(columns.at(j + 1))};
    // lane 8 i + r addresses row r of matrix i: columns 8 (j + i / 2) ..., rows 8 (i % 2) ...
    uint32_t to = buffer + piece_offset<COLUMNS>(lane % 16, j + lane / 16);
    finish_matrices<TYPE, FINISH>(o, d, first + 4 * j, two, to);
    (finish_matrices<TYPE, FINISH>(o, more, first + 4 * j, two, to += kUnitBytes / 2), ...);
  }
}

// Ends this warp's 16 rows of a tile in registers, to Y's map, whose boxes are (16, 64), and those of a
// second block of 64 rows. `shared`: one unit of the warp's own, made of two buffers.
template <int TYPE, Finish FINISH, int COUNT, class... Second>
__device__ inline void store_boxes(const Output& o, const ptx::TensorMap& map, const float (&d)[COUNT],
                                   uint32_t shared, int row, int column, const Second&... second) {
  constexpr int kBlocks = 1 + sizeof...(second), kBuffer = kUnitBytes / 2;
  static_assert(kBlocks <= 2, "buffers of a unit");
#pragma unroll
  for (int unit = 0; unit < COUNT / 32; ++unit) {
    const int first = column + unit * kUnitColumns;
    if (first >= o.N) return;
    const uint32_t buffer = shared + (kBlocks == 1 ? unit % 2 * kBuffer : 0);
    if (unit == 0 || kBlocks == 2) {
      ptx::wait_stores_read<0>();
    } else {
      ptx::wait_stores_read<1>();
    }
    __syncwarp();
    const FragmentColumns columns{o, first};
    finish_fragments<TYPE, FINISH, kUnitColumns>(o, d, 32 * unit, columns, buffer, second...);
    ptx::fence_async_proxy();
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        ptx::store_box(map, buffer + block * kBuffer, row + 64 * block, first);
      }
      ptx::commit_stores();
    }
  }
}

constexpr int kLeastColumns = 16;  // that store_rows ends

// Ends COLUMNS columns, d from d[first] on, stored by the warp itself: sooner done than by the copy engine,
// which has loads to do as well. `buffer`: 16 rows in 16 bits, the warp's own.
template <int TYPE, Finish FINISH, int COLUMNS, int COUNT, class Columns>
__device__ inline void store_rows(const Output& o, const float (&d)[COUNT], int first, const Columns& columns,
                                  uint32_t buffer, int row, int column) {
  finish_fragments<TYPE, FINISH, COLUMNS>(o, d, first, columns, buffer);
  __syncwarp();
#pragma unroll
  for (int i = threadIdx.x % 32; i < 2 * COLUMNS; i += 32) {
    const int within = i / (COLUMNS / 8), piece = i % (COLUMNS / 8);
    const uint4 eight = ptx::load_shared_16(buffer + piece_offset<COLUMNS>(within, piece));
    const int to_row = row + within, to_column = column + 8 * piece;
    if (to_row >= o.M || to_column >= o.N) continue;
    auto* y = static_cast<uint16_t*>(o.y) + static_cast<size_t>(to_row) * o.N + to_column;
    *reinterpret_cast<uint4*>(y) = eight;
  }
}

// Reads what ends a tile. The kernel's argument is constant memory that no cache holds yet: to read it while
// waiting for the kernel before this one is to have it when it is needed.
__device__ inline void touch(const Output& o) {
  asm volatile("" ::"l"(o.scale), "l"(o.bias), "l"(o.residual), "l"(o.y), "r"(o.M), "r"(o.N), "r"(o.vectors));
  const Epilogue& e = o.epilogue;
  asm volatile("" ::"r"(e.curve), "r"(e.gated), "f"(e.slope), "f"(e.offset), "f"(e.low), "f"(e.high),
               "r"(e.y_type));
}

// Brings the scale and bias of COLUMNS features to the multiprocessor ahead of their use. A warp.
template <int COLUMNS>
__device__ inline void prefetch_columns(const Output& o, int column) {
  const int mine = column + threadIdx.x % 32 * 32;  // a line of 128 bytes a lane
  if (mine >= min(column + COLUMNS, o.N)) return;
  ptx::prefetch_line(o.scale + mine);
  ptx::prefetch_line(o.bias + mine);
}

}  // namespace hopper
