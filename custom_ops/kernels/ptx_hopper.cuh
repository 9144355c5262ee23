// Hopper's own instructions (sm_90a), one function each, but for wgmma: that is wgmma.cuh. Names follow the
// PTX manual; `shared` arguments are 32-bit addresses in the shared window, and a barrier is such an address
// too.
#pragma once

#include <cstdint>

namespace ptx {

// A tensor map, made by the driver (runtime/cuda_driver.h). Pass it in a __grid_constant__ parameter.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// One lane of a converged warp, always the same.
__device__ inline bool elect_one() {
  uint32_t elected;
  asm volatile("{\n .reg .pred p;\n elect.sync _|p, 0xffffffff;\n selp.u32 %0, 1, 0, p;\n}" : "=r"(elected));
  return elected != 0;
}

// Registers a thread of this warpgroup may use from here on: fewer, or more once another warpgroup gave them
// up.
template <int COUNT>
__device__ inline void give_up_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// --- barriers
// ---------------------------------------------------------------------------------------------------

__device__ inline void barrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the other blocks of the cluster and to the copy engine.
__device__ inline void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives at the same barrier of block `rank` of the cluster. Releases nothing written by this thread to
// other blocks: .release.cluster would cost a fence of the whole GPU each time.
__device__ inline void barrier_arrive_at(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n .reg .b32 remote;\n mapa.shared::cluster.u32 remote, %0, %1;\n"
      " mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// Arrives and announces `bytes` of copies that will complete on the barrier.
__device__ inline void barrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ inline bool barrier_try_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

// Waits for the phase of this parity to complete.
__device__ inline void barrier_wait(uint32_t barrier, uint32_t parity) {
#ifdef DEFTONNX_WATCHDOG  // a lost arrival ends in an error instead of a hang
  for (uint32_t polls = 0; !barrier_try_wait(barrier, parity); ++polls) {
    if (polls == 1u << 22) __trap();
  }
#else
  while (!barrier_try_wait(barrier, parity)) {
  }
#endif
}

// A hardware barrier among `threads` threads of the block; 0 is __syncthreads's.
__device__ inline void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// --- clusters
// ---------------------------------------------------------------------------------------------------

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of the cluster. Orders no memory: that would cost a fence of the whole GPU.
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.relaxed;\n barrier.cluster.wait;" ::: "memory");
}

// The address of the same shared memory of block `rank`.
__device__ inline uint32_t address_at(uint32_t shared, uint32_t rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared), "r"(rank));
  return address;
}

// 16 bytes to `to` in another block of the cluster, asynchronously; completes on `barrier` there.
__device__ inline void store_at(uint32_t to, const float* v, uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
      "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(barrier)
      : "memory");
}

// --- dependent launches
// -----------------------------------------------------------------------------------------

// The next kernel of the stream may start; what it reads of ours it waits for.
__device__ inline void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;"); }

// Waits until the kernels before this one have ended and their writes are visible.
__device__ inline void wait_dependencies() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// --- the copy engine
// --------------------------------------------------------------------------------------------

__device__ inline void prefetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// The box of a matrix whose first element is (row, column), to shared memory; zeros beyond the matrix.
__device__ inline void load_box(uint32_t shared, const TensorMap& map, int row, int column,
                                uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], "
      "[%4];" ::"r"(shared),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

// The same to the same place of every block of the cluster whose bit of `blocks` is set, and to its barrier.
__device__ inline void load_box_multicast(uint32_t shared, const TensorMap& map, int row, int column,
                                          uint32_t barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], "
      "[%1, {%2, %3}], [%4], %5;" ::"r"(shared),
      "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(blocks)
      : "memory");
}

// A box from shared memory to the matrix; what lies beyond the matrix is left out.
__device__ inline void store_box(const TensorMap& map, uint32_t shared, int row, int column) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map),
               "r"(column), "r"(row), "r"(shared)
               : "memory");
}

__device__ inline void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until all but the last PENDING groups of stores have read their shared memory.
template <int PENDING>
__device__ inline void wait_stores_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// Orders ordinary writes to shared memory before later reads by the copy engine and the tensor cores.
__device__ inline void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// --- copies by threads
// ------------------------------------------------------------------------------------------

// 16 bytes from global to shared memory, asynchronously; zeros if not `inside`.
__device__ inline void copy_16(uint32_t shared, const void* global, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(inside ? 16 : 0)
               : "memory");
}

// The same by way of the first-level cache.
__device__ inline void copy_16_cached(uint32_t shared, const void* global, bool inside) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(inside ? 16 : 0)
               : "memory");
}

// 4 bytes.
__device__ inline void copy_4(uint32_t shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(global) : "memory");
}

// Closes a group of copies of this thread.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all but the last PENDING groups are done.
template <int PENDING>
__device__ inline void wait_copy_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Waits for all earlier copies of this thread.
__device__ inline void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// One of the barrier's expected arrivals, made when all earlier copies of this thread are done.
__device__ inline void barrier_arrive_after_copies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Brings the line of that address to the first-level cache.
__device__ inline void prefetch_line(const void* global) {
  asm volatile("prefetch.global.L1 [%0];" ::"l"(global));
}

// Four 8 by 8 matrices of 16-bit elements; lane 8 i + r gives the address of row r of matrix i, and has of
// each matrix row lane / 4, columns 2 (lane % 4) and the next.
__device__ inline void load_matrices(uint32_t shared, uint32_t (&d)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(shared)
               : "memory");
}

// Stores them.
__device__ inline void store_matrices(uint32_t shared, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(a),
               "r"(b), "r"(c), "r"(d)
               : "memory");
}

// The same, each matrix transposed.
__device__ inline void store_transposed(uint32_t shared, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(a),
               "r"(b), "r"(c), "r"(d)
               : "memory");
}

// Two bytes, the rest of the register zero.
__device__ inline uint32_t load_two_bytes(uint32_t shared) {
  uint32_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=r"(v) : "r"(shared) : "memory");
  return v;
}

// The two lower bytes as two signed 16-bit numbers.
__device__ inline uint32_t extend_signs(uint32_t bytes) {
  uint32_t halves;
  asm("prmt.b32 %0, %1, 0, 0x9180;" : "=r"(halves) : "r"(bytes));
  return halves;
}

__device__ inline void store_shared(uint32_t shared, float a) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(shared), "f"(a) : "memory");
}

__device__ inline void store_shared(uint32_t shared, float a, float b) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(shared), "f"(a), "f"(b) : "memory");
}

__device__ inline void store_shared(uint32_t shared, const float4& v) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "f"(v.x), "f"(v.y), "f"(v.z),
               "f"(v.w)
               : "memory");
}

__device__ inline float4 load_shared(uint32_t shared) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(shared)
               : "memory");
  return v;
}

__device__ inline uint4 load_shared_16(uint32_t shared) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(shared)
               : "memory");
  return v;
}

}  // namespace ptx
