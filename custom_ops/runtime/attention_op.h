// DeftAttention (deftonnx/formats/attention_function.py) for registration in a custom operator domain.
#pragma once

#include <vector>

#include "kernel_image.h"
#include "ort_abi.h"

namespace deftonnx {

// The kernels of kernels/attention.cu and attention_hopper.cu.
struct AttentionImage {
  KernelImage image;
  ElementType type;
  int head_size;   // at most
  int rows;        // of Y that a block makes
  int turn_bytes;  // of its shared memory, for rotary embeddings alone
  bool wgmma;      // machine code for compute capability 9.0 alone
};

extern const ImageTable<AttentionImage> kAttentionImages;

// One for each provider and type; they live as long as the process.
std::vector<OrtCustomOp*> AttentionOps();

}  // namespace deftonnx
