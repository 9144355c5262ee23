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
  Problem problem;            // w: boxes (kColumns, 64 bytes); y: boxes (64, 64)
  uint32_t x_lower, x_upper;  // wgmma's descriptor of X without the address
  int x_next, x_after;        // from a product of a K step to the next and to the one after, in 16 bytes
  uint32_t distance, multiplier, mask, factor;  // of ShiftedCodes; multiplier: 2^distance
  float sum_factor;                             // what the unpacked weights are too small by
  int first_column, columns;                    // of Y, that are made
};

namespace {

constexpr int kCodesRowBytes = kStepK;  // of a stage
constexpr int kProducts = 4;            // of a K step
constexpr int kBothWarpgroups = 4;      // named barrier

// As Tile, of ROWS rows of X and 64 features for each of WARPGROUPS. GROUP: products whose codes are unpacked
// while as many run: more where they are small. At most MOST_SPLITS blocks share out K. SHARES_K: two
// warpgroups multiply the same 64 features, each every other K step.
template <int WARPGROUPS, int ROWS, int STAGES, int GROUP, int MOST_SPLITS = 1, bool SHARES_K = false>
struct CodesTile {
  static constexpr int kRows = ROWS, kColumns = SHARES_K ? 64 : 64 * WARPGROUPS, kStages = STAGES,
                       kGroup = GROUP, kMostSplits = MOST_SPLITS;
  static constexpr bool kSharesK = SHARES_K;
  static constexpr int kGroups = kProducts / GROUP;        // of a K step
  static constexpr int kWarps = 4 * WARPGROUPS;            // that multiply
  static constexpr int kReleases = SHARES_K ? 4 : kWarps;  // warps that read a stage
  static constexpr int kSums = ROWS / 2;                   // of a thread
  // A warp's own memory: a unit, or the sums that it gets of the others' (see hopper_splits.cuh).
  static constexpr int kSharesBytes = 16 * ROWS * 4 / MOST_SPLITS * (MOST_SPLITS - 1);
  static constexpr int kWarpBytes = kSharesBytes > kUnitBytes ? kSharesBytes : kUnitBytes;
  static constexpr bool kMovesRegisters = WARPGROUPS == 2;
  // The second warpgroup begins a K step after the first, so that one multiplies while the other ends a tile.
  static constexpr bool kStaggers = WARPGROUPS == 2 && ROWS > 128;
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
// decode.py). With the code's sign in all of its upper byte, one shift, by the distance from the exponents'
// lowest bit in a code to the type's, leaves a sign where it belongs, and one mask takes away the rest of
// that byte. MULTIPLY: the shift is a multiplication, which another unit does than the rest; it pays where
// unpacking is much of the work.
template <class Operand>
struct ShiftedCodes {
  template <bool MULTIPLY>
  static __device__ uint32_t pair(const CodesProblem& p, uint32_t codes) {
    const uint32_t halves = ptx::extend_signs(codes);
    const uint32_t shifted = MULTIPLY ? halves * p.multiplier : halves << p.distance;
    return Operand::rescale(shifted & p.mask, p.factor);
  }
};

// E = 4: as the hardware converts it.
struct E4Codes {
  template <bool MULTIPLY>
  static __device__ uint32_t pair(const CodesProblem&, uint32_t codes) {
    uint32_t pair;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"(static_cast<uint16_t>(codes)));
    return pair;
  }
};

// E = 5: the upper byte of a float16.
struct E5Codes {
  template <bool MULTIPLY>
  static __device__ uint32_t pair(const CodesProblem&, uint32_t codes) {
    return __byte_perm(codes, 0, 0x1404);
  }
};

template <class Element, class Codes, class T>
class Consumer {
 public:
  __device__ Consumer(const CodesProblem& codes, const Work<T>& work, uint32_t memory, int warp)
      : codes_(codes), p_(codes.problem), work_(work), memory_(memory), warpgroup_(warp / 4) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    releases_ = lane < (work.pair ? 2 : 1);
    filler_ = work.first_rank + lane;
    starts_other_ = warp < 4 && lane == 0;
    w_ = memory + T::kXBytes + (16 * (T::kSharesK ? warp % 4 : warp) + g) * kCodesRowBytes +
         (g >> 1 & 3) * 16 + 2 * q;
  }

