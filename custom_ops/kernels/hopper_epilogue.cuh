// The end of a tile whose sums are in wgmma's registers: scale, bias, residual, activation, store. Works a
// warp at a time, on units of 16 rows (the warp's) by 64 columns, without any barrier among warps.
//
// store_boxes is the fast way: no residual, Y of the operands' type, through shared memory and the copy
// engine. finish_units does everything else, through float32 units in shared memory, from which rows are read
// 8 features at a time; the same units hold partial sums where the blocks of a cluster share out K.
#pragma once

#include "epilogue.cuh"
#include "ptx_hopper.cuh"

namespace hopper {

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

// Byte offset of an even column of a row of a unit. Pieces of 32 bytes and their halves are exchanged so that
// neither the rows of a fragment nor the lanes of a row meet in a bank.
__device__ inline uint32_t unit_offset(int row, int column) {
  const int piece = column >> 3 ^ (row & 7);
  const int half = (column >> 2 ^ piece >> 2) & 1;
  return row * 256 + piece * 32 + half * 16 + (column & 3) * 4;
}

// Writes columns 64 unit ... of this warp's sums.
template <int COUNT>
__device__ inline void store_unit(uint32_t shared, const float (&d)[COUNT], int unit) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll
  for (int u = 0; u < COUNT / 32; ++u) {  // registers have no run-time index
    if (u != unit) continue;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float* four = d + 32 * u + 4 * j;
      const uint32_t offset = unit_offset(g, 8 * j + 2 * q);
      ptx::store_shared(shared + offset, four[0], four[1]);
      ptx::store_shared(shared + offset + 8 * 256, four[2], four[3]);
    }
  }
}

// Rows 4 first ... of a unit that this lane ends: PARTS rows 4 apart, 8 columns each.
struct Rows {
  int first;
  __device__ uint32_t offset(int part, int half) const {
    const int lane = threadIdx.x % 32;
    return unit_offset(4 * (first + part) + lane / 8, 8 * (lane % 8) + 4 * half);
  }
};

__device__ inline void put(float* to, const float4& v) { to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w; }

// Sums from one unit of this block.
struct OwnSums {
  uint32_t unit;
  __device__ float4 four(uint32_t offset) const { return ptx::load_shared(unit + offset); }
  template <int PARTS>
  __device__ void read(float (&v)[8 * PARTS], const Rows& rows) const {
#pragma unroll
    for (int i = 0; i < 2 * PARTS; ++i) put(v + 4 * i, four(rows.offset(i / 2, i % 2)));
  }
};

// The sum over COUNT copies of a unit, `stride` bytes apart, in their order.
template <int COUNT>
struct PartialSums {
  uint32_t unit, stride;
  __device__ float4 four(uint32_t offset) const {
    float4 sum = ptx::load_shared(unit + offset);
#pragma unroll
    for (int i = 1; i < COUNT; ++i) {
      const float4 more = ptx::load_shared(unit + i * stride + offset);
      sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
    }
    return sum;
  }
  template <int PARTS>
  __device__ void read(float (&v)[8 * PARTS], const Rows& rows) const {
#pragma unroll
    for (int i = 0; i < 2 * PARTS; ++i) put(v + 4 * i, four(rows.offset(i / 2, i % 2)));
  }
};

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

// Ends rows row + 4 part + lane / 8, columns column + 8 (lane % 8) ..., of the unit that starts at
// (unit_row, column), for PARTS parts from `first`. Needs output.vectors.
template <int PARTS, class Sums>
__device__ inline void finish_vectors(const Output& o, const Sums& sums, int unit_row, int column,
                                      int first) {
  const int lane = threadIdx.x % 32, within = 8 * (lane % 8);
  const int mine = column + within;
  if (mine >= o.N) return;
  const auto* scales = reinterpret_cast<const float4*>(o.scale + mine);
  const auto* biases = reinterpret_cast<const float4*>(o.bias + mine);
  const float4 s[2] = {scales[0], scales[1]}, b[2] = {biases[0], biases[1]};
  float z[8 * PARTS];
  sums.template read<PARTS>(z, Rows{first});
#pragma unroll
  for (int part = 0; part < PARTS; ++part) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* v = z + 8 * part + 4 * half;
      v[0] = fmaf(v[0], s[half].x, b[half].x);
      v[1] = fmaf(v[1], s[half].y, b[half].y);
      v[2] = fmaf(v[2], s[half].z, b[half].z);
      v[3] = fmaf(v[3], s[half].w, b[half].w);
    }
    const int row = unit_row + 4 * (first + part) + lane / 8;
    if (o.residual != nullptr && row < o.M) {
      add_vector(z + 8 * part, o.residual, static_cast<size_t>(row) * o.N + mine, o.epilogue.y_type);
    }
  }
  activate_all(o.epilogue, z);
