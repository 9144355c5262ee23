// DeftConv on Hopper where W of a tile's outputs stays in shared memory: filters of few features.
//
//   Y (M, N) = activation(X · (Wᵀ * scale) + bias + residual), X (M, K) made of images' windows as it is read
//
// A block makes tiles of one column of tiles only, 64 rows each, and reads W for them once; what a K step
// then brings is X alone, half or less of what tiles take in that bring both. Warpgroups make tiles in turn:
// each multiplies when all stages of the tile before have come to the other one. A tile's residual comes as
// further stages behind those of X, 64 columns each. Y leaves from a tile's last stages: those of the
// residual, or of X, whose rows have been multiplied.
//
// Shared memory of a block: W [steps] | stages [stages] | barriers. What is on its way in stages must last
// for as long as X takes to come, so nothing else has a place of its own. How many there are is known when
// the kernel is launched.
//
// Requires: K steps of 64 channels of one tap, 32 of them at most; more stages than Y has; Y's rows multiples
// of 16 bytes.
#include "hopper_residual.cuh"
#include "hopper_windows.cuh"
#include "hopper_work.cuh"
#include "wgmma.cuh"

namespace hopper {
namespace {

constexpr int kTileRows = 64;
constexpr int kStage = kTileRows * kRowBytes;

// Beside Problem and Windows; runtime/conv_resident.cpp has the same.
struct Resident {
  ptx::TensorMap residual;  // boxes (64, 64)
  int stages;
  int column_blocks;  // blocks that share out the rows of a column of tiles
};

// Where everything lies, and this block's tiles.
template <int WARPGROUPS, int COLUMNS>
struct Layout {
  static constexpr int kWarps = 4 * WARPGROUPS;  // that multiply
  // The sums of 64 columns fit without moving registers.
  static constexpr bool kMovesRegisters = COLUMNS > 64;
  static constexpr int kThreads = 32 * (kWarps + (kMovesRegisters ? 4 : 2));
  static constexpr int kWBytes = COLUMNS * kRowBytes;  // of a step
  static constexpr int kPieces = COLUMNS / kUnitColumns;

  uint32_t memory, ring, barriers;
  int steps, stages;
  bool adds;  // the residual comes in stages
  int more;   // stages of a tile beside those of X
  int column, first_tile, tile_step, tiles;

  __device__ Layout(const Problem& p, const Resident& r, uint32_t shared)
      : memory(shared), steps((p.K + kStepK - 1) / kStepK), stages(r.stages) {
    ring = memory + steps * kWBytes;
    barriers = ring + stages * kStage;
    adds = p.by_box && p.output.residual != nullptr;
    more = adds ? kPieces : max(kPieces - steps, 0);
    tile_step = r.column_blocks;
    const unsigned columns = gridDim.x / static_cast<unsigned>(tile_step);
    first_tile = blockIdx.x / columns;
    column = (blockIdx.x - first_tile * columns) * COLUMNS;
    const int all = (p.output.M + kTileRows - 1) / kTileRows;
    tiles = (all - first_tile + tile_step - 1) / tile_step;
  }

