#include "ort_abi.h"

#include <memory>

#include "error.h"

namespace deftonnx {
namespace {

enum Slot : int {
  kCreateStatus = 0,
  kGetErrorMessage = 2,
  kCreateCustomOpDomain = 26,
  kCustomOpDomainAdd = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kTensorInfoOfType = 55,
  kDimensionCount = 61,
  kDimensions = 62,
  kAttributeFloat = 85,
  kAttributeInt64 = 86,
  kAttributeString = 87,
  kContextInputCount = 88,
  kContextInput = 90,
  kContextOutput = 91,
  kReleaseStatus = 93,
  kReleaseTypeInfo = 98,
  kReleaseCustomOpDomain = 101,
  kAddSessionConfigEntry = 130,
  kReleaseAllocator = 132,
  kAttributeFloats = 162,
  kAttributeInt64s = 163,
  kContextComputeStream = 193,
  kInfoInputCount = 230,
  kInfoInputType = 234,
  kHasSessionConfigEntry = 237,
  kInfoNodeName = 244,
  kInfoLogger = 245,
  kLogMessage = 247,
  kInfoConstantInput = 249,
  kContextParallelFor = 274,
  kInfoAllocator = 278,
  kTensorTypeAndShapeReference = 414,
};

}  // namespace

OrtStatus* Ort::CreateStatus(ErrorCode code, const std::string& message) const {
  return Call(kCreateStatus, static_cast<int>(code), message.c_str());
}

void Ort::ReleaseStatus(OrtStatus* status) const {
  reinterpret_cast<void (*)(OrtStatus*)>(api_->slot[kReleaseStatus])(status);
}

void Ort::Check(OrtStatus* status) const {
  if (status == nullptr) return;
  std::string message =
      reinterpret_cast<const char* (*)(const OrtStatus*)>(api_->slot[kGetErrorMessage])(status);
  ReleaseStatus(status);
  throw OrtError(message);
}

OrtStatus* Ort::CreateDomain(const char* name, const std::vector<OrtCustomOp*>& ops,
                             OrtCustomOpDomain** domain) const {
  OrtCustomOpDomain* created = nullptr;
  if (OrtStatus* status = Call(kCreateCustomOpDomain, name, &created)) return status;
  for (OrtCustomOp* op : ops) {
    if (OrtStatus* status = Call(kCustomOpDomainAdd, created, static_cast<const OrtCustomOp*>(op)))
      return status;
  }
  *domain = created;
  return nullptr;
}

OrtStatus* Ort::AddDomain(OrtSessionOptions* options, OrtCustomOpDomain* domain) const {
  return Call(kAddCustomOpDomain, options, domain);
}

bool Ort::HasConfigEntry(const OrtSessionOptions* options, const char* key) const {
  int found = 0;
  Check(Call(kHasSessionConfigEntry, options, key, &found));
  return found != 0;
}

void Ort::AddConfigEntry(OrtSessionOptions* options, const char* key, const char* value) const {
  Check(Call(kAddSessionConfigEntry, options, key, value));
}

void Ort::Warn(const OrtKernelInfo* info, const std::string& message) const {
  constexpr int kWarning = 2;
  const OrtLogger* logger = nullptr;
  Check(Call(kInfoLogger, info, &logger));
  Check(Call(kLogMessage, logger, kWarning, message.c_str(), "libdeftonnx_ops", 0, "DeftGemm"));
}

int64_t Ort::AttributeInt(const OrtKernelInfo* info, const char* name) const {
  int64_t value = 0;
  Check(Call(kAttributeInt64, info, name, &value));
  return value;
}

std::vector<int64_t> Ort::AttributeInts(const OrtKernelInfo* info, const char* name) const {
  size_t size = 0;
  Check(Call(kAttributeInt64s, info, name, static_cast<int64_t*>(nullptr), &size));
  std::vector<int64_t> values(size);
  Check(Call(kAttributeInt64s, info, name, values.data(), &size));
  return values;
}

std::optional<std::vector<int64_t>> Ort::OptionalAttributeInts(const OrtKernelInfo* info,
                                                               const char* name) const {
  size_t size = 0;
  OrtStatus* missing = Call(kAttributeInt64s, info, name, static_cast<int64_t*>(nullptr), &size);
  if (missing == nullptr) return AttributeInts(info, name);
  ReleaseStatus(missing);
  return std::nullopt;
}

float Ort::AttributeFloat(const OrtKernelInfo* info, const char* name) const {
  float value = 0;
  Check(Call(kAttributeFloat, info, name, &value));
  return value;
}

std::vector<float> Ort::AttributeFloats(const OrtKernelInfo* info, const char* name) const {
  size_t size = 0;
  Check(Call(kAttributeFloats, info, name, static_cast<float*>(nullptr), &size));
  std::vector<float> values(size);
  Check(Call(kAttributeFloats, info, name, values.data(), &size));
  return values;
}

std::string Ort::AttributeString(const OrtKernelInfo* info, const char* name) const {
  size_t size = 0;
  Check(Call(kAttributeString, info, name, static_cast<char*>(nullptr), &size));
  std::string value(size, '\0');
  Check(Call(kAttributeString, info, name, value.data(), &size));
  value.resize(size > 0 ? size - 1 : 0);  // without the final zero
  return value;
}

std::string Ort::NodeName(const OrtKernelInfo* info) const {
  size_t size = 0;
  Check(Call(kInfoNodeName, info, static_cast<char*>(nullptr), &size));
  std::string value(size, '\0');
  Check(Call(kInfoNodeName, info, value.data(), &size));
  value.resize(size > 0 ? size - 1 : 0);
  return value;
}

const void* Ort::SessionOf(const OrtKernelInfo* info) const {
  const OrtLogger* logger = nullptr;
  Check(Call(kInfoLogger, info, &logger));
  return logger;
}

size_t Ort::InputCount(const OrtKernelInfo* info) const {
  size_t count = 0;
  Check(Call(kInfoInputCount, info, &count));
  return count;
}

bool Ort::HasInput(const OrtKernelInfo* info, size_t index) const {
  if (index >= InputCount(info)) return false;
  try {
    InputShape(info, index);
    return true;
  } catch (const OrtError&) {  // it has no type
    return false;
  }
}

std::vector<int64_t> Ort::InputShape(const OrtKernelInfo* info, size_t index) const {
  OrtTypeInfo* type = nullptr;
  Check(Call(kInfoInputType, info, index, &type));
  const auto release = reinterpret_cast<void (*)(OrtTypeInfo*)>(api_->slot[kReleaseTypeInfo]);
  const std::unique_ptr<OrtTypeInfo, decltype(release)> owned(type, release);
  const OrtTensorInfo* tensor = nullptr;  // in the type itself
  Check(Call(kTensorInfoOfType, static_cast<const OrtTypeInfo*>(type), &tensor));
  size_t rank = 0;
  Check(Call(kDimensionCount, tensor, &rank));
  std::vector<int64_t> shape(rank);
  Check(Call(kDimensions, tensor, shape.data(), rank));
  return shape;
}

bool Ort::ConstantInput(const OrtKernelInfo* info, size_t index, Tensor* tensor) const {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  Check(Call(kInfoConstantInput, info, index, &is_constant, &value));
  if (is_constant == 0 || value == nullptr) return false;
  *tensor = View(value);
  return true;
}

OrtAllocator* Ort::DeviceAllocator(const OrtKernelInfo* info) const {
  constexpr int kDefaultMemory = 0;
  OrtAllocator* allocator = nullptr;
  Check(Call(kInfoAllocator, info, kDefaultMemory, &allocator));
  return allocator;
}

void Ort::Release(OrtAllocator* allocator) const {
  reinterpret_cast<void (*)(OrtAllocator*)>(api_->slot[kReleaseAllocator])(allocator);
}

size_t Ort::InputCount(const OrtKernelContext* context) const {
  size_t count = 0;
  Check(Call(kContextInputCount, context, &count));
  return count;
}

Tensor Ort::Input(const OrtKernelContext* context, size_t index) const {
  const OrtValue* value = nullptr;
  Check(Call(kContextInput, context, index, &value));
  return value == nullptr ? Tensor{} : View(value);
}

void* Ort::Output(OrtKernelContext* context, size_t index, const std::vector<int64_t>& shape) const {
  OrtValue* value = nullptr;
  Check(Call(kContextOutput, context, index, shape.data(), shape.size(), &value));
  void* data = nullptr;
  Check(Call(kGetTensorMutableData, value, &data));
  return data;
}

void Ort::ParallelFor(const OrtKernelContext* context, void (*task)(void*, size_t), size_t count,
                      void* state) const {
  Check(Call(kContextParallelFor, context, task, count, size_t{0}, state));
}

void* Ort::ComputeStream(const OrtKernelContext* context) const {
  void* stream = nullptr;
  Check(Call(kContextComputeStream, context, &stream));
  return stream;
}

Tensor Ort::View(const OrtValue* value) const {
  Tensor tensor;
  void* data = nullptr;
  Check(Call(kGetTensorMutableData, const_cast<OrtValue*>(value), &data));
  tensor.data = data;
  int type = 0;
  const int64_t* shape = nullptr;  // in the value itself
  size_t rank = 0;
  Check(Call(kTensorTypeAndShapeReference, value, &type, &shape, &rank));
  tensor.type = static_cast<ElementType>(type);
  tensor.shape.assign(shape, shape + rank);
  return tensor;
}

Scratch::Scratch(OrtAllocator* allocator, size_t bytes)
    : allocator_(allocator), data_(bytes == 0 ? nullptr : allocator->Alloc(allocator, bytes)) {
  if (bytes != 0 && data_ == nullptr)
    throw OrtError("no memory for " + std::to_string(bytes) + " bytes of scratch");
}

Scratch::~Scratch() {
  if (data_ != nullptr) allocator_->Free(allocator_, data_);
}

}  // namespace deftonnx
