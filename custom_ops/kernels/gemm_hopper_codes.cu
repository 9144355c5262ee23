// DeftGemm on Hopper with weights of 8 bits: Y = activation(X · (Wᵀ * scale) + bias + residual), X in 16
// bits, W's codes unpacked in registers beside the multiply, sums in float32.
//
// As gemm_hopper.cu (blocks, stages, pairs, splits, kept blocks), but for this: W is the left operand
// of wgmma and comes from registers, X the right one, so a tile of Yᵀ is made and shared memory is read for X
// and for a byte a weight. A stage is 64 features: rows of X of 128 bytes and rows of codes of 64, swizzled.
// A product takes 16 of them; while it runs its warpgroup unpacks the codes of the next.
//
// A thread needs of two rows of W the codes k, k + 1, k + 8 and k + 9 of each product: it reads them two by
// two, eight rows at a time, without bank conflicts.
//
// Requires what gemm_hopper.cu does.
#include "hopper_loads.cuh"
#include "hopper_splits.cuh"
#include "hopper_transposed.cuh"
#include "mma_operands.cuh"
#include "wgmma.cuh"

namespace hopper {

// What the codes need beside Problem; runtime/gemm_hopper_codes.cpp has the same.
struct CodesProblem {
  Problem problem;  // w: boxes (kColumns, 64 bytes); y: boxes (64, 64)
  int shift;        // of ShiftedCodes
  uint32_t factor;
  float sum_factor;  // what the unpacked weights are too small by
};

namespace {

constexpr int kCodesRowBytes = kStepK;  // of a stage
constexpr int kProducts = 4;            // of a K step

// As Tile, of ROWS rows of X and 64 features for each of WARPGROUPS. GROUP: products whose codes are unpacked
// while as many run.
template <int WARPGROUPS, int ROWS, int STAGES, int GROUP>
struct CodesTile {
  static constexpr int kRows = ROWS, kColumns = 64 * WARPGROUPS, kStages = STAGES, kGroup = GROUP;
  static constexpr int kGroups = kProducts / GROUP;                       // of a K step
  static constexpr int kWarps = 4 * WARPGROUPS;                           // that multiply
  static constexpr int kReleases = kWarps;                                // warps that read a stage
  static constexpr int kSums = ROWS / 2;                                  // of a thread
  static constexpr int kMostSplits = ROWS > 128 ? 1 : ROWS > 64 ? 2 : 4;  // see hopper_splits.cuh
  static constexpr int kWarpBytes = kUnitBytes;
  static constexpr bool kMovesRegisters = WARPGROUPS == 2;
  static constexpr int kThreads = 32 * (kWarps + (kMovesRegisters ? 4 : 2));
  static constexpr int kXBytes = ROWS * kRowBytes, kWBytes = kColumns * kCodesRowBytes;
  static constexpr int kStageBytes = kXBytes + kWBytes;
  static constexpr int kUnits = STAGES * kStageBytes;
  static constexpr int kBarriers = kUnits + kWarps * kWarpBytes;
  static_assert(kBarriers + 8 * (2 * STAGES + 3) <= 227 * 1024, "shared memory of a block");
};

template <class T>
struct OfCodes {
  static constexpr bool kIsX = false;
  static constexpr int kRows = T::kColumns, kRowBytes = kCodesRowBytes, kOffset = T::kXBytes,
                       kBytes = T::kWBytes;
};

// Each of these makes two codes, in the lower bytes of a word, a pair of 16-bit floats.

// Any E whose exponents the type holds: a float too small by a power of two, subnormals included (see
// decode.py). With the code's sign in all of its upper byte, one shift leaves a sign where it belongs,
// whatever the distance, and one mask takes away the rest of that byte.
template <class Operand>
struct ShiftedCodes {
  int distance;  // from the exponents' lowest bit in a code to the type's
  uint32_t mask, factor;
  __device__ ShiftedCodes(int shift, uint32_t factor)
      : distance(8 - shift), mask(0x80008000u | 0x7f007f00u >> shift), factor(factor) {}
  __device__ uint32_t pair(uint32_t codes) const {
    return Operand::rescale(ptx::extend_signs(codes) << distance & mask, factor);
  }
};

// E = 4: as the hardware converts it.
struct E4Codes {
  __device__ E4Codes(int, uint32_t) {}
  __device__ uint32_t pair(uint32_t codes) const {
    uint32_t pair;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"(static_cast<uint16_t>(codes)));
    return pair;
  }
};

// E = 5: the upper byte of a float16.
struct E5Codes {
  __device__ E5Codes(int, uint32_t) {}
  __device__ uint32_t pair(uint32_t codes) const { return __byte_perm(codes, 0, 0x1404); }
};

template <class Element>
struct TypeCode;  // as in Epilogue
template <>
struct TypeCode<__half> {
  static constexpr int value = 1;
};
template <>
struct TypeCode<__nv_bfloat16> {
  static constexpr int value = 2;
};

template <class Element, class Codes, class T>
class Consumer {
 public:
  __device__ Consumer(const CodesProblem& codes, const Work<T>& work, uint32_t memory, int warp)
      : codes_(codes),
        p_(codes.problem),
        work_(work),
        memory_(memory),
        warpgroup_(warp / 4),
        unpacker_(codes.shift, codes.factor) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, width = 2 * p_.box_columns;
    x_ = wgmma::descriptor(memory, width, T::kRows * width);
#pragma unroll
    for (int i = 0; i < kProducts; ++i) {  // in units of 16 bytes
      x_step_[i] = width == 128 ? 2 * i : width == 64 ? i / 2 * T::kRows * 4 + i % 2 * 2 : i * T::kRows * 2;
    }
    w_ = memory + T::kXBytes + (16 * warp + g) * kCodesRowBytes + (g >> 1 & 3) * 16 + 2 * q;
  }