  __device__ int row(int tile) const { return (first_tile + tile * tile_step) * kTileRows; }
  __device__ uint32_t stage(int slot) const { return ring + slot * kStage; }
  __device__ uint32_t full(int slot) const { return barriers + 8 * slot; }
  __device__ uint32_t empty(int slot) const { return barriers + 8 * (stages + slot); }
  __device__ uint32_t turn(int warpgroup) const { return barriers + 8 * (2 * stages + warpgroup); }
  __device__ uint32_t full_w(int step) const { return turn(WARPGROUPS) + 8 * step; }
  __device__ int tile_stages() const { return steps + more; }
};

// A place in a ring whose length is known at run time.
struct Place {
  int stages, slot = 0;
  uint32_t phase = 0;
  __device__ void next() {
    if (++slot == stages) slot = 0, phase ^= 1;
  }
  __device__ void skip(int count) {
    slot += count;
    while (slot >= stages) slot -= stages, phase ^= 1;
  }
};

template <class L>
__device__ void load_w_once(const Problem& p, const L& layout) {
  if (!ptx::elect_one()) return;
  for (int step = 0; step < layout.steps; ++step) {
    ptx::barrier_arrive_expect(layout.full_w(step), L::kWBytes);
    ptx::load_box(layout.memory + step * L::kWBytes, p.w, layout.column, step * kStepK, layout.full_w(step));
  }
}

// X's windows of every tile, and its residual. A warp: lane i knows K step i.
template <class L>
__device__ void load_tiles(const Problem& p, const Windows& w, const Resident& r, const L& layout) {
  const int lane = threadIdx.x % 32;
  const WindowGrid& grid = w.grid;
  const unsigned pixels = grid.rows * grid.columns, columns = grid.columns;
  const int2* list = w.blocks + layout.column / grid.outputs * w.block_count;
  const int2 mine = lane < layout.steps ? list[lane] : int2{};
  Place place{layout.stages};
  ptx::wait_dependencies();
  for (int tile = 0; tile < layout.tiles; ++tile) {
    const unsigned m = layout.row(tile), image = m / pixels, pixel = m - image * pixels;
    const unsigned line = pixel / columns;
    const int row = static_cast<int>(line) * grid.row_stride + grid.row_start;
    const int column = static_cast<int>(pixel - line * columns) * grid.column_stride + grid.column_start;
#pragma unroll 1
    for (int step = 0; step < layout.steps; ++step, place.next()) {
      const int channel = __shfl_sync(0xffffffff, mine.x, step), tap = __shfl_sync(0xffffffff, mine.y, step);
      ptx::barrier_wait(layout.empty(place.slot), place.phase ^ 1);
      if (lane == 0) {
        const uint32_t barrier = layout.full(place.slot);
        ptx::barrier_arrive_expect(barrier, kStage);
        ptx::load_im2col(layout.stage(place.slot), p.x, channel, column, row, image,
                         static_cast<uint16_t>(tap), static_cast<uint16_t>(tap >> 16), barrier);
      }
    }
#pragma unroll 1
    for (int piece = 0; piece < layout.more; ++piece, place.next()) {
      ptx::barrier_wait(layout.empty(place.slot), place.phase ^ 1);
      if (lane != 0) continue;
      const uint32_t barrier = layout.full(place.slot);
      if (layout.adds) {
        ptx::barrier_arrive_expect(barrier, kStage);
        ptx::load_box(layout.stage(place.slot), r.residual, m, layout.column + piece * kUnitColumns, barrier);
      } else {
        ptx::barrier_arrive(barrier);  // room for Y alone
      }
    }
  }
}

template <class Element, int WARPGROUPS, int COLUMNS>
class ResidentConsumer {
 public:
  using L = Layout<WARPGROUPS, COLUMNS>;
  __device__ ResidentConsumer(const Problem& p, const L& layout, int warp)
      : p_(p), layout_(layout), warp_(warp), place_{layout.stages} {}

  __device__ void run() {
    const int warpgroup = warp_ / 4;
    place_.skip(warpgroup * layout_.tile_stages());
    prefetch_columns<COLUMNS>(p_.output, layout_.column);
    // the first one's wait is for the last round of the last one
    uint32_t round = warpgroup == 0 ? 1 : 0;
    for (int tile = warpgroup; tile < layout_.tiles; tile += WARPGROUPS, round ^= 1) {
      float sums[COLUMNS / 2];
      ptx::barrier_wait(layout_.turn(warpgroup), round);
      multiply(sums, tile < WARPGROUPS);
      const int row = layout_.row(tile) + warp_ % 4 * 16;
      if (!p_.by_box) {
        finish_apart(sums, row);
      } else {
        finish(sums, row);
      }
      place_.skip((WARPGROUPS - 1) * layout_.tile_stages());
    }
    if (p_.by_box) ptx::wait_stores_read<0>();
  }

