#include "gemm_simt.h"

#include "gemm_arguments.h"
#include "kernel_cache.h"

namespace deftonnx {
namespace {

constexpr int kStep = 16;  // features of a K step
constexpr int kBlocksPerMultiprocessor = 2;
constexpr double kStepNsPerOutput = 0.15e-3;  // of a block that shares its multiprocessor with another
constexpr double kFixedNs = 3000;

// Whether every 16 bytes of a row of X are 16-byte aligned and either all multiplied or not at all.
bool WideLoads(const GemmSpec& spec) {
  const int64_t together = 16 / ElementBytes(spec.x_type);
  return spec.features % together == 0 && spec.K % kStep == 0 && (spec.block == 0 || spec.block >= together);
}

Decoding MakeDecoding(const GemmSpec& spec) {
  return spec.format == Format::kDeft8 ? Decoding::ToFloat32(spec.exponent_bits) : Decoding{};
}

class SimtKernel : public GemmKernel {
 public:
  SimtKernel(const GemmNode& node, const SimtImage& row)
      : node_(node),
        row_(row),
        kernel_(KernelOf(node.driver, row.image, node.device)),
        arguments_(node, MakeDecoding(node.spec)),
        wide_loads_(WideLoads(node.spec)) {}

  const char* Name() const override { return row_.image.name; }

  double Nanoseconds(int64_t M) const override {
    const int64_t tiles = Tiles(M);
    if (tiles > kMostRows) return kRefused;
    const int64_t waves = CeilDivide(tiles, kBlocksPerMultiprocessor * node_.multiprocessors);
    const double step_ns = kStepNsPerOutput * row_.tile * row_.tile;
    return waves * (kFixedNs + CeilDivide(node_.spec.K, kStep) * step_ns);
  }

  void Launch(const GemmCall& call) const override {
    const auto M = static_cast<int32_t>(call.M);
    Arguments arguments;
    arguments.Add(call.x);
    arguments.Add(node_.weight);
    arguments_.Add(arguments, call, M);
    arguments.Add(wide_loads_);
    node_.driver.Launch(kernel_.Get(), static_cast<unsigned>(Tiles(call.M)), 1, row_.image.threads, 0,
                        call.stream, arguments.Pointers());
  }

 private:
  int64_t Tiles(int64_t M) const { return CeilDivide(M, row_.tile) * CeilDivide(node_.spec.N, row_.tile); }

  const GemmNode& node_;
  const SimtImage& row_;
  LazyKernel& kernel_;
  NodeArguments arguments_;
  int32_t wide_loads_;
};

}  // namespace

void SimtKernels(const GemmNode& node, GemmKernels& kernels) {
  const bool asked = node.spec.kernel == "simt";
  if (!asked && node.spec.kernel.empty() && !kernels.empty()) return;
  const int architecture = kSimtImages.ArchitectureFor(node.capability);
  for (const SimtImage& row : kSimtImages) {
    if (row.image.architecture != architecture || row.x_type != node.spec.x_type) continue;
    if (row.format != node.spec.format || !(asked || node.Admits(row.image.name))) continue;
    kernels.push_back(std::make_unique<SimtKernel>(node, row));
  }
}

}  // namespace deftonnx