  __device__ void run() {
    for (int cell = work_.index; cell < work_.row_cells * work_.column_cells; cell += work_.count) {
      int row, column;
      work_.place(cell, &row, &column);
      prefetch_columns<T::kColumns>(p_.output, column);
      float sums[T::kSums];
      multiply(sums);
      if constexpr (T::kMostSplits >= 2) {
        if (p_.splits == 2) return finish_share<2>(sums, row, column);
      }
      if constexpr (T::kMostSplits >= 4) {
        if (p_.splits == 4) return finish_share<4>(sums, row, column);
      }
      finish(sums, row, column + 64 * warpgroup_);
    }
    if (p_.by_box && threadIdx.x % 128 == 0) ptx::wait_stores_read<0>();
  }

 private:
  using Pieces = uint32_t[T::kGroup][2][2];  // two codes each: of a product, row g or g + 8, k or k + 8
  using Left = uint32_t[T::kGroup][4];

  // The codes of a group of products of the stage in this slot.
  __device__ void fetch(Pieces& pieces, int slot, int group) const {
#pragma unroll
    for (int i = 0; i < T::kGroup; ++i) {
      const uint32_t from = (w_ ^ (T::kGroup * group + i) * 16) + slot * T::kStageBytes;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        pieces[i][half][0] = ptx::load_two_bytes(from + 8 * half * kCodesRowBytes);
        pieces[i][half][1] = ptx::load_two_bytes(from + 8 * half * kCodesRowBytes + 8);
      }
    }
  }

  __device__ void unpack(Left& left, const Pieces& pieces) const {
#pragma unroll
    for (int i = 0; i < T::kGroup; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        left[i][half] = unpacker_.pair(pieces[i][half][0]);
        left[i][half + 2] = unpacker_.pair(pieces[i][half][1]);
      }
    }
  }

  // Sums over all steps. While a group of products runs, the next one's codes are unpacked and those of the
  // one after it are read. The compiler wants it just so, or it makes every product wait for the one before:
  // no more than one group under way when registers are written, and codes read after the last step too,
  // though nothing multiplies them.
  __device__ void multiply(float (&sums)[T::kSums]) {
    Left left[T::kGroups];
    Pieces pieces[2];
    ptx::barrier_wait(full<T>(memory_, ring_.slot), ring_.phase);
    fetch(pieces[0], ring_.slot, 0);
    fetch(pieces[1], ring_.slot, 1);
    unpack(left[0], pieces[0]);
    int previous = 0;
#pragma unroll 1
    for (int step = 0; step < work_.steps; ++step) {
      const int slot = ring_.slot;
      const uint64_t x = x_ + slot * (T::kStageBytes >> 4);
      ring_.next();
#pragma unroll
      for (int group = 0; group < T::kGroups; ++group) {
        wgmma::fence();
#pragma unroll
        for (int i = 0; i < T::kGroup; ++i) {
          const int product = T::kGroup * group + i;
          wgmma::Product<Element>::add(sums, left[group][i], x + x_step_[product], step > 0 || product > 0);
        }
        wgmma::commit();
        if (group == T::kGroups - 2 && step < work_.steps - 1) {
          ptx::barrier_wait(full<T>(memory_, ring_.slot), ring_.phase);
        }
        if (group < T::kGroups - 2) {
          fetch(pieces[group % 2], slot, group + 2);
        } else {
          fetch(pieces[group % 2], ring_.slot, group + 2 - T::kGroups);
        }
        wgmma::wait<1>();
        if (group == 0 && step > 0) release(previous);
        unpack(left[(group + 1) % T::kGroups], pieces[(group + 1) % 2]);
      }
      previous = slot;
    }
    wgmma::wait<0>();
    wgmma::settle(sums);
    release(previous);
  }

  // Every warp that multiplies tells every block that fills this stage.
  __device__ void release(int slot) const {
    const int lane = threadIdx.x % 32;
    if (work_.pair) {
      if (lane < 2) ptx::barrier_arrive_at(empty<T>(memory_, slot), work_.first_rank + lane);
    } else if (lane == 0) {
      ptx::barrier_arrive(empty<T>(memory_, slot));
    }
  }

  // Ends 64 features of a tile.
  __device__ void finish(float (&sums)[T::kSums], int row, int column) {
    if (!p_.by_box) {
      finish_columns(p_.output, sums, codes_.sum_factor, own_chunks(), warpgroup_, row, column);
      return;
    }
    switch (finish_of(p_.output.epilogue)) {
      case Finish::kFloor: store<Finish::kFloor>(sums, row, column); break;
      case Finish::kLine: store<Finish::kLine>(sums, row, column); break;
      case Finish::kSigmoid: store<Finish::kSigmoid>(sums, row, column); break;
      case Finish::kGelu: store<Finish::kGelu>(sums, row, column); break;
    }
  }

  template <Finish FINISH>
  __device__ void store(const float (&sums)[T::kSums], int row, int column) {
    store_boxes_of_columns<TypeCode<Element>::value, FINISH>(p_.output, p_.y, sums, codes_.sum_factor,
                                                             own_chunks(), buffer_, warpgroup_, row, column);
  }

  __device__ uint32_t own_chunks() const { return own_memory<T>(memory_, 4 * warpgroup_); }

  // A share is neighbouring rows of X.
  template <int COUNT>
  __device__ void finish_share(const float (&sums)[T::kSums], int row, int column) const {
    send_shares<COUNT>(work_, sums, memory_);
    float total[T::kSums / COUNT];
    add_shares<COUNT>(work_, sums, memory_, total);
    finish_columns(p_.output, total, codes_.sum_factor, own_chunks(), warpgroup_,
                   row + work_.split * (T::kRows / COUNT), column + 64 * warpgroup_);
  }

  const CodesProblem& codes_;
  const Problem& p_;
  const Work<T>& work_;
  uint32_t memory_;
  int warpgroup_;
  Codes unpacker_;
  uint64_t x_;             // descriptor of the first stage's X
  int x_step_[kProducts];  // how far the products of a K step lie apart in X
  uint32_t w_;             // this thread's first codes of the first stage
  int buffer_ = 0;
  Ring<T::kStages> ring_;
};

