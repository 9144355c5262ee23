#include "kernel_choice.h"

#include <algorithm>

#include "error.h"

namespace deftonnx {
namespace {

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Machine code runs on devices of the same major version and the same or a newer minor one.
int CodeArchitecture(int capability) {
  int best = 0;
  for (size_t i = 0; i < kKernelImageCount; ++i) {
    const int architecture = kKernelImages[i].architecture;
    if (architecture / 10 == capability / 10 && architecture <= capability)
      best = std::max(best, architecture);
  }
  return best;
}

struct Route {
  Operands operands;
  int terms;
};

// How X and W meet on the tensor core. deft8 with 6 or 7 exponent bits leaves float16's range.
Route ChooseRoute(const GemmSpec& spec) {
  const bool half_x = spec.x_type == ElementType::kFloat16;
  const int split = spec.x_type == ElementType::kFloat ? 3 : half_x ? 2 : 1;
  switch (spec.format) {
    case Format::kHalf:
      if (half_x) return {Operands::kNative, 1};
      break;
    case Format::kDeft16: return {split == 1 ? Operands::kNative : Operands::kSplit, split};
    case Format::kDeft8: return {Operands::kDeft8, half_x && spec.exponent_bits <= 5 ? 1 : split};
    case Format::kDeft16q: break;
  }
  throw InvalidNode(
      "DeftGemm node '" + spec.node +
      "': no CUDA kernel multiplies this format with X's type: half goes with float16, and deft16q is "
      "not supported yet");
}

bool LoaderFits(const GemmSpec& spec, const KernelImage& image) {
  const bool even = spec.features % 16 == 0 && spec.K % 16 == 0;
  switch (image.loader) {
    case Loader::kSmallM:
    case Loader::kSmallMCluster: return even && (spec.block == 0 || spec.block >= 16);
    case Loader::kTma: return even && spec.N % 16 == 0 && spec.block == 0;
    case Loader::kTmaKept: return even && spec.N % 16 == 0 && spec.block >= image.block_k;
    case Loader::kAligned: return even && spec.N % 16 == 0 && spec.block == 0;
    case Loader::kAlignedKept: return even && spec.N % 16 == 0 && spec.block >= 8;
    case Loader::kElement: break;
  }
  return true;
}

// Loaders of the same rank compete by estimated time; a lower rank goes first.
int Rank(const KernelImage& image) {
  switch (image.loader) {
    case Loader::kSmallM:
    case Loader::kSmallMCluster: return 0;
    case Loader::kTma:
    case Loader::kTmaKept: return 1;
    case Loader::kAligned:
    case Loader::kAlignedKept: return 2;
    case Loader::kElement: break;
  }
  return 3;
}

bool ForFewRows(const KernelImage& image) { return Rank(image) == 0; }

// Of the kernels for few rows: no more rows than needed; the one made for clusters for 16-bit codes
// (unpacking 8-bit ones is faster without) if its tiles fill the GPU; the most output features a block (they
// share the rows of X) that still leave every multiprocessor two blocks.
bool BetterSmallM(const KernelImage& a, const KernelImage& b, const GemmSpec& spec, int multiprocessors) {
  if (a.block_m != b.block_m) return a.block_m < b.block_m;
  if (a.loader != b.loader) {
    const KernelImage& cluster = a.loader == Loader::kSmallMCluster ? a : b;
    const bool fills = 2 * CeilDivide(spec.N, cluster.block_n) >= 3 * int64_t{multiprocessors};
    return (&a == &cluster) == (fills && cluster.operands == Operands::kNative);
  }
  // two terms and 64 output features take too many registers
  if (a.terms == 2 && (a.block_n > 32) != (b.block_n > 32)) return a.block_n <= 32;
  const auto fills = [&](const KernelImage& image) {
    return CeilDivide(spec.N, image.block_n) >= 2 * int64_t{multiprocessors};
  };
  if (fills(a) != fills(b)) return fills(a);
  return fills(a) ? a.block_n > b.block_n : a.block_n < b.block_n;
}

}  // namespace

std::vector<const KernelImage*> Candidates(const GemmSpec& spec, int capability) {
  const Route route = ChooseRoute(spec);
  const int architecture = CodeArchitecture(capability);
  std::vector<const KernelImage*> found;
  for (size_t i = 0; i < kKernelImageCount; ++i) {
    const KernelImage& image = kKernelImages[i];
    if (image.architecture != architecture || image.x_type != static_cast<int>(spec.x_type)) continue;
    if (image.operands != route.operands || image.terms != route.terms || !LoaderFits(spec, image)) continue;
    if (!spec.kernel.empty() && spec.kernel != image.name) continue;
    found.push_back(&image);
  }
  if (found.empty()) {
    throw InvalidNode("DeftGemm node '" + spec.node + "': no kernel '" + spec.kernel +
                      "' for compute capability " + std::to_string(capability) + " and this shape");
  }
  if (!spec.kernel.empty()) return found;
  // of the kernels for any M, only those of the best rank
  int best = Rank(*found.front());
  for (const KernelImage* image : found) {
    if (!ForFewRows(*image)) best = best == 0 ? Rank(*image) : std::min(best, Rank(*image));
  }
  found.erase(std::remove_if(found.begin(), found.end(),
                             [&](auto* image) { return !ForFewRows(*image) && Rank(*image) != best; }),
              found.end());
  return found;
}

const KernelImage* Choose(const std::vector<const KernelImage*>& candidates, const GemmSpec& spec, int64_t M,
                          int multiprocessors) {
  // blocks that share a multiprocessor share its speed: fewer of them are faster each
  const auto time = [&](const KernelImage* image) {
    const int64_t tiles = CeilDivide(M, image->block_m) * CeilDivide(spec.N, image->block_n);
    const int64_t most = image->blocks_per_multiprocessor;
    const int64_t waves = CeilDivide(tiles, multiprocessors * most);
    const int64_t resident = std::min(most, CeilDivide(tiles, multiprocessors));
    const float step_ns = image->step_ns * resident / most;
    return waves * (image->fixed_ns + CeilDivide(spec.K, image->block_k) * step_ns);
  };
  const KernelImage* best = nullptr;
  for (const KernelImage* image : candidates) {
    if (ForFewRows(*image)) {
      if (M > image->block_m) continue;
      const bool first = best == nullptr || !ForFewRows(*best);
      if (first || BetterSmallM(*image, *best, spec, multiprocessors)) best = image;
    } else if (best == nullptr || (!ForFewRows(*best) && time(image) < time(best))) {
      best = image;
    }
  }
  if (best == nullptr) {
    throw InvalidNode("DeftGemm node '" + spec.node + "': kernel '" + spec.kernel +
                      "' takes fewer rows than " + std::to_string(M));
  }
  return best;
}

int ClusterSize(const KernelImage& image, const GemmSpec& spec, int multiprocessors) {
  if (image.loader != Loader::kSmallMCluster) return 1;
  const int64_t tiles = CeilDivide(spec.N, image.block_n);
  const int64_t steps = CeilDivide(spec.K, image.block_k);
  int size = 1;
  while (size < 8 && 2 * tiles * size < 3 * int64_t{multiprocessors} && steps >= 4 * size) size *= 2;
  return size;
}

}  // namespace deftonnx
