#include "kernel_cache.h"

#include <map>
#include <mutex>
#include <tuple>
#include <utility>

namespace deftonnx {
namespace {

std::mutex mutex;

}  // namespace

CUkernel LazyKernel::Get() {
  if (const CUkernel ready = ready_.load(std::memory_order_acquire)) return ready;
  static auto* kernels = new std::map<const KernelImage*, CUkernel>;  // of all devices
  std::lock_guard<std::mutex> lock(mutex);
  CUkernel& kernel = (*kernels)[&image_];
  if (kernel == nullptr) kernel = driver_.GetKernel(driver_.LoadLibrary(image_.cubin), image_.entry);
  if (ready_ == nullptr) driver_.SetSharedMemory(kernel, device_, image_.shared_bytes);
  ready_.store(kernel, std::memory_order_release);
  return kernel;
}

LazyKernel& KernelOf(const CudaDriver& driver, const KernelImage& image, CUdevice device) {
  // never destroyed: the driver may be gone before the library's destructors run
  static auto* known = new std::map<std::tuple<const CudaDriver*, const KernelImage*, CUdevice>, LazyKernel>;
  std::lock_guard<std::mutex> lock(mutex);
  return known->try_emplace({&driver, &image, device}, driver, image, device).first->second;
}

}  // namespace deftonnx
