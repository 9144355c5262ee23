#include "cuda_driver.h"

#include <dlfcn.h>

#include <string>

#include "error.h"

namespace deftonnx {
namespace {

constexpr int kMultiprocessorCount = 16;
constexpr int kCapabilityMajor = 75;
constexpr int kCapabilityMinor = 76;
constexpr int kMaxDynamicSharedBytes = 8;
constexpr int kPromoteToL2In128Bytes = 2;
constexpr int kClusterDimension = 4;
constexpr int kProgrammaticStreamSerialization = 6;

using CUevent = void*;

struct LaunchAttribute {
  int id;
  int padding;
  unsigned value[16];  // a union of 64 bytes
};

struct LaunchConfig {
  unsigned grid[3];
  unsigned block[3];
  unsigned shared_bytes;
  CUstream stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};

}  // namespace

struct CudaDriver::Functions {
  int (*cuGetErrorString)(int, const char**);
  int (*cuInit)(unsigned);
  int (*cuCtxGetDevice)(CUdevice*);
  int (*cuCtxGetCurrent)(CUcontext*);
  int (*cuCtxSetCurrent)(CUcontext);
  int (*cuCtxPushCurrent_v2)(CUcontext);
  int (*cuCtxPopCurrent_v2)(CUcontext*);
  int (*cuDeviceGetAttribute)(int*, int, CUdevice);
  int (*cuLibraryLoadData)(CUlibrary*, const void*, void*, void*, unsigned, void*, void*, unsigned);
  int (*cuLibraryGetKernel)(CUkernel*, CUlibrary, const char*);
  int (*cuKernelSetAttribute)(int, int, CUkernel, CUdevice);
  int (*cuLaunchKernelEx)(const LaunchConfig*, CUkernel, void**, void**);
  int (*cuMemcpyDtoH_v2)(void*, CUdeviceptr, size_t);
  int (*cuMemcpyHtoD_v2)(CUdeviceptr, const void*, size_t);
  int (*cuMemcpyDtoDAsync_v2)(CUdeviceptr, CUdeviceptr, size_t, CUstream);
  int (*cuMemGetInfo_v2)(size_t*, size_t*);
  int (*cuMemAlloc_v2)(CUdeviceptr*, size_t);
  int (*cuMemFree_v2)(CUdeviceptr);
  int (*cuMemsetD8Async)(CUdeviceptr, unsigned char, size_t, CUstream);
  int (*cuStreamSynchronize)(CUstream);
  int (*cuStreamIsCapturing)(CUstream, int*);
  int (*cuEventCreate)(CUevent*, unsigned);
  int (*cuEventRecord)(CUevent, CUstream);
  int (*cuEventSynchronize)(CUevent);
  int (*cuEventElapsedTime)(float*, CUevent, CUevent);
  int (*cuEventDestroy_v2)(CUevent);
  int (*cuTensorMapEncodeIm2col)(TensorMap*, int, uint32_t, void*, const uint64_t*, const uint64_t*,
                                 const int*, const int*, uint32_t, uint32_t, const uint32_t*, int, int, int,
                                 int);
  int (*cuTensorMapEncodeTiled)(TensorMap*, int, uint32_t, void*, const uint64_t*, const uint64_t*,
                                const uint32_t*, const uint32_t*, int, int, int, int);
};

const CudaDriver& CudaDriver::Get() {
  static const CudaDriver driver;
  return driver;
}

namespace {

template <class... Arguments>
int DoNothing(Arguments...) {
  return 0;
}

}  // namespace

const CudaDriver& CudaDriver::Offline() {
  static const Functions functions = {DoNothing, DoNothing, DoNothing, DoNothing, DoNothing, DoNothing,
                                      DoNothing, DoNothing, DoNothing, DoNothing, DoNothing, DoNothing,
                                      DoNothing, DoNothing, DoNothing, DoNothing, DoNothing, DoNothing,
                                      DoNothing, DoNothing, DoNothing, DoNothing, DoNothing, DoNothing,
                                      DoNothing, DoNothing, DoNothing, DoNothing};
  static const CudaDriver driver(functions);
  return driver;
}

CudaDriver::CudaDriver() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw CudaError("no NVIDIA driver: libcuda.so.1 cannot be loaded");
  static Functions functions;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr) throw CudaError(std::string("the NVIDIA driver is too old: it lacks ") + name);
  };
  find(functions.cuGetErrorString, "cuGetErrorString");
  find(functions.cuInit, "cuInit");
  find(functions.cuCtxGetDevice, "cuCtxGetDevice");
  find(functions.cuCtxGetCurrent, "cuCtxGetCurrent");
  find(functions.cuCtxSetCurrent, "cuCtxSetCurrent");
  find(functions.cuCtxPushCurrent_v2, "cuCtxPushCurrent_v2");
  find(functions.cuCtxPopCurrent_v2, "cuCtxPopCurrent_v2");
  find(functions.cuDeviceGetAttribute, "cuDeviceGetAttribute");
  find(functions.cuLibraryLoadData, "cuLibraryLoadData");
  find(functions.cuLibraryGetKernel, "cuLibraryGetKernel");
  find(functions.cuKernelSetAttribute, "cuKernelSetAttribute");
  find(functions.cuLaunchKernelEx, "cuLaunchKernelEx");
  find(functions.cuMemcpyDtoH_v2, "cuMemcpyDtoH_v2");
  find(functions.cuMemcpyHtoD_v2, "cuMemcpyHtoD_v2");
  find(functions.cuMemcpyDtoDAsync_v2, "cuMemcpyDtoDAsync_v2");
  find(functions.cuMemGetInfo_v2, "cuMemGetInfo_v2");
  find(functions.cuMemAlloc_v2, "cuMemAlloc_v2");
  find(functions.cuMemFree_v2, "cuMemFree_v2");
  find(functions.cuMemsetD8Async, "cuMemsetD8Async");
  find(functions.cuStreamSynchronize, "cuStreamSynchronize");
  find(functions.cuStreamIsCapturing, "cuStreamIsCapturing");
  find(functions.cuEventCreate, "cuEventCreate");
  find(functions.cuEventRecord, "cuEventRecord");
  find(functions.cuEventSynchronize, "cuEventSynchronize");
  find(functions.cuEventElapsedTime, "cuEventElapsedTime");
  find(functions.cuEventDestroy_v2, "cuEventDestroy_v2");
  find(functions.cuTensorMapEncodeIm2col, "cuTensorMapEncodeIm2col");
  find(functions.cuTensorMapEncodeTiled, "cuTensorMapEncodeTiled");
  functions_ = &functions;
  Check(functions.cuInit(0), "cuInit");
}

