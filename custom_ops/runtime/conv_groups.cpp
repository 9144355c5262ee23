#include "conv_groups.h"

#include <algorithm>

namespace deftonnx {

int64_t GroupsTogether(const ConvSpec& spec, int64_t channels, int64_t outputs) {
  for (int64_t count = 1; count <= spec.group; ++count) {
    if (spec.group % count != 0 || spec.GroupChannels() * count % channels != 0) continue;
    if (count == spec.group || spec.GroupOutputs() * count % outputs == 0) return count;
  }
  return 0;
}

ConvNode WithGroupsTogether(const ConvNode& node, int64_t count) {
  ConvNode together = node;
  together.weight16 = nullptr;
  together.rounded = {};
  together.packed = nullptr;  // has the groups apart
  const std::vector<float>& weight = node.Weight();
  ConvSpec& spec = together.spec;
  const int64_t channels = spec.GroupChannels(), outputs = spec.GroupOutputs();
  spec.group /= count;
  spec.K *= count;
  together.unpacked.assign(spec.N * spec.K, 0.0f);
  for (int64_t n = 0; n < spec.N; ++n) {
    const int64_t within = n / outputs % count;  // of the groups taken together
    for (int64_t tap = 0; tap < spec.Taps(); ++tap) {
      const float* from = &weight[n * node.spec.K + tap * channels];
      std::copy(from, from + channels, &together.unpacked[n * spec.K + (tap * count + within) * channels]);
    }
  }
  return together;
}

}  // namespace deftonnx
