// Writes 8-bit weights in 16 bits, once, when a session is made: every code's value is looked up. And tells
// weights apart by a number, so that nodes of the same one share what is written. 16 codes a thread at a
// time.
#include <cstdint>

namespace {

constexpr int kThreads = 256;
constexpr int kCodes = 256;

// The kernels' argument; runtime/gemm_unpacked.cpp has the same.
struct Problem {
  const uint4* codes;
  void* values;  // of unpack_codes: two uint4 for each of codes; of digest_codes: the number, zero at first
  int64_t vectors;  // of 16 codes
  uint16_t value[kCodes];
};

__device__ int64_t thread_of_grid() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }
__device__ int64_t threads_of_grid() { return static_cast<int64_t>(gridDim.x) * kThreads; }

// A bijection of 64 bits that leaves no pattern: every bit of x changes half of the result's.
__device__ uint64_t scatter(uint64_t x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
  x = (x ^ x >> 27) * 0x94D049BB133111EB;
  return x ^ x >> 31;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads) unpack_codes(const __grid_constant__ Problem p) {
  static_assert(kThreads == kCodes);
  __shared__ uint16_t value[kCodes];
  value[threadIdx.x] = p.value[threadIdx.x];
  __syncthreads();
  auto* values = static_cast<uint4*>(p.values);
  for (int64_t i = thread_of_grid(); i < p.vectors; i += threads_of_grid()) {
    const uint4 codes = p.codes[i];
    const uint32_t four[] = {codes.x, codes.y, codes.z, codes.w};
    uint32_t pairs[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const uint32_t two = four[j / 2] >> 16 * (j % 2);
      pairs[j] = value[two & 0xff] | static_cast<uint32_t>(value[two >> 8 & 0xff]) << 16;
    }
    values[2 * i] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    values[2 * i + 1] = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
  }
}

// A sum over all vectors, whatever their order, of what depends on a vector and its place.
extern "C" __global__ void __launch_bounds__(kThreads) digest_codes(const __grid_constant__ Problem p) {
  uint64_t sum = 0;
  for (int64_t i = thread_of_grid(); i < p.vectors; i += threads_of_grid()) {
    const uint4 codes = p.codes[i];
    const uint64_t first = static_cast<uint64_t>(codes.y) << 32 | codes.x;
    const uint64_t second = static_cast<uint64_t>(codes.w) << 32 | codes.z;
    sum += scatter(scatter(scatter(i + 1) ^ first) ^ second);
  }
  atomicAdd(static_cast<unsigned long long*>(p.values), static_cast<unsigned long long>(sum));
}