 private:
  // This warp's 16 rows of a stage.
  __device__ uint32_t own_rows(int slot) const { return layout_.stage(slot) + warp_ % 4 * (kStage / 4); }

  __device__ void release(int slot) const {
    if (threadIdx.x % 32 == 0) ptx::barrier_arrive(layout_.empty(slot));
  }

  // Leaves place_ at the first stage of Y.
  __device__ void multiply(float (&sums)[COLUMNS / 2], bool first) {
    const uint64_t w = wgmma::descriptor(layout_.memory, kRowBytes, 0);
    const uint64_t x = wgmma::descriptor(layout_.ring, kRowBytes, 0);
    const int released = layout_.tile_stages() - L::kPieces;  // what follows is Y's
    Place of_y = place_, previous = place_;
#pragma unroll 1
    for (int step = 0; step < layout_.steps; ++step) {
      if (first) ptx::barrier_wait(layout_.full_w(step), 0);
      ptx::barrier_wait(layout_.full(place_.slot), place_.phase);
      const uint64_t from = x + place_.slot * (kStage >> 4), with = w + step * (L::kWBytes >> 4);
      wgmma::fence();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        wgmma::Product<Element>::add(sums, from + 2 * i, with + 2 * i, step > 0 || i > 0);
      }
      wgmma::commit();
      wgmma::wait<1>();
      if (step > 0 && step <= released) release(previous.slot);
      previous = place_;
      place_.next();
      if (step < released) of_y = place_;
    }
    end_turn();
    wgmma::wait<0>();
    wgmma::settle(sums);
    if (layout_.steps <= released) release(previous.slot);
    place_ = of_y;
    // all warps have read X where Y comes
    if (layout_.steps > released) ptx::named_barrier_sync(1 + warp_ / 4, 128);
  }

