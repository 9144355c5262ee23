// Where COUNT blocks of a cluster share out K of one tile, each adds up and ends the same share of every
// thread's sums, in a fixed order of the blocks. What a thread has of the others' shares goes from its
// registers to the memory of its like in those blocks: no barrier but the one that counts the bytes that
// come.
#pragma once

#include "hopper_work.cuh"

namespace hopper {

// Bytes that a warp gets from one other block.
template <class T, int COUNT>
constexpr int kShareBytes = T::kSums / COUNT * 32 * 4;

template <int COUNT, class T>
__device__ inline void send_shares(const Work<T>& work, const float (&sums)[T::kSums], uint32_t memory) {
  constexpr int kShare = T::kSums / COUNT;
  static_assert((COUNT - 1) * kShareBytes<T, COUNT> <= T::kWarpBytes, "room for the others' sums");
  const uint32_t place = own_memory<T>(memory, threadIdx.x / 32) + threadIdx.x % 32 * 16;
#pragma unroll
  for (int other = 0; other < COUNT; ++other) {
    if (other == work.split) continue;
    const int rank = other * (work.pair ? 2 : 1) + work.member, slot = work.split - (work.split > other);
    const uint32_t to = ptx::address_at(place + slot * kShareBytes<T, COUNT>, rank);
    const uint32_t barrier = ptx::address_at(partial_sums<T>(memory), rank);
#pragma unroll
    for (int i = 0; i < kShare; i += 4) ptx::store_at(to + i * 32 * 4, sums + other * kShare + i, barrier);
  }
}

// This block's share of the thread's sums, added up over the blocks.
template <int COUNT, class T>
__device__ inline void add_shares(const Work<T>& work, const float (&sums)[T::kSums], uint32_t memory,
                                  float (&total)[T::kSums / COUNT]) {
  constexpr int kShare = T::kSums / COUNT;
  const uint32_t place = own_memory<T>(memory, threadIdx.x / 32) + threadIdx.x % 32 * 16;
  ptx::barrier_wait(partial_sums<T>(memory), 0);
#pragma unroll
  for (int split = 0; split < COUNT; ++split) {
    const uint32_t from = place + (split - (split > work.split)) * kShareBytes<T, COUNT>;
#pragma unroll
    for (int i = 0; i < kShare; i += 4) {
      float part[4];
      if (split == work.split) {
#pragma unroll
        for (int j = 0; j < 4; ++j) part[j] = sums[split * kShare + i + j];
      } else {
        put(part, ptx::load_shared(from + i * 32 * 4));
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) total[i + j] = split == 0 ? part[j] : total[i + j] + part[j];
    }
  }
}

}  // namespace hopper
