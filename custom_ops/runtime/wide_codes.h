// deft8:6 and deft8:7 under float16 X, on kernels that unpack weights to float16: its five exponent bits are
// too few, so each output feature's weights are divided by a power of two that puts the largest at the top of
// float16's range, and its scale is multiplied by the same. Thirty octaves are exact; what lies below becomes
// zero. That is allowed only where it cannot be told from float32 rounding: where the magnitudes that an
// output feature loses add up to less than 2^-24 of its largest.
#pragma once

#include <memory>

#include "device_buffer.h"
#include "gemm_kernel.h"

namespace deftonnx {

struct WideCodes {
  DeviceBuffer floors;  // (N,) as WideDecoder of kernels/gemm_hopper_codes.cu takes it
  DeviceBuffer scale;   // (N,) of what it makes of the codes

  // How far to the left it shifts magnitudes.
  static int Shift(int exponent_bits) { return exponent_bits - 5; }

  // For the node's weight, read from the device; null where too much would be lost. Throws CudaError.
  static std::shared_ptr<const WideCodes> Make(const GemmNode& node);
};

}  // namespace deftonnx
