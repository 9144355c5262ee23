// The part of ONNX Runtime's C ABI that the library uses. ONNX Runtime only ever appends to it, so the slot
// numbers below hold for every version from kApiVersion on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace deftonnx {

constexpr uint32_t kApiVersion = 24;  // the oldest with everything used here

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtLogger;
struct OrtValue;
struct OrtTypeInfo;
struct OrtTensorInfo;  // OrtTensorTypeAndShapeInfo

enum class ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10,
  kUint32 = 12,
  kBfloat16 = 16,
};

inline int ElementBytes(ElementType type) {
  if (type == ElementType::kUint8) return 1;
  return type == ElementType::kFloat16 || type == ElementType::kBfloat16 ? 2 : 4;
}

enum class ErrorCode : int { kFail = 1, kInvalidArgument = 2, kNotImplemented = 9 };

struct OrtApi {
  void* slot[415];
};

struct OrtAllocator {
  uint32_t version;
  void* (*Alloc)(OrtAllocator*, size_t bytes);
  void (*Free)(OrtAllocator*, void* memory);
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  ElementType (*GetInputType)(const OrtCustomOp*, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  ElementType (*GetOutputType)(const OrtCustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int** input, int** output);
  void (*ReleaseMayInplace)(int* input, int* output);
  size_t (*GetAliasMap)(int** input, int** output);
  void (*ReleaseAliasMap)(int* input, int* output);
};

enum Characteristic : int { kRequired = 0, kOptional = 1, kVariadic = 2 };

// A tensor as a kernel sees it.
struct Tensor {
  const void* data = nullptr;
  ElementType type = ElementType::kUndefined;
  std::vector<int64_t> shape;
};

// Typed access to an OrtApi. Functions that can fail throw OrtError with ONNX Runtime's own message.
class Ort {
 public:
  explicit Ort(const OrtApi* api) : api_(api) {}

  OrtStatus* CreateStatus(ErrorCode code, const std::string& message) const;
  OrtStatus* CreateDomain(const char* name, const std::vector<OrtCustomOp*>& ops,
                          OrtCustomOpDomain** domain) const;
  OrtStatus* AddDomain(OrtSessionOptions* options, OrtCustomOpDomain* domain) const;
  bool HasConfigEntry(const OrtSessionOptions* options, const char* key) const;
  void AddConfigEntry(OrtSessionOptions* options, const char* key, const char* value) const;

  // A warning in the session's log.
  void Warn(const OrtKernelInfo* info, const std::string& message) const;

  int64_t AttributeInt(const OrtKernelInfo* info, const char* name) const;
  std::vector<int64_t> AttributeInts(const OrtKernelInfo* info, const char* name) const;
  // Nothing where there is no such attribute: an exception would take longer than a node's other attributes.
  std::optional<std::vector<int64_t>> OptionalAttributeInts(const OrtKernelInfo* info,
                                                            const char* name) const;
  float AttributeFloat(const OrtKernelInfo* info, const char* name) const;
  std::vector<float> AttributeFloats(const OrtKernelInfo* info, const char* name) const;
  std::string AttributeString(const OrtKernelInfo* info, const char* name) const;
  std::string NodeName(const OrtKernelInfo* info) const;
  // The same for all nodes of a session, while it lives, and for no node of another.
  const void* SessionOf(const OrtKernelInfo* info) const;
  size_t InputCount(const OrtKernelInfo* info) const;
  // False for an optional input that is left out, also where its place is kept by an empty name.
  bool HasInput(const OrtKernelInfo* info, size_t index) const;
  // As far as it is known when the session is made: -1 for an axis that is not, no axes if none is.
  std::vector<int64_t> InputShape(const OrtKernelInfo* info, size_t index) const;
  // Empty if input `index` is not an initializer. Its data is where the execution provider put it.
  bool ConstantInput(const OrtKernelInfo* info, size_t index, Tensor* tensor) const;

  // The execution provider's allocator for the node's inputs and outputs; to be given back.
  OrtAllocator* DeviceAllocator(const OrtKernelInfo* info) const;
  void Release(OrtAllocator* allocator) const;

  size_t InputCount(const OrtKernelContext* context) const;
  Tensor Input(const OrtKernelContext* context, size_t index) const;
  void* Output(OrtKernelContext* context, size_t index, const std::vector<int64_t>& shape) const;
  // Calls task(state, i) for every i below count on the session's own threads; returns when all are done.
  // `task` must not throw.
  void ParallelFor(const OrtKernelContext* context, void (*task)(void*, size_t), size_t count,
                   void* state) const;
  void* ComputeStream(const OrtKernelContext* context) const;

 private:
  void Check(OrtStatus* status) const;
  void ReleaseStatus(OrtStatus* status) const;
  Tensor View(const OrtValue* value) const;
  template <class... Args>
  OrtStatus* Call(int slot, Args... args) const {
    return reinterpret_cast<OrtStatus* (*)(Args...)>(api_->slot[slot])(args...);
  }

  const OrtApi* api_;
};

// Device memory for the length of a call that enqueues work. The provider gives it to later work of the same
// stream alone, which runs after this work. Null for 0 bytes. Throws OrtError if there is none left.
class Scratch {
 public:
  Scratch(OrtAllocator* allocator, size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  void* data() const { return data_; }

 private:
  OrtAllocator* allocator_;
  void* data_;
};

}  // namespace deftonnx
