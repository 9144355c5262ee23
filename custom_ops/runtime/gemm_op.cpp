// DeftGemm as ONNX Runtime sees it: names, types, and the border between exceptions and OrtStatus.
//
// ONNX Runtime gathers custom operators of one name into one schema and finds the kernel by types, so there
// is one OrtCustomOp for each combination of the types of X and Y (W may have any until the kernel is made).
// It takes the type of Y from the first of them that fits the inputs: X's type comes first, and another one
// must show in the type of the residual.
#include "gemm_op.h"

#include <exception>
#include <string>

#include "cpu_gemm.h"
#include "cuda_gemm.h"
#include "error.h"

namespace deftonnx {
namespace {

enum Input : size_t { kX, kWeight, kScale, kBias, kKept, kResidual, kInputCount };

constexpr const char* kName = "DeftGemm";
constexpr int kMostBodies = 64;  // deftonnx/formats/gemm_function.py

struct GemmOp : OrtCustomOp {
  std::string name;
  ElementType x_type, y_type;
};

template <class Kernel>
struct State {
  Ort ort;
  Kernel kernel;
};

const GemmOp& Self(const OrtCustomOp* op) { return *static_cast<const GemmOp*>(op); }

ElementType InputType(const OrtCustomOp* op, size_t index) {
  switch (index) {
    case kX: return Self(op).x_type;
    case kWeight: return ElementType::kUndefined;
    case kKept: return ElementType::kInt32;
    case kResidual: return Self(op).y_type;
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
GemmOp MakeOp(ElementType x, ElementType y, const char* (*provider)(const OrtCustomOp*)) {
  GemmOp op{};
  op.version = kApiVersion;
  op.GetName = [](const OrtCustomOp* self) { return Self(self).name.c_str(); };
  op.GetExecutionProviderType = provider;
  op.GetInputType = InputType;
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kInputCount; };
  op.GetOutputType = [](const OrtCustomOp* self, size_t) { return Self(self).y_type; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.KernelDestroy = [](void* kernel) { delete static_cast<State<Kernel>*>(kernel); };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t i) -> int {
    return i < kKept ? kRequired : kOptional;
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

// A model names its nodes by their function bodies: DeftGemm, DeftGemm_2 ... See gemm_function.py.
std::vector<GemmOp> WithNumberedNames(const std::vector<GemmOp>& ops) {
  std::vector<GemmOp> all;
  for (int number = 1; number <= kMostBodies; ++number) {
    for (const GemmOp& op : ops) {
      all.push_back(op);
      all.back().name = number == 1 ? kName : kName + ("_" + std::to_string(number));
    }
  }
  return all;
}

}  // namespace

std::vector<OrtCustomOp*> GemmOps() {
  static std::vector<GemmOp> ops = [] {
    std::vector<GemmOp> all;
    const auto add = [&](ElementType x, ElementType y) {
      all.push_back(MakeOp<CudaGemm>(x, y, CudaProvider));
      all.push_back(MakeOp<CpuGemm>(x, y, CpuProvider));
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
  for (GemmOp& op : ops) pointers.push_back(&op);
  return pointers;
}

}  // namespace deftonnx
