// DeftGemm and DeftConv as ONNX Runtime sees them: names, types, and the border between exceptions and
// OrtStatus.
//
// ONNX Runtime gathers custom operators of one name into one schema and finds the kernel by types, so there
// is one OrtCustomOp for each combination of the types of X and Y (W may have any until the kernel is made).
// It takes the type of Y from the first of them that fits the inputs: X's type comes first, and another one
// must show in the type of the residual.
#include "packed_op.h"

#include <exception>
#include <string>

#include "cpu_conv.h"
#include "cpu_gemm.h"
#include "cuda_conv.h"
#include "cuda_gemm.h"
#include "error.h"
#include "packed_node.h"

namespace deftonnx {
namespace {

constexpr int kMostBodies = 64;  // deftonnx/formats/operator_function.py

struct PackedOp : OrtCustomOp {
  std::string name;
  ElementType x_type, y_type;
};

template <class Kernel>
struct State {
  Ort ort;
  Kernel kernel;
};

const PackedOp& Self(const OrtCustomOp* op) { return *static_cast<const PackedOp*>(op); }

ElementType InputType(const OrtCustomOp* op, size_t index) {
  switch (index) {
    case kInputX: return Self(op).x_type;
    case kInputWeight: return ElementType::kUndefined;
    case kInputKept: return ElementType::kInt32;
    case kInputResidual: return Self(op).y_type;
    default: return ElementType::kFloat;
  }
}

template <class Body>
OrtStatus* AsStatus(const Ort& ort, Body body) {
  try {
    body();
    return nullptr;
  } catch (const InvalidNode& error) {
    return ort.CreateStatus(ErrorCode::kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return ort.CreateStatus(ErrorCode::kFail, error.what());
  }
}

template <class Kernel>
OrtStatus* CreateKernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
  Ort ort(api);
  return AsStatus(
      ort, [&] { *kernel = new State<Kernel>{ort, Kernel(ort, info, Self(op).x_type, Self(op).y_type)}; });
}

template <class Kernel>
OrtStatus* Compute(void* kernel, OrtKernelContext* context) {
  auto* state = static_cast<State<Kernel>*>(kernel);
  return AsStatus(state->ort, [&] { state->kernel.Compute(state->ort, context); });
}

template <class Kernel>
PackedOp MakeOp(const char* name, ElementType x, ElementType y, const char* (*provider)(const OrtCustomOp*)) {
  PackedOp op{};
  op.name = name;
  op.version = kApiVersion;
  op.GetName = [](const OrtCustomOp* self) { return Self(self).name.c_str(); };
  op.GetExecutionProviderType = provider;
  op.GetInputType = InputType;
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kPackedInputs; };
  op.GetOutputType = [](const OrtCustomOp* self, size_t) { return Self(self).y_type; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.KernelDestroy = [](void* kernel) { delete static_cast<State<Kernel>*>(kernel); };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t i) -> int {
    return i < kInputKept ? kRequired : kOptional;
  };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return kRequired; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = CreateKernel<Kernel>;
  op.KernelComputeV2 = Compute<Kernel>;
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  op.x_type = x;
  op.y_type = y;
  return op;
}

const char* CudaProvider(const OrtCustomOp*) { return "CUDAExecutionProvider"; }
const char* CpuProvider(const OrtCustomOp*) { return "CPUExecutionProvider"; }

// A model names its nodes by their function bodies: DeftGemm, DeftGemm_2 ... See operator_function.py.
std::vector<PackedOp> WithNumberedNames(const std::vector<PackedOp>& ops) {
  std::vector<PackedOp> all;
  for (int number = 1; number <= kMostBodies; ++number) {
    for (const PackedOp& op : ops) {
      all.push_back(op);
      if (number > 1) all.back().name += "_" + std::to_string(number);
    }
  }
  return all;
}

}  // namespace

std::vector<OrtCustomOp*> PackedOps() {
  static std::vector<PackedOp> ops = [] {
    std::vector<PackedOp> all;
    const auto add = [&](ElementType x, ElementType y) {
      all.push_back(MakeOp<CudaGemm>("DeftGemm", x, y, CudaProvider));
      all.push_back(MakeOp<CpuGemm>("DeftGemm", x, y, CpuProvider));
      all.push_back(MakeOp<CudaConv>("DeftConv", x, y, CudaProvider));
      all.push_back(MakeOp<CpuConv>("DeftConv", x, y, CpuProvider));
    };
    const ElementType types[] = {ElementType::kFloat, ElementType::kFloat16, ElementType::kBfloat16};
    for (ElementType x : types) add(x, x);
    for (ElementType x : types) {
      for (ElementType y : types) {
        if (x != y) add(x, y);
      }
    }
    return WithNumberedNames(all);
  }();
  std::vector<OrtCustomOp*> pointers;
  for (PackedOp& op : ops) pointers.push_back(&op);
  return pointers;
}

}  // namespace deftonnx