  __device__ void run() {
    for (int cell = work_.index; cell < work_.row_cells * work_.column_cells; cell += work_.count) {
      int row, column;
      work_.place(cell, &row, &column);
      column += codes_.first_column;
      prefetch_columns<T::kColumns>(p_.output, column);
      float sums[T::kSums];
      if (T::kStaggers && warpgroup_ == 1 && cell == work_.index) ptx::barrier_wait(turn<T>(memory_, 0), 0);
      multiply(sums);
      if constexpr (T::kSharesK) {
        float total[T::kSums / 2];
        add_halves(sums, total);
        finish(total, row + warpgroup_ * (T::kRows / 2), column);
        continue;
      }
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
        left[i][half] = Codes::template pair<(T::kGroup > 1)>(codes_, pieces[i][half][0]);
        left[i][half + 2] = Codes::template pair<(T::kGroup > 1)>(codes_, pieces[i][half][1]);
      }
    }
  }

  // Sums over all steps of this warpgroup. While a group of products runs, the next one's codes are unpacked
  // and those of the one after it are read, and little else stands between two groups: descriptors' parts
  // come ready from the kernel's argument. The compiler wants it just so, or it makes every product wait for
  // the one before: no more than one group under way when registers are written, and codes read after the
  // last step too, though nothing multiplies them.
  __device__ void multiply(float (&sums)[T::kSums]) {
    Left left[T::kGroups];
    Pieces pieces[2];
    Ring<T::kStages> ring = ring_;
    ring_.skip(work_.steps);
    int steps = work_.steps;
    if (T::kSharesK) {
      ring.skip(warpgroup_);
      steps = (steps - warpgroup_ + 1) / 2;
      if (steps == 0) {
#pragma unroll
        for (int i = 0; i < T::kSums; ++i) sums[i] = 0;
        return;
      }
    }
    ptx::barrier_wait(full<T>(memory_, ring.slot), ring.phase);
    fetch(pieces[0], ring.slot, 0);
    fetch(pieces[1], ring.slot, 1);
    unpack(left[0], pieces[0]);
    int previous = 0;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const int slot = ring.slot;
      ring.next();
      if (T::kSharesK) ring.next();
#pragma unroll
      for (int group = 0; group < T::kGroups; ++group) {
        const int next = (group + 1) % T::kGroups;
        multiply_group(sums, left[group], slot, group, step > 0);
        if (group == 1 && step > 0) release(previous);
        if (group == T::kGroups - 2 && step < steps - 1) {
          ptx::barrier_wait(full<T>(memory_, ring.slot), ring.phase);
        }
        if (group < T::kGroups - 2) {
          fetch(pieces[group % 2], slot, group + 2);
        } else {
          fetch(pieces[group % 2], ring.slot, group + 2 - T::kGroups);
        }
        wgmma::wait<1>();
        unpack(left[next], pieces[next % 2]);
      }
      previous = slot;
    }
    wgmma::wait<0>();
    wgmma::settle(sums);
    release(previous);
  }

  // Starts a group of products of the stage in this slot.
  __device__ void multiply_group(float (&sums)[T::kSums], const Left& left, int slot, int group,
                                 bool add) const {
    const uint32_t x = ((memory_ & 0x3ffff) + slot * T::kStageBytes) >> 4 | codes_.x_lower;
    wgmma::fence();
#pragma unroll
    for (int i = 0; i < T::kGroup; ++i) {
      const int product = T::kGroup * group + i;
      const uint32_t lower = x + product / 2 * codes_.x_after + product % 2 * codes_.x_next;
      const uint64_t descriptor = static_cast<uint64_t>(codes_.x_upper) << 32 | lower;
      wgmma::Product<Element>::add(sums, left[i], descriptor, add || product > 0);
    }
    wgmma::commit();
  }

  // Every warp that multiplies tells every block that fills this stage.
  __device__ void release(int slot) {
    if (releases_) ptx::barrier_arrive_at(empty<T>(memory_, slot), filler_);
    if (T::kStaggers && starts_other_) ptx::barrier_arrive(turn<T>(memory_, 0));
    starts_other_ = false;
  }

  // This warpgroup's half of the rows, added up over both: each leaves the other's half in its memory.
  __device__ void add_halves(const float (&sums)[T::kSums], float (&total)[T::kSums / 2]) const {
    constexpr int kHalf = T::kSums / 2;
    static_assert(kHalf * 4 * 128 <= 4 * T::kWarpBytes, "room for the other's sums");
    const int thread = threadIdx.x % 128;
    const uint32_t to = own_memory<T>(memory_, 4 - 4 * warpgroup_) + thread * 16;
    if (p_.by_box && thread == 0) ptx::wait_stores_read<0>();
    ptx::named_barrier_sync(kBothWarpgroups, 256);
#pragma unroll
    for (int i = 0; i < kHalf; i += 4) {
      float4 v;
      v.x = warpgroup_ ? sums[i] : sums[kHalf + i];
      v.y = warpgroup_ ? sums[i + 1] : sums[kHalf + i + 1];
      v.z = warpgroup_ ? sums[i + 2] : sums[kHalf + i + 2];
      v.w = warpgroup_ ? sums[i + 3] : sums[kHalf + i + 3];
      ptx::store_shared(to + i * 512, v);
    }
    ptx::named_barrier_sync(kBothWarpgroups, 256);
    const uint32_t from = own_chunks() + thread * 16;
#pragma unroll
    for (int i = 0; i < kHalf; i += 4) {
      float part[4];
      put(part, ptx::load_shared(from + i * 512));
#pragma unroll
      for (int j = 0; j < 4; ++j) total[i + j] = part[j] + (warpgroup_ ? sums[kHalf + i + j] : sums[i + j]);
    }
  }

  // Ends 64 features of rows of a tile.
  template <int COUNT>
  __device__ void finish(float (&sums)[COUNT], int row, int column) {
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

  template <Finish FINISH, int COUNT>
  __device__ void store(const float (&sums)[COUNT], int row, int column) {
    store_boxes_of_columns<kTypeCode<Element>, FINISH>(p_.output, p_.y, sums, codes_.sum_factor, own_chunks(),
                                                       buffer_, warpgroup_, row, column);
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
  uint32_t w_;     // this thread's first codes of the first stage
  bool releases_;  // whether this thread tells block `filler_` of the cluster
  int filler_;
  bool starts_other_;  // whether this thread has yet to tell the second warpgroup to begin
  int buffer_ = 0;
  Ring<T::kStages> ring_;
};

template <class T>
__device__ void load_operands(const CodesProblem& codes, const Work<T>& work, uint32_t memory, int loader) {
  const Problem& p = codes.problem;
  if (loader == 0) {
    load_x(p, work, memory);
  } else if (loader == 1 && ptx::elect_one()) {
    load_all<T, OfCodes<T>, false>(p.w, work, memory, codes.first_column);
  }
  __syncwarp();
}

template <class Element, class Codes, class T>
__device__ void gemm(const CodesProblem& codes) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const Problem& p = codes.problem;
  const uint32_t memory = ptx::shared_address(shared);
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  Work<T> work(p);
  const int cell_columns = (work.pair ? 2 : 1) * T::kColumns;
  work.column_cells = (codes.columns + cell_columns - 1) / cell_columns;

  begin<T>(p, work, memory, warp);

  if (warp >= T::kWarps) {
    if (T::kMovesRegisters) ptx::give_up_registers<40>();
    load_operands(codes, work, memory, warp - T::kWarps);
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
#define KERNELS(name, Element, ...)                                                     \
  KERNEL(hopper_##name##_256x128, Element, __VA_ARGS__, 1, 2, 256, 4, 1, 2)             \
  KERNEL(hopper_##name##_192x128, Element, __VA_ARGS__, 1, 2, 192, 6, 1)                \
  KERNEL(hopper_##name##_192x128_split, Element, __VA_ARGS__, 1, 2, 192, 5, 1, 2)       \
  KERNEL(hopper_##name##_128x128, Element, __VA_ARGS__, 1, 2, 128, 6, 1, 2)             \
  KERNEL(hopper_##name##_128x64_halves, Element, __VA_ARGS__, 1, 2, 128, 9, 1, 1, true) \
  KERNEL(hopper_##name##_64x64, Element, __VA_ARGS__, 2, 1, 64, 8, 2, 4)

KERNELS(fp16_shifted, __half, hopper::ShiftedCodes<HalfOperand>)
KERNELS(fp16_e4, __half, hopper::E4Codes)
KERNELS(fp16_e5, __half, hopper::E5Codes)
KERNELS(bf16_shifted, __nv_bfloat16, hopper::ShiftedCodes<Bfloat16Operand>)