void CudaDriver::Check(int result, const char* what) const {
  if (result == 0) return;
  const char* message = nullptr;
  functions_->cuGetErrorString(result, &message);
  throw CudaError(std::string(what) + ": " + (message != nullptr ? message : "unknown CUDA error"));
}

int CudaDriver::DeviceAttribute(CUdevice device, int attribute) const {
  int value = 0;
  Check(functions_->cuDeviceGetAttribute(&value, attribute, device), "cuDeviceGetAttribute");
  return value;
}

CUdevice CudaDriver::CurrentDevice() const {
  CUdevice device = 0;
  Check(functions_->cuCtxGetDevice(&device), "cuCtxGetDevice");
  return device;
}

void CudaDriver::SetContext(CUcontext context) const {
  Check(functions_->cuCtxSetCurrent(context), "cuCtxSetCurrent");
}

int CudaDriver::ComputeCapability(CUdevice device) const {
  return DeviceAttribute(device, kCapabilityMajor) * 10 + DeviceAttribute(device, kCapabilityMinor);
}

int CudaDriver::MultiprocessorCount(CUdevice device) const {
  return DeviceAttribute(device, kMultiprocessorCount);
}

CUlibrary CudaDriver::LoadLibrary(const void* image) const {
  CUlibrary library = nullptr;
  Check(functions_->cuLibraryLoadData(&library, image, nullptr, nullptr, 0, nullptr, nullptr, 0),
        "cuLibraryLoadData");
  return library;
}

CUkernel CudaDriver::GetKernel(CUlibrary library, const char* name) const {
  CUkernel kernel = nullptr;
  Check(functions_->cuLibraryGetKernel(&kernel, library, name), name);
  return kernel;
}

void CudaDriver::SetSharedMemory(CUkernel kernel, CUdevice device, int bytes) const {
  Check(functions_->cuKernelSetAttribute(kMaxDynamicSharedBytes, bytes, kernel, device),
        "cuKernelSetAttribute");
}

void CudaDriver::Launch(CUkernel kernel, unsigned blocks, unsigned cluster, unsigned threads,
                        unsigned shared_bytes, CUstream stream, void** parameters, bool early) const {
  LaunchAttribute attributes[2];
  unsigned count = 0;
  if (cluster > 1) attributes[count++] = {kClusterDimension, 0, {cluster, 1, 1}};
  if (early) attributes[count++] = {kProgrammaticStreamSerialization, 0, {1}};
  const LaunchConfig config{{blocks, 1, 1}, {threads, 1, 1}, shared_bytes, stream, attributes, count};
  Check(functions_->cuLaunchKernelEx(&config, kernel, parameters, nullptr), "cuLaunchKernelEx");
}

void CudaDriver::Separate(CUstream stream, void* scratch) const {
  Check(functions_->cuMemsetD8Async(reinterpret_cast<CUdeviceptr>(scratch), 0, 1, stream), "cuMemsetD8Async");
}

void CudaDriver::CopyToHost(void* host, const void* device, size_t bytes) const {
  Check(functions_->cuMemcpyDtoH_v2(host, reinterpret_cast<CUdeviceptr>(device), bytes), "cuMemcpyDtoH");
}

