// Numbers of cuDNN's graph API that the descriptors of a convolution take; see cudnn.h.
#pragma once

#include <cstdint>

namespace deftonnx::cudnn {

// Attribute numbers, of cuDNN's cudnnBackendAttributeName_t.
enum Attribute : int {
  kPointwiseMode = 0,
  kPointwiseMathType = 1,
  kPointwiseLowerClip = 3,
  kPointwiseUpperClip = 4,
  kPointwiseLowerSlope = 5,
  kPointwiseSwishBeta = 8,
  kConvolutionMathType = 100,
  kConvolutionMode = 101,
  kConvolutionDilations = 102,
  kConvolutionStrides = 103,
  kConvolutionPadEnd = 104,
  kConvolutionPadBegin = 105,
  kConvolutionAxes = 106,
  kHeuristicMode = 200,
  kHeuristicGraph = 201,
  kHeuristicResults = 202,
  kConfigEngine = 300,
  kPlanHandle = 400,
  kPlanConfig = 401,
  kPlanWorkspace = 402,
  kForwardAlpha = 700,
  kForwardBeta = 701,
  kForwardConvolution = 702,
  kForwardW = 703,
  kForwardX = 704,
  kForwardY = 705,
  kPointwiseOperator = 750,
  kPointwiseX = 751,
  kPointwiseB = 752,
  kPointwiseY = 753,
  kGraphHandle = 800,
  kGraphOperations = 801,
  kTensorAlignment = 900,
  kTensorType = 901,
  kTensorSizes = 902,
  kTensorStrides = 903,
  kTensorId = 906,
  kTensorVirtual = 907,
  kPackIds = 1000,
  kPackPointers = 1001,
  kPackWorkspace = 1003,
  kEngineNotes = 1303,
};

// How plans and their runs call the tensors of a convolution's graph.
enum TensorId : int64_t { kX = 1, kW, kScale, kBias, kResidual, kY, kFirstVirtual };

}  // namespace deftonnx::cudnn
