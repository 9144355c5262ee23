// DeftChannelsLast (deftonnx/formats/channels_last_function.py) for registration in a custom operator domain.
#pragma once

#include <vector>

#include "kernel_image.h"
#include "ort_abi.h"

namespace deftonnx {

// The kernels of kernels/channels_last.cu.
struct ChannelsLastImage {
  KernelImage image;
  int element_size;  // bytes
};

extern const ImageTable<ChannelsLastImage> kChannelsLastImages;

// One for each provider and type; they live as long as the process.
std::vector<OrtCustomOp*> ChannelsLastOps();

}  // namespace deftonnx
