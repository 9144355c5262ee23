// Images with channels last from images with channels first. Bound by memory: a thread moves up to 8 channels
// of a pixel, neighbouring threads neighbouring pixels, so that where there are few channels both sides are
// read and written in whole lines. Bits alone are moved, so types of one size share a kernel.
#include "early_start.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int kWidth = 8;  // channels of a thread

// The field order is that of runtime/channels_last_op.cpp.
struct ChannelsLastParameters {
  const void* x;                      // (batch, channels, pixels)
  void* y;                            // (batch, pixels, channels)
  unsigned items;                     // batch * groups * pixels
  unsigned groups, pixels, channels;  // groups: of kWidth channels, the last may have fewer
};

template <class Bits>
struct alignas(16) Group {
  Bits values[kWidth];
};

template <class Bits>
__device__ void move(const ChannelsLastParameters& p) {
  const unsigned item = blockIdx.x * kThreads + threadIdx.x;
  if (item >= p.items) return;
  const unsigned line = item / p.pixels, pixel = item - line * p.pixels;
  const unsigned image = line / p.groups, first = (line - image * p.groups) * kWidth;
  const auto* x =
      static_cast<const Bits*>(p.x) + pixel + (static_cast<long long>(image) * p.channels + first) * p.pixels;
  auto* y = static_cast<Bits*>(p.y) + (static_cast<long long>(image) * p.pixels + pixel) * p.channels + first;
  const unsigned count = min(p.channels - first, kWidth);
  Group<Bits> group;
  wait_for_operands();
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    if (i < count) group.values[i] = x[static_cast<long long>(i) * p.pixels];
  }
  if (p.channels % kWidth == 0) {
    *reinterpret_cast<Group<Bits>*>(y) = group;
    return;
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    if (i < count) y[i] = group.values[i];
  }
}

}  // namespace

#define CHANNELS_LAST(NAME, BITS)                                              \
  extern "C" __global__ void __launch_bounds__(kThreads)                       \
      channels_last_##NAME(const __grid_constant__ ChannelsLastParameters p) { \
    move<BITS>(p);                                                             \
  }

CHANNELS_LAST(2_bytes, unsigned short)
CHANNELS_LAST(4_bytes, unsigned)
