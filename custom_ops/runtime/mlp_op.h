// DeftMlp (deftonnx/formats/mlp_function.py) for registration in a custom operator domain.
#pragma once

#include <vector>

#include "ort_abi.h"

namespace deftonnx {

// One for each provider and type; they live as long as the process.
std::vector<OrtCustomOp*> MlpOps();

}  // namespace deftonnx
