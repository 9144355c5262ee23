// Errors inside the library. They become OrtStatus at the ABI: no exception leaves the library.
#pragma once

#include <stdexcept>

namespace deftonnx {

// A node that the operator refuses: the message names the node, the attribute or input, and what was
// expected.
struct InvalidNode : std::runtime_error {
  using runtime_error::runtime_error;
};

// ONNX Runtime reported a failure.
struct OrtError : std::runtime_error {
  using runtime_error::runtime_error;
};

// The CUDA driver reported a failure.
struct CudaError : std::runtime_error {
  using runtime_error::runtime_error;
};

}  // namespace deftonnx
