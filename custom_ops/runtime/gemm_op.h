// The custom operator ai.deftonnx::DeftGemm.
#pragma once

#include <vector>

#include "ort_abi.h"

namespace deftonnx {

// The operators to register; they live as long as the library.
std::vector<OrtCustomOp*> GemmOps();

}  // namespace deftonnx
