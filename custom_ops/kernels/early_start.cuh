// Kernels that start before the one ahead of them in the stream has ended (compute capability 9.0).
#pragma once

// Lets the next kernel start, and waits until those before this one have ended and their writes are visible.
// What is read through the read-only cache (__ldg) after it must not be theirs: such a load may come first.
__device__ inline void wait_for_operands() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
