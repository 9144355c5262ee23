// Which kernel multiplies which shape.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gemm_spec.h"
#include "kernel_image.h"

namespace deftonnx {

// The images that can compute `spec` on a device of compute capability `capability`: of the newest
// architecture whose machine code the device runs, and only of the fastest kind of loader that the shape
// allows, or the one called spec.kernel if that is set. Throws InvalidNode if there is none.
std::vector<const KernelImage*> Candidates(const GemmSpec& spec, int capability);

// The candidate of least estimated time for M rows on a GPU of that many multiprocessors.
const KernelImage* Choose(const std::vector<const KernelImage*>& candidates, const GemmSpec& spec, int64_t M,
                          int multiprocessors);

// How many blocks share the K axis of a tile, as a cluster: enough to give each multiprocessor a block and a
// half.
int ClusterSize(const KernelImage& image, const GemmSpec& spec, int multiprocessors);

}  // namespace deftonnx
