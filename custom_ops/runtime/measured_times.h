// Times measured on the user's own GPU (`deftonnx tune`), which correct the kernels' estimates.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace deftonnx {

// What the table must have been measured with to be of use.
extern const char* const kLibraryFingerprint;  // build.py: a digest of all kernels and their estimates

class MeasuredTimes {
 public:
  // The table for a GPU: the file that the environment variable DEFTONNX_TUNING names, or else
  // deftonnx/sm<capability>.json in the user's cache folder. Null where there is none. A file that cannot be
  // used is reported once, through `warn`, and ignored. Read again when it changes. Thread-safe.
  static std::shared_ptr<const MeasuredTimes> Load(int capability, int multiprocessors,
                                                   const std::function<void(const std::string&)>& warn);

  // Measured over estimated time at the measured shape nearest to this one, or 1 for a kernel not measured.
  double Correction(const std::string& kernel, int64_t M, int64_t K, int64_t N) const;

 private:
  struct Point {
    double log_M, log_K, log_N, ratio;
  };

  static MeasuredTimes Read(const std::string& text, int capability, int multiprocessors);

  std::map<std::string, std::vector<Point>> kernels_;
};

}  // namespace deftonnx