  // A stage's phases are told apart by one bit: none is waited for before the one that the slot had last.
  __device__ void end_turn() const {
    Place place = place_;
    for (int piece = 0; piece < layout_.more; ++piece, place.next()) {
      ptx::barrier_wait(layout_.full(place.slot), place.phase);
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::barrier_arrive(layout_.turn((warp_ / 4 + 1) % WARPGROUPS));
  }

  __device__ void finish(const float (&sums)[COLUMNS / 2], int row) {
    switch (finish_of(p_.output.epilogue)) {
      case Finish::kFloor: store<Finish::kFloor>(sums, row); break;
      case Finish::kLine: store<Finish::kLine>(sums, row); break;
      case Finish::kSigmoid: store<Finish::kSigmoid>(sums, row); break;
      case Finish::kGelu: store<Finish::kGelu>(sums, row); break;
    }
  }

  // Y's stages are free when it has left.
  template <Finish FINISH>
  __device__ void store(const float (&sums)[COLUMNS / 2], int row) {
    constexpr int kType = kTypeCode<Element>;
    const bool leader = threadIdx.x % 32 == 0;
    int previous = 0;
#pragma unroll
    for (int piece = 0; piece < L::kPieces; ++piece) {
      const int first = layout_.column + piece * kUnitColumns;
      const uint32_t buffer = own_rows(place_.slot);
      if (first < p_.output.N) {
        if (layout_.adds) {
          store_box_added<kType, FINISH>(p_.output, p_.y, sums, piece, buffer, row, first);
        } else {
          const FragmentColumns columns{p_.output, first};
          finish_fragments<kType, FINISH, kUnitColumns>(p_.output, sums, 32 * piece, columns, buffer);
          ptx::fence_async_proxy();
          __syncwarp();
          if (leader) {
            ptx::store_box(p_.y, buffer, row, first);
            ptx::commit_stores();
          }
        }
      } else if (leader) {
        ptx::commit_stores();  // of nothing: groups are counted
      }
      if (leader && piece > 0) {
        ptx::wait_stores_read<1>();
        ptx::barrier_arrive(layout_.empty(previous));
      }
      previous = place_.slot;
      place_.next();
    }
    if (leader) {
      ptx::wait_stores_read<0>();
      ptx::barrier_arrive(layout_.empty(previous));
    }
    __syncwarp();
  }

  // Whatever else an epilogue may be: by units of half the columns, in Y's first stage.
  __device__ void finish_apart(const float (&sums)[COLUMNS / 2], int row) {
    constexpr int kColumns = kUnitColumns / 2;
#pragma unroll
    for (int first = 0; first < COLUMNS; first += kColumns) {
      const int column = layout_.column + first;
      if (column >= p_.output.N) break;
      const LaneColumns columns(p_.output, column, kColumns);
      __syncwarp();
      store_unit<kColumns>(own_rows(place_.slot), sums, first / 2);
      __syncwarp();
      finish_unit<16 / part_rows(kColumns)>(p_.output, own_rows(place_.slot), row, column, columns, kColumns);
    }
    ptx::fence_async_proxy();
    __syncwarp();
    for (int piece = 0; piece < L::kPieces; ++piece, place_.next()) release(place_.slot);
  }

  const Problem& p_;
  const L& layout_;
  int warp_;
  Place place_;
};

template <class Element, int WARPGROUPS, int COLUMNS>
__device__ void conv_resident(const Problem& p, const Windows& w, const Resident& r) {
  using L = Layout<WARPGROUPS, COLUMNS>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  const L layout(p, r, ptx::shared_address(shared));
  if (warp == L::kWarps && ptx::elect_one()) {
    ptx::prefetch_map(p.x);
    ptx::prefetch_map(p.w);
    if (p.by_box) ptx::prefetch_map(p.y);
    if (layout.adds) ptx::prefetch_map(r.residual);
    for (int slot = 0; slot < layout.stages; ++slot) {
      ptx::barrier_init(layout.full(slot), 1);
      ptx::barrier_init(layout.empty(slot), 4);
    }
    for (int warpgroup = 0; warpgroup < WARPGROUPS; ++warpgroup) ptx::barrier_init(layout.turn(warpgroup), 4);
    for (int step = 0; step < layout.steps; ++step) ptx::barrier_init(layout.full_w(step), 1);
    ptx::fence_barrier_init();
  }
  __syncthreads();
  ptx::launch_dependents();
  if (warp >= L::kWarps) {
    if constexpr (L::kMovesRegisters) ptx::give_up_registers<40>();
    if (warp == L::kWarps) load_tiles(p, w, r, layout);
    if (warp == L::kWarps + 1) load_w_once(p, layout);
  } else {
    if constexpr (L::kMovesRegisters) ptx::take_registers<232>();
    ResidentConsumer<Element, WARPGROUPS, COLUMNS> consumer(p, layout, warp);
    touch(p.output);
    ptx::wait_dependencies();
    consumer.run();
  }
}

}  // namespace
}  // namespace hopper

#define KERNEL(type, Element, COLUMNS, WARPGROUPS)                                               \
  extern "C" __global__ void __launch_bounds__(hopper::Layout<WARPGROUPS, COLUMNS>::kThreads, 1) \
      resident_##type##_##COLUMNS##x##WARPGROUPS(const __grid_constant__ hopper::Problem p,      \
                                                 const __grid_constant__ hopper::Windows w,      \
                                                 const __grid_constant__ hopper::Resident r) {   \
    hopper::conv_resident<Element, WARPGROUPS, COLUMNS>(p, w, r);                                \
  }
#define KERNELS(type, Element) \
  KERNEL(type, Element, 64, 4) \
  KERNEL(type, Element, 128, 2)

KERNELS(fp16, __half)
KERNELS(bf16, __nv_bfloat16)
