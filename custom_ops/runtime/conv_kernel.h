// What DeftConv sees of its CUDA kernels: each says how long it would take for images of a shape, and
// launches.
//
// Kernels come in families, one .cpp file each (conv_cudnn.cpp, conv_hopper.cpp ...): the family is a
// function that appends its kernels able to serve a node, and cuda_conv.cpp lists the families.
#pragma once

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "conv_spec.h"
#include "cuda_driver.h"
#include "device_buffer.h"

namespace deftonnx {

struct Weight16;

// W in 16 bits, which tensor cores multiply, and what is left of its scale. Where a row's values leave
// float16's range, a power of two moves into its scale: what then still underflows is under 2^-38 of the
// row's largest value. Values of more bits than X's type are rounded to it (half under bfloat16, deft16q). X
// must be float16 or bfloat16.
struct HostWeight16 {
  std::vector<uint16_t> values;  // (N, K) of X's type
  std::vector<float> scale;      // (N,)
};

// A DeftConv node on one device: what does not change between runs. Lives longer than its kernels.
struct ConvNode {
  ConvSpec spec;
  const CudaDriver& driver;
  CUdevice device;
  int capability;  // compute capability, 90 for 9.0
  int multiprocessors;
  const void* packed;         // W in device memory, or null where there is only `unpacked`
  const void* packed_scale;   // (N,) float32, beside `packed`
  std::vector<float> scale;   // (N,) on the host
  const void* bias;           // (N,) in device memory
  std::vector<int32_t> kept;  // the kept blocks, if features are eliminated

  const void* session = nullptr;  // see Ort::SessionOf
  // X's size as far as it is known when the session is made, which is before the batch is: 0 if it is not.
  int64_t known_rows = 0, known_columns = 0;

  mutable std::shared_ptr<const Weight16> weight16 = nullptr;  // see SharedWeight16
  mutable std::vector<float> unpacked = {};                    // see Weight
  mutable HostWeight16 rounded = {};                           // see RoundedWeight16

  // (N, K) values without the scale, on the host: unpacked when first asked for, while kernels are made.
  const std::vector<float>& Weight() const;

  // Whether a kernel of that name is to be prepared: the node may ask for a single one, or for those whose
  // names begin with a word or several.
  bool Admits(const std::string& kernel) const {
    return spec.kernel.empty() || (kernel + '_').rfind(spec.kernel + '_', 0) == 0;
  }
};

// Made once a node, while its kernels are made.
const HostWeight16& RoundedWeight16(const ConvNode& node);

// The same in device memory.
struct Weight16 {
  DeviceBuffer values;  // (N, K) of X's type
  DeviceBuffer scale;   // (N,) float32
  bool scaled;          // whether any scale is not 1
};

// Made once a node, while its kernels are made; W itself where it has the layout and type already.
std::shared_ptr<const Weight16> SharedWeight16(const ConvNode& node);

// One run of a node. Pointers are to device memory, at multiples of 16 bytes: aligned.h.
struct ConvCall {
  ConvShape shape;  // at least one pixel
  const void* x;
  const void* residual;  // null if there is none
  void* y;
  void* scratch;  // ScratchBytes(shape), 256-byte aligned; null if that is 0
  CUstream stream;
};

constexpr double kConvRefused = std::numeric_limits<double>::infinity();

class ConvKernel {
 public:
  virtual ~ConvKernel() = default;

  virtual const char* Name() const = 0;

  // The estimated time, or kConvRefused. What is within a factor of the least is measured at the first run of
  // a shape. The first call for a shape may take long and allocate.
  virtual double Nanoseconds(const ConvShape& shape) = 0;

  // Whether Nanoseconds refuses no shape.
  virtual bool ServesEveryShape() const { return true; }

  // Whether Nanoseconds and Launch neither allocate nor wait for anything.
  virtual bool IsReady(const ConvShape&) { return true; }

  virtual size_t ScratchBytes(const ConvShape&) { return 0; }

  // Launches on call.stream, one kernel or several: no allocation, no synchronisation. Safe in several
  // threads at once. Throws CudaError.
  virtual void Launch(const ConvCall& call) = 0;
};

using ConvKernels = std::vector<std::unique_ptr<ConvKernel>>;

// The families; each appends its kernels that can serve `node`. Throws CudaError. cuDNN's come last: they
// compare themselves with those that are there.
void HopperConvKernels(const ConvNode& node, ConvKernels& kernels);
void ResidentConvKernels(const ConvNode& node, ConvKernels& kernels);
void FewChannelsConvKernels(const ConvNode& node, ConvKernels& kernels);
void DepthwiseConvKernels(const ConvNode& node, ConvKernels& kernels);
void DirectConvKernels(const ConvNode& node, ConvKernels& kernels);
void CudnnConvKernels(const ConvNode& node, ConvKernels& kernels);

}  // namespace deftonnx
