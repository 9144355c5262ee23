#include "gemm_unpacked.h"

#include <array>
#include <string>
#include <tuple>
#include <utility>

#include "device_buffer.h"
#include "error.h"
#include "float_bits.h"
#include "gemm_gathered.h"
#include "gemm_hopper.h"
#include "kernel_cache.h"
#include "shared_values.h"

namespace deftonnx {
namespace {

// Of the device's memory, what must be free beside a copy: activations come after it, and other sessions.
constexpr double kFreePart = 0.5;
constexpr int64_t kFewRows = 32;  // for which reading W is what costs, codes being half of it
// Of an estimate, what counts for a copy: those of the kernels of codes are the less certain ones, and a
// product must not be slower than with 16-bit weights.
constexpr double kPreferred = 0.93;
constexpr int64_t kVector = 16;  // codes that a thread unpacks together; rows of W are padded to it
constexpr unsigned kBlocks = 8;  // of a multiprocessor, that unpack
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

// The argument of the kernels: Problem of kernels/unpack_codes.cu.
struct UnpackProblem {
  const void* codes;
  void* values;
  int64_t vectors;
  std::array<uint16_t, 256> value;
};
static_assert(sizeof(UnpackProblem) == 536);

int64_t Codes(const GemmSpec& spec) { return spec.N * spec.padded_K; }

// Runs the kernel that does `what` with the node's weight.
void Run(const GemmNode& node, decltype(UnpackImage::what) what, UnpackProblem problem) {
  problem.codes = node.weight;
  problem.vectors = Codes(node.spec) / kVector;
  for (const UnpackImage& row : kUnpackImages) {
    if (row.what != what) continue;
    void* arguments[] = {&problem};
    node.driver.Launch(KernelOf(node.driver, row.image, node.device).Get(), node.multiprocessors * kBlocks, 1,
                       row.image.threads, 0, nullptr, arguments);
  }
}

// The values of W in X's type, exactly: it has bits enough for every format that a kernel is given. Returns
// when they are there.
DeviceBuffer Unpack(const GemmNode& node) {
  DeviceBuffer values = DeviceBuffer::Uninitialised(node.driver, sizeof(uint16_t) * Codes(node.spec));
  UnpackProblem problem{nullptr, values.data(), 0, {}};
  for (int code = 0; code < 256; ++code) {
    const float value = Deft8ToFloat(static_cast<uint8_t>(code), node.spec.exponent_bits);
    problem.value[code] =
        node.spec.x_type == ElementType::kFloat16 ? FloatToHalf(value) : FloatToBfloat16(value);
  }
  Run(node, UnpackImage::kUnpacks, problem);
  node.driver.Synchronize(nullptr);
  return values;
}

// Tells weights apart that were at one address one after the other.
uint64_t WeightDigest(const GemmNode& node) {
  DeviceBuffer sum(node.driver, std::vector<uint64_t>{0});
  Run(node, UnpackImage::kDigests, {nullptr, sum.data(), 0, {}});
  uint64_t digest = 0;
  node.driver.CopyToHost(&digest, sum.data(), sizeof digest);
  return digest;
}

// Whether there is room for so many bytes more.
bool HasRoom(const CudaDriver& driver, size_t bytes) {
  const DeviceMemory memory = driver.Memory();
  return memory.free > bytes && memory.free - bytes >= kFreePart * memory.total;
}

// The unpacked copy of the node's weight, which all nodes that read the weight share. Throws CudaError if
// memory is scarce and the node does not ask for it by a kernel's name.
std::shared_ptr<const DeviceBuffer> SharedCopy(const GemmNode& node) {
  using Key = std::tuple<CUdevice, const void*, uint64_t, ElementType, int>;
  static auto* copies = new SharedValues<Key, DeviceBuffer>;

  const GemmSpec& spec = node.spec;
  const Key key{node.device, node.weight, WeightDigest(node), spec.x_type, spec.exponent_bits};
  return copies->Get(key, [&] {
    if (spec.kernel.empty() && !HasRoom(node.driver, sizeof(uint16_t) * Codes(spec))) {
      throw CudaError("a second form of W would leave too little device memory");
    }
    return Unpack(node);
  });
}

// What the kernels of a node share: the copy of its weight, and the node that refers to it.
struct Unpacked {
  std::shared_ptr<const DeviceBuffer> copy;  // null for estimates alone
  GemmNode node;
};

class UnpackedKernel : public GemmKernel {
 public:
  UnpackedKernel(std::shared_ptr<const Unpacked> unpacked, std::unique_ptr<GemmKernel> kernel)
      : unpacked_(std::move(unpacked)), kernel_(std::move(kernel)), name_(kernel_->Name() + kSuffix) {}

  const char* Name() const override { return name_.c_str(); }
  const char* MeasuredAs() const override { return kernel_->Name(); }  // with 16-bit weights

  double Nanoseconds(int64_t M) const override {
    const bool asked = !unpacked_->node.spec.kernel.empty();
    return M > kFewRows || asked ? kPreferred * kernel_->Nanoseconds(M) : kRefused;
  }

  size_t ScratchBytes(int64_t M) const override { return kernel_->ScratchBytes(M); }
  void Launch(const GemmCall& call) const override { kernel_->Launch(call); }

 private:
  std::shared_ptr<const Unpacked> unpacked_;  // which the kernel refers to
  std::unique_ptr<GemmKernel> kernel_;
  std::string name_;
};

}  // namespace

bool CanUnpack(const GemmNode& node) {
  const GemmSpec& spec = node.spec;
  if (spec.format != Format::kDeft8 || spec.x_type == ElementType::kFloat) return false;
  if (!spec.kernel.empty()) return EndsInSuffix(spec.kernel);
  return spec.unpacks;
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
    kernels.push_back(std::make_unique<UnpackedKernel>(unpacked, std::move(kernel)));
  }
  return kernels;
}

}  // namespace deftonnx