void CudaDriver::CopyToDevice(void* device, const void* host, size_t bytes) const {
  if (bytes == 0) return;
  Check(functions_->cuMemcpyHtoD_v2(reinterpret_cast<CUdeviceptr>(device), host, bytes), "cuMemcpyHtoD");
}

void CudaDriver::Copy(void* to, const void* from, size_t bytes, CUstream stream) const {
  const auto source = reinterpret_cast<CUdeviceptr>(from);
  Check(functions_->cuMemcpyDtoDAsync_v2(reinterpret_cast<CUdeviceptr>(to), source, bytes, stream),
        "cuMemcpyDtoDAsync");
}

void CudaDriver::Synchronize(CUstream stream) const {
  Check(functions_->cuStreamSynchronize(stream), "cuStreamSynchronize");
}

bool CudaDriver::IsCapturing(CUstream stream) const {
  int status = 0;
  Check(functions_->cuStreamIsCapturing(stream, &status), "cuStreamIsCapturing");
  return status != 0;
}

float CudaDriver::Milliseconds(CUstream stream, const std::function<void()>& enqueue) const {
  struct Event {
    const Functions& functions;
    CUevent value = nullptr;
    ~Event() {
      if (value != nullptr) functions.cuEventDestroy_v2(value);
    }
  } begin{*functions_}, end{*functions_};
  for (Event* event : {&begin, &end}) Check(functions_->cuEventCreate(&event->value, 0), "cuEventCreate");
  Check(functions_->cuEventRecord(begin.value, stream), "cuEventRecord");
  enqueue();
  Check(functions_->cuEventRecord(end.value, stream), "cuEventRecord");
  Check(functions_->cuEventSynchronize(end.value), "cuEventSynchronize");
  float milliseconds = 0;
  Check(functions_->cuEventElapsedTime(&milliseconds, begin.value, end.value), "cuEventElapsedTime");
  return milliseconds;
}

CUcontext CudaDriver::CurrentContext() const {
  CUcontext context = nullptr;
  Check(functions_->cuCtxGetCurrent(&context), "cuCtxGetCurrent");
  return context;
}

DeviceMemory CudaDriver::Memory() const {
  DeviceMemory memory{};
  Check(functions_->cuMemGetInfo_v2(&memory.free, &memory.total), "cuMemGetInfo");
  return memory;
}

void* CudaDriver::Allocate(size_t bytes) const {
  CUdeviceptr memory = 0;
  Check(functions_->cuMemAlloc_v2(&memory, bytes), "cuMemAlloc");
  return reinterpret_cast<void*>(memory);
}

void CudaDriver::Free(void* memory, CUcontext context) const noexcept {
  if (memory == nullptr || functions_->cuCtxPushCurrent_v2(context) != 0) return;  // its memory went with it
  functions_->cuMemFree_v2(reinterpret_cast<CUdeviceptr>(memory));
  functions_->cuCtxPopCurrent_v2(&context);
}

TensorMap CudaDriver::EncodeIm2col(const void* data, int type, const uint64_t (&sizes)[4],
                                   const int (&first)[2], const int (&last)[2], const uint32_t (&strides)[2],
                                   uint32_t channels_read, uint32_t pixels, int swizzle) const {
  constexpr uint64_t kElementBytes = 2;
  TensorMap map;
  const uint64_t size[] = {sizes[3], sizes[2], sizes[1],
                           sizes[0]};  // the driver counts from the fastest axis
  const uint64_t column = size[0] * kElementBytes;
  const uint64_t distances[] = {column, column * size[1], column * size[1] * size[2]};
  const int lower[] = {first[1], first[0]}, upper[] = {last[1], last[0]};
  const uint32_t steps[] = {1, strides[1], strides[0], 1};
  Check(functions_->cuTensorMapEncodeIm2col(&map, type, 4, const_cast<void*>(data), size, distances, lower,
                                            upper, channels_read, pixels, steps, 0, swizzle,
                                            kPromoteToL2In128Bytes, 0),
        "cuTensorMapEncodeIm2col");
  return map;
}

TensorMap CudaDriver::EncodeMatrix(const void* data, int type, int element_bytes, uint64_t rows,
                                   uint64_t columns, uint64_t stride, uint32_t box_rows, uint32_t box_columns,
                                   int swizzle) const {
  TensorMap map{};
  const uint64_t size[] = {columns, rows};
  const uint64_t strides[] = {stride * element_bytes};
  const uint32_t box[] = {box_columns, box_rows};
  const uint32_t steps[] = {1, 1};
  Check(functions_->cuTensorMapEncodeTiled(&map, type, 2, const_cast<void*>(data), size, strides, box, steps,
                                           0, swizzle, kPromoteToL2In128Bytes, 0),
        "cuTensorMapEncodeTiled");
  return map;
}

}  // namespace deftonnx
