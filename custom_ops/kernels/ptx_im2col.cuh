// The copy engine's im2col mode (sm_90), for maps that runtime/cuda_driver.h makes of activations.
#pragma once

#include <cstdint>

#include "ptx_hopper.cuh"

namespace ptx {

// For as many windows of the filter as the map has pixels a column, in the order of output pixels from the
// one whose window starts at (row, column) of image `batch`: the channels from `channel` on at the tap that
// lies (tap_row, tap_column) pixels inside the window. Zeros outside the image.
__device__ inline void load_im2col(uint32_t shared, const TensorMap& map, int channel, int column, int row,
                                   int batch, uint16_t tap_column, uint16_t tap_row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5}], [%6], {%7, %8};" ::"r"(shared),
      "l"(&map), "r"(channel), "r"(column), "r"(row), "r"(batch), "r"(barrier), "h"(tap_column), "h"(tap_row)
      : "memory");
}

// The same to the same place of every block of the cluster whose bit of `blocks` is set, and to its barrier.
__device__ inline void load_im2col_multicast(uint32_t shared, const TensorMap& map, int channel, int column,
                                             int row, int batch, uint16_t tap_column, uint16_t tap_row,
                                             uint32_t barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3, %4, %5}], [%6], {%7, %8}, %9;" ::"r"(shared),
      "l"(&map), "r"(channel), "r"(column), "r"(row), "r"(batch), "r"(barrier), "h"(tap_column), "h"(tap_row),
      "h"(blocks)
      : "memory");
}

}  // namespace ptx
