// The part of the CUDA driver API that the library uses, found at run time: nothing of CUDA is linked, so the
// library also loads where there is no GPU. Declarations follow the driver's stable ABI.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace deftonnx {

using CUdevice = int;
using CUcontext = struct CUctx_st*;
using CUlibrary = void*;
using CUkernel = struct CUkern_st*;
using CUstream = void*;
using CUdeviceptr = uint64_t;

struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

struct DeviceMemory {
  size_t free, total;  // bytes
};

// Whether kernels made for this compute capability may start before the one ahead of them has ended.
inline bool CanStartEarly(int architecture) { return architecture >= 90; }

// The driver's functions; every call throws CudaError with the driver's message on failure.
class CudaDriver {
 public:
  // Throws CudaError if there is no driver.
  static const CudaDriver& Get();
  // One that does nothing, for asking which kernels would serve a node where there is no GPU.
  static const CudaDriver& Offline();

  CUdevice CurrentDevice() const;
  int ComputeCapability(CUdevice device) const;  // 90 for 9.0
  int MultiprocessorCount(CUdevice device) const;
  CUlibrary LoadLibrary(const void* image) const;
  CUkernel GetKernel(CUlibrary library, const char* name) const;
  void SetSharedMemory(CUkernel kernel, CUdevice device, int bytes) const;
  // `cluster` blocks at a time form a cluster; 1 on devices without clusters. `early`: the kernel may start
  // before the one ahead of it in the stream has ended, and waits for it by itself (compute capability 9.0).
  void Launch(CUkernel kernel, unsigned blocks, unsigned cluster, unsigned threads, unsigned shared_bytes,
              CUstream stream, void** parameters, bool early = false) const;
  // Lets nothing behind it on the stream start before all ahead of it has ended, however it was launched.
  // Writes the byte at `scratch`.
  void Separate(CUstream stream, void* scratch) const;
  void CopyToHost(void* host, const void* device, size_t bytes) const;
  // The last part may still be on its way when the call returns, in the default stream's order: all streams
  // may read it once that has been synchronised.
  void CopyToDevice(void* device, const void* host, size_t bytes) const;
  // Between places on the device, enqueued on the stream.
  void Copy(void* to, const void* from, size_t bytes, CUstream stream) const;
  void Synchronize(CUstream stream) const;
  bool IsCapturing(CUstream stream) const;
  // How long the device takes for what `enqueue` puts on the stream. Waits for it.
  float Milliseconds(CUstream stream, const std::function<void()>& enqueue) const;
  // The calling thread's context; null if it has none.
  CUcontext CurrentContext() const;
  // Makes it the calling thread's, as for a thread that works for another.
  void SetContext(CUcontext context) const;
  DeviceMemory Memory() const;  // of the current context's device
  void* Allocate(size_t bytes) const;
  // `context`: the one that was current when it was allocated. It need not be the calling thread's: a session
  // may be dropped by a thread that never used the GPU.
  void Free(void* memory, CUcontext context) const noexcept;

  // A row-major matrix (rows, columns) of `stride` elements a row, read in boxes. type and swizzle are the
  // driver's enumerators. Throws CudaError if the address or the stride is not a multiple of 16 bytes.
  TensorMap EncodeMatrix(const void* data, int type, int element_bytes, uint64_t rows, uint64_t columns,
                         uint64_t stride, uint32_t box_rows, uint32_t box_columns, int swizzle) const;

  // What filters of a convolution see of images (batch, rows, columns, channels), as load_im2col of
  // kernels/ptx_im2col.cuh reads it: for `pixels` output pixels, `channels_read` channels at one tap.
  // first: the first window's first row and column; last: how far the last window begins from the image's
  // end.
  TensorMap EncodeIm2col(const void* data, int type, const uint64_t (&sizes)[4], const int (&first)[2],
                         const int (&last)[2], const uint32_t (&strides)[2], uint32_t channels_read,
                         uint32_t pixels, int swizzle) const;

 private:
  CudaDriver();
  struct Functions;
  explicit CudaDriver(const Functions& functions) : functions_(&functions) {}
  void Check(int result, const char* what) const;
  int DeviceAttribute(CUdevice device, int attribute) const;

  const Functions* functions_;
};

}  // namespace deftonnx
