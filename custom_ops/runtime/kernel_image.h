// A kernel compiled ahead of time. build.py writes one table of images for each family.
#pragma once

#include <cstddef>

namespace deftonnx {

struct KernelImage {
  const char* name;   // what users and result files call it
  const char* entry;  // name of the function in the cubin
  int architecture;   // compute capability the machine code is for
  const unsigned char* cubin;
  int shared_bytes, threads;
};

// The images of one family; Row begins with `KernelImage image`.
template <class Row>
struct ImageTable {
  const Row* rows;
  size_t count;

  const Row* begin() const { return rows; }
  const Row* end() const { return rows + count; }

  // The newest architecture with code for a device of that compute capability, or 0: machine code runs on
  // devices of the same major version and the same or a newer minor one.
  int ArchitectureFor(int capability) const {
    int best = 0;
    for (const Row& row : *this) {
      const int architecture = row.image.architecture;
      const bool runs = architecture / 10 == capability / 10 && architecture <= capability;
      if (runs && architecture > best) best = architecture;
    }
    return best;
  }
};

}  // namespace deftonnx
