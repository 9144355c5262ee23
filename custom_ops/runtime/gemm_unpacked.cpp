#include "gemm_unpacked.h"

#include <array>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>

#include "device_buffer.h"
#include "float_bits.h"
#include "gemm_gathered.h"
#include "gemm_hopper.h"

namespace deftonnx {
namespace {

// Of a copy. The second-level cache of the GPUs that have the kernels (compute capability 9.0) holds 50 MB or
// more.
constexpr int64_t kMostBytes = 50 << 20;
constexpr int64_t kFewRows = 32;  // for which reading W is what costs, codes being half of it
// Of an estimate, what counts where there is a copy: both families' err by some percent, and the kernels of
// 16-bit weights are what a copy is kept for.
constexpr double kPreferred = 0.95;
const std::string kSuffix = "_unpacked";

bool EndsInSuffix(const std::string& name) {
  return name.size() > kSuffix.size() &&
         name.compare(name.size() - kSuffix.size(), kSuffix.size(), kSuffix) == 0;
}

// The node as the multiplying kernel sees it, on `driver`, with 16-bit weights in `weight`.
GemmNode AfterUnpacking(const GemmNode& node, const CudaDriver& driver, const void* weight) {
  GemmNode after{node.spec, driver,     node.device, node.capability, node.multiprocessors,
                 weight,    node.scale, node.bias,   node.kept,       node.kept_blocks};
  const bool half = node.spec.x_type == ElementType::kFloat16;
  after.spec.format = half ? Format::kHalf : Format::kDeft16;
  after.spec.weight_type = node.spec.x_type;
  after.spec.exponent_bits = 0;
  const std::string& kernel = node.spec.kernel;
  if (!kernel.empty()) after.spec.kernel = kernel.substr(0, kernel.size() - kSuffix.size());
  return after;
}

// The values of W in X's type, exactly: it has bits enough for every format that a kernel is given.
std::vector<uint16_t> Unpack(const GemmSpec& spec, const std::vector<uint8_t>& codes) {
  std::array<uint16_t, 256> values;
  for (int code = 0; code < 256; ++code) {
    const float value = Deft8ToFloat(static_cast<uint8_t>(code), spec.exponent_bits);
    values[code] = spec.x_type == ElementType::kFloat16 ? FloatToHalf(value) : FloatToBfloat16(value);
  }
  std::vector<uint16_t> unpacked(codes.size());
  for (size_t i = 0; i < codes.size(); ++i) unpacked[i] = values[codes[i]];
  return unpacked;
}

// Tells weights apart that were at one address one after the other.
uint64_t Digest(const std::vector<uint8_t>& codes) {
  uint64_t digest = codes.size();
  for (size_t i = 0; i + 8 <= codes.size(); i += 8) {  // rows are padded to 16 codes
    uint64_t eight;
    std::memcpy(&eight, &codes[i], sizeof eight);
    digest = (digest ^ eight) * 0x9E3779B97F4A7C15;
    digest ^= digest >> 29;
  }
  return digest;
}

// The unpacked copy of the node's weight, which all nodes that read the weight share.
std::shared_ptr<const DeviceBuffer> SharedCopy(const GemmNode& node) {
  using Key = std::tuple<CUdevice, const void*, uint64_t, ElementType, int>;
  static std::mutex mutex;
  static auto* copies = new std::map<Key, std::weak_ptr<const DeviceBuffer>>;

  const GemmSpec& spec = node.spec;
  std::vector<uint8_t> codes(spec.N * spec.padded_K);
  node.driver.CopyToHost(codes.data(), node.weight, codes.size());
  const Key key{node.device, node.weight, Digest(codes), spec.x_type, spec.exponent_bits};
  std::lock_guard<std::mutex> lock(mutex);
  for (auto it = copies->begin(); it != copies->end();) {
    it = it->second.expired() ? copies->erase(it) : std::next(it);
  }
  std::shared_ptr<const DeviceBuffer> copy;
  if (const auto known = copies->find(key); known != copies->end()) copy = known->second.lock();
  if (copy == nullptr) {
    copy = std::make_shared<const DeviceBuffer>(node.driver, Unpack(spec, codes));
    (*copies)[key] = copy;
  }
  return copy;
}

// What the kernels of a node share: the copy of its weight, and the node that refers to it.
struct Unpacked {
  std::shared_ptr<const DeviceBuffer> copy;  // null for estimates alone
  GemmNode node;
};

class UnpackedKernel : public GemmKernel {
 public:
  UnpackedKernel(std::shared_ptr<const Unpacked> unpacked, std::unique_ptr<GemmKernel> kernel, double counts)
      : unpacked_(std::move(unpacked)),
        kernel_(std::move(kernel)),
        name_(kernel_->Name() + kSuffix),
        counts_(counts) {}

  const char* Name() const override { return name_.c_str(); }
  const char* MeasuredAs() const override { return kernel_->Name(); }  // with 16-bit weights

  double Nanoseconds(int64_t M) const override {
    const bool asked = !unpacked_->node.spec.kernel.empty();
    return M > kFewRows || asked ? counts_ * kernel_->Nanoseconds(M) : kRefused;
  }

  size_t ScratchBytes(int64_t M) const override { return kernel_->ScratchBytes(M); }
  void Launch(const GemmCall& call) const override { kernel_->Launch(call); }

 private:
  std::shared_ptr<const Unpacked> unpacked_;  // which the kernel refers to
  std::unique_ptr<GemmKernel> kernel_;
  std::string name_;
  double counts_;  // of its time
};

}  // namespace

bool CanUnpack(const GemmNode& node) {
  const GemmSpec& spec = node.spec;
  if (spec.format != Format::kDeft8 || spec.x_type == ElementType::kFloat) return false;
  if (!spec.kernel.empty()) return EndsInSuffix(spec.kernel);
  return spec.unpacks && 2 * spec.N * spec.padded_K <= kMostBytes;
}

GemmKernels UnpackedKernels(const GemmNode& node, bool keep) {
  const auto copy = keep && node.weight != nullptr ? SharedCopy(node) : nullptr;
  const CudaDriver& driver = keep ? node.driver : CudaDriver::Offline();
  const auto unpacked = std::make_shared<const Unpacked>(
      Unpacked{copy, AfterUnpacking(node, driver, copy == nullptr ? nullptr : copy->data())});
  GemmKernels multiplying;
  HopperKernels(unpacked->node, multiplying);
  GatheredKernels(unpacked->node, {HopperKernels}, multiplying);
  GemmKernels kernels;
  for (std::unique_ptr<GemmKernel>& kernel : multiplying) {
    kernels.push_back(std::make_unique<UnpackedKernel>(unpacked, std::move(kernel), keep ? kPreferred : 1));
  }
  return kernels;
}

}  // namespace deftonnx