#pragma unroll
  for (int part = 0; part < PARTS; ++part) {
    const int row = unit_row + 4 * (first + part) + lane / 8;
    if (row >= o.M) continue;
    store_vector(o.y, static_cast<size_t>(row) * o.N + mine, o.epilogue.y_type, z + 8 * part);
  }
}

// The same for any N and alignment, an element at a time.
template <class Sums>
__device__ inline void finish_elements(const Output& o, const Sums& sums, int unit_row, int column, int first,
                                       int parts) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int i = lane; i < parts * 4 * 16; i += 32) {  // four columns at a time
    const int row = 4 * first + i / 16, within = 4 * (i % 16);
    const float4 v = sums.four(unit_offset(row, within));
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

// Ends this warp's 16 rows of a tile, at (row, column), whatever the epilogue. `shared`: one unit of the
// warp's own.
template <int COUNT>
__device__ inline void finish_units(const Output& o, const float (&d)[COUNT], uint32_t shared, int row,
                                    int column) {
#pragma unroll 1
  for (int unit = 0; unit < COUNT / 32; ++unit, column += kUnitColumns) {
    if (column >= o.N) return;
    __syncwarp();
    store_unit(shared, d, unit);
    __syncwarp();
    if (o.vectors) {
      finish_vectors<4>(o, OwnSums{shared}, row, column, 0);
    } else {
      finish_elements(o, OwnSums{shared}, row, column, 0, 4);
    }
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

// z times the normal distribution's integral, to 2e-4 of the exact GELU at most and 5e-6 for most z: enough
// for Y in 16 bits, and no special function. A polynomial of z² to |z| = 3.9, fitted to the least greatest
// error; beyond, a line that soon leaves [0, 1].
__device__ inline float gelu_for_16_bits(float z) {
  constexpr float kEnd = 3.9f * 3.9f;
  const float s = fminf(z * z, kEnd);
  float p = 8.206711699e-11f;
  p = fmaf(p, s, -7.035692473e-09f);
  p = fmaf(p, s, 2.706506734e-07f);
  p = fmaf(p, s, -6.251596460e-06f);
  p = fmaf(p, s, 9.827379836e-05f);
  p = fmaf(p, s, -1.129409415e-03f);
  p = fmaf(p, s, 9.861337021e-03f);
  p = fmaf(p, s, -6.638453901e-02f);
  p = fmaf(p, s, 3.989093304e-01f);
  return z * __saturatef(fmaf(z, p, 0.5f));  // NaN passes: by the first factor
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
  if (FINISH == Finish::kGelu) return gelu_for_16_bits(z);
  return activate({1, e.gated, e.slope, e.offset, e.low, e.high, 0}, z);
}

// Activation of scale d + bias (no residual) in type TYPE (see Epilogue) to Y's map, whose boxes are (16,
// 64). `shared`: one unit of the warp's own, made of two buffers of 16-bit values in rows of 128 bytes,
// swizzled.
template <int TYPE, Finish FINISH, int COUNT>
__device__ inline void store_boxes(const Output& o, const ptx::TensorMap& map, const float (&d)[COUNT],
                                   uint32_t shared, int row, int column) {
  const int lane = threadIdx.x % 32, q = lane % 4;
#pragma unroll
  for (int unit = 0; unit < COUNT / 32; ++unit) {
    const int first = column + unit * kUnitColumns;
    if (first >= o.N) return;
    const uint32_t buffer = shared + unit % 2 * (kUnitBytes / 2);
    if (unit == 0) {
      ptx::wait_stores_read<0>();
    } else {
      ptx::wait_stores_read<1>();
    }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int mine = min(first + 8 * (j + i) + 2 * q, o.N - 2);  // beyond the end: not stored
        const float2 s = *reinterpret_cast<const float2*>(o.scale + mine);
        const float2 b = *reinterpret_cast<const float2*>(o.bias + mine);
        const float* four = d + 32 * unit + 4 * (j + i);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float x = finish_one<FINISH>(o.epilogue, fmaf(four[2 * half], s.x, b.x));
          const float y = finish_one<FINISH>(o.epilogue, fmaf(four[2 * half + 1], s.y, b.y));
          pairs[2 * i + half] = pack_pair(x, y, TYPE);
        }
      }
      // lane 8 i + r addresses row r of matrix i: columns 8 (j + i / 2) ..., rows 8 (i % 2) ...
      const int line = lane % 16, piece = (j + lane / 16) ^ (lane & 7);
      ptx::store_matrices(buffer + line * 128 + piece * 16, pairs[0], pairs[1], pairs[2], pairs[3]);
    }
    ptx::fence_async_proxy();
    __syncwarp();
    if (lane == 0) {
      ptx::store_box(map, buffer, row, first);
      ptx::commit_stores();
    }
  }
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
