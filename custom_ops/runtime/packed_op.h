// DeftGemm and DeftConv for registration in a custom operator domain.
#pragma once

#include <vector>

#include "ort_abi.h"

namespace deftonnx {

// One for each operator, provider and combination of types; they live as long as the process.
std::vector<OrtCustomOp*> PackedOps();

}  // namespace deftonnx
