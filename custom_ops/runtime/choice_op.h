// The custom operator ai.deftonnx.choice::DeftGemmChoice: which kernels would serve a DeftGemm node, and how
// long they would take, on a GPU that need not be there. Tools ask it (`deftonnx doctor`, `deftonnx tune`) in
// a session on the CPU, so that the library exports nothing but its entry point. No model holds such nodes:
// only options with the configuration entry "deftonnx.choice_operators" get them.
//
// Inputs: M (count,) int64, numbers of rows of X; optionally the node's kept blocks, int32 and constant.
// Output: uint8 text, a line for each M and kernel that takes so many rows:
//   M <tab> kernel <tab> the kernel's own estimate in nanoseconds <tab> the same corrected by measurements
// Attributes: those of DeftGemm, and x_type, w_type (ONNX element types), rows (of X, as far as they are
// known when a session is made; else 0), has_residual, capability (90 for 9.0), multiprocessors.
#pragma once

#include "ort_abi.h"

namespace deftonnx {

// The operator to register; it lives as long as the library.
OrtCustomOp* ChoiceOp();

// ai.deftonnx.choice::DeftConvChoice, the same for a DeftConv node: which kernels would be measured at the
// first run of a shape. cuDNN is among them whether it is installed or not.
//
// Input: images (count, 3) int64: batch, rows, columns of X.
// Output: uint8 text, a line for each shape and kernel, the least estimate first:
//   index of the shape <tab> kernel <tab> its own estimate in nanoseconds
// Attributes: those of DeftConv, and x_type, w_type, has_residual, capability, multiprocessors.
OrtCustomOp* ConvChoiceOp();

}  // namespace deftonnx
