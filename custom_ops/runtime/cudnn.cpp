#include "cudnn.h"

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>

namespace deftonnx::cudnn {

struct Library::Functions {
  const char* (*cudnnGetErrorString)(int);
  int (*cudnnCreate)(void**);
  int (*cudnnSetStream)(void*, CUstream);
  int (*cudnnBackendCreateDescriptor)(int, void**);
  int (*cudnnBackendDestroyDescriptor)(void*);
  int (*cudnnBackendSetAttribute)(void*, int, int, int64_t, const void*);
  int (*cudnnBackendGetAttribute)(void*, int, int, int64_t, int64_t*, void*);
  int (*cudnnBackendFinalize)(void*);
  int (*cudnnBackendExecute)(void*, void*, void*);
};

namespace {

std::mutex& HandleMutex() {
  static std::mutex mutex;
  return mutex;
}

void Check(const Library& library, int status, const char* what) {
  constexpr int kNoHostMemory = 4003, kNoDeviceMemory = 4004;
  if (status == 0) return;
  throw Error(std::string("cuDNN, ") + what + ": " + library.functions().cudnnGetErrorString(status),
              status == kNoHostMemory || status == kNoDeviceMemory);
}

bool FindFunctions(Library::Functions& functions) {
  void* library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return false;
  bool complete = true;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
    complete = complete && function != nullptr;
  };
  find(functions.cudnnGetErrorString, "cudnnGetErrorString");
  find(functions.cudnnCreate, "cudnnCreate");
  find(functions.cudnnSetStream, "cudnnSetStream");
  find(functions.cudnnBackendCreateDescriptor, "cudnnBackendCreateDescriptor");
  find(functions.cudnnBackendDestroyDescriptor, "cudnnBackendDestroyDescriptor");
  find(functions.cudnnBackendSetAttribute, "cudnnBackendSetAttribute");
  find(functions.cudnnBackendGetAttribute, "cudnnBackendGetAttribute");
  find(functions.cudnnBackendFinalize, "cudnnBackendFinalize");
  find(functions.cudnnBackendExecute, "cudnnBackendExecute");
  return complete;
}

}  // namespace

const Library* Library::Find() {
  static const Library* found = []() -> const Library* {
    static Functions functions;
    static Library library;
    if (!FindFunctions(functions)) return nullptr;
    library.functions_ = &functions;
    return &library;
  }();
  return found;
}

void* Library::Handle(CUdevice device, size_t number) const {
  // never destroyed: cuDNN may be gone before
  static auto* handles = new std::map<std::pair<CUdevice, size_t>, void*>;
  std::lock_guard<std::mutex> lock(HandleMutex());
  void*& handle = (*handles)[{device, number}];
  if (handle == nullptr) Check(*this, functions_->cudnnCreate(&handle), "cudnnCreate");
  return handle;
}

Descriptor::Descriptor(const Library& library, DescriptorType type) : library_(&library) {
  Check(library, library.functions().cudnnBackendCreateDescriptor(type, &value_), "a descriptor");
}

Descriptor::~Descriptor() {
  if (value_ != nullptr) library_->functions().cudnnBackendDestroyDescriptor(value_);
}

Descriptor& Descriptor::Set(int attribute, ValueType type, int64_t count, const void* values) {
  const int status = library_->functions().cudnnBackendSetAttribute(value_, attribute, type, count, values);
  Check(*library_, status, ("attribute " + std::to_string(attribute)).c_str());
  return *this;
}

void Descriptor::Finalize() {
  Check(*library_, library_->functions().cudnnBackendFinalize(value_), "finalize");
}

int64_t Descriptor::Get(int attribute, ValueType type, int64_t most, void* values) const {
  int64_t count = 0;
  const int status =
      library_->functions().cudnnBackendGetAttribute(value_, attribute, type, most, &count, values);
  Check(*library_, status, ("reading attribute " + std::to_string(attribute)).c_str());
  return count;
}

void Execute(const Library& library, void* handle, const Descriptor& plan, const Descriptor& variant_pack,
             CUstream stream) {
  std::lock_guard<std::mutex> lock(HandleMutex());  // a handle has one stream at a time
  Check(library, library.functions().cudnnSetStream(handle, stream), "cudnnSetStream");
  Check(library, library.functions().cudnnBackendExecute(handle, plan.value(), variant_pack.value()),
        "execute");
}

}  // namespace deftonnx::cudnn
