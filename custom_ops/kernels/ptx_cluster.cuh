// How blocks of a cluster start together and send each other results: beside ptx_hopper.cuh.
#pragma once

#include <cstdint>

namespace ptx {

// The two halves of cluster_sync.
__device__ inline void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait;" ::: "memory"); }

// 8 bytes to `to` in another block of the cluster, asynchronously; completes on `barrier` there.
__device__ inline void store_at(uint32_t to, float a, float b, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(to),
               "f"(a), "f"(b), "r"(barrier)
               : "memory");
}

}  // namespace ptx
