#include "kernel_cache.h"

#include <map>
#include <mutex>
#include <utility>

namespace deftonnx {

CUkernel LoadKernel(const CudaDriver& driver, const KernelImage& image, CUdevice device) {
  if (&driver == &CudaDriver::Offline()) return nullptr;
  static std::mutex mutex;
  // never destroyed: the driver may be gone before the library's destructors run
  static auto* kernels = new std::map<const KernelImage*, CUkernel>;
  static auto* prepared = new std::map<std::pair<const KernelImage*, CUdevice>, bool>;
  std::lock_guard<std::mutex> lock(mutex);
  CUkernel& kernel = (*kernels)[&image];
  if (kernel == nullptr) kernel = driver.GetKernel(driver.LoadLibrary(image.cubin), image.entry);
  bool& ready = (*prepared)[{&image, device}];
  if (!ready) driver.SetSharedMemory(kernel, device, image.shared_bytes);
  ready = true;
  return kernel;
}

}  // namespace deftonnx