template <class T>
__device__ void load_codes(const Problem& p, const Work<T>& work, uint32_t memory) {
  if (!ptx::elect_one()) return;
  if (work.pair == kPairRows) {
    load_all<T, OfCodes<T>, true>(p.w, work, memory);
  } else {
    load_all<T, OfCodes<T>, false>(p.w, work, memory);
  }
}

template <class T>
__device__ void load_operands(const Problem& p, const Work<T>& work, uint32_t memory, int loader) {
  if (loader == 0) {
    load_x(p, work, memory);
  } else if (loader == 1) {
    load_codes(p, work, memory);
  }
  __syncwarp();
}

template <class Element, class Codes, class T>
__device__ void gemm(const CodesProblem& codes) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const Problem& p = codes.problem;
  const uint32_t memory = ptx::shared_address(shared);
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  const Work<T> work(p);

  begin<T>(p, work, memory, warp);

  if (warp >= T::kWarps) {
    if (T::kMovesRegisters) ptx::give_up_registers<40>();
    load_operands(p, work, memory, warp - T::kWarps);
  } else {
    if (T::kMovesRegisters) ptx::take_registers<232>();
    ptx::wait_dependencies();
    Consumer<Element, Codes, T> consumer(codes, work, memory, warp);
    consumer.run();
  }
  if (p.pair) ptx::cluster_sync();  // the other block may still signal this one
}

}  // namespace
}  // namespace hopper

#define KERNEL(name, Element, Codes, blocks, ...)                                                \
  extern "C" __global__ void __launch_bounds__(hopper::CodesTile<__VA_ARGS__>::kThreads, blocks) \
      name(const __grid_constant__ hopper::CodesProblem p) {                                     \
    hopper::gemm<Element, Codes, hopper::CodesTile<__VA_ARGS__>>(p);                             \
  }
#define KERNELS(name, Element, ...)                                      \
  KERNEL(hopper_##name##_256x128, Element, __VA_ARGS__, 1, 2, 256, 4, 1) \
  KERNEL(hopper_##name##_192x128, Element, __VA_ARGS__, 1, 2, 192, 5, 1) \
  KERNEL(hopper_##name##_128x64, Element, __VA_ARGS__, 2, 1, 128, 4, 1)  \
  KERNEL(hopper_##name##_64x64, Element, __VA_ARGS__, 2, 1, 64, 6, 2)

KERNELS(fp16_shifted, __half, hopper::ShiftedCodes<HalfOperand>)
KERNELS(fp16_e4, __half, hopper::E4Codes)
KERNELS(fp16_e5, __half, hopper::E5Codes)
KERNELS(bf16_shifted, __nv_bfloat16, hopper::ShiftedCodes<Bfloat16Operand>)
