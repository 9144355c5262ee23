#include "measured_times.h"

#include <sys/stat.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <mutex>
#include <sstream>
#include <stdexcept>

#include "json.h"

namespace deftonnx {
namespace {

constexpr off_t kLargestFile = 64 << 20;

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string DefaultPath(int capability) {
  std::string folder = Environment("XDG_CACHE_HOME");
  if (folder.empty()) {
    folder = Environment("HOME");
    if (folder.empty()) return "";
    folder += "/.cache";
  }
  return folder + "/deftonnx/sm" + std::to_string(capability) + ".json";
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) throw std::runtime_error("it cannot be read");
  return text.str();
}

// One file as it was when last looked at.
struct Known {
  time_t modified = 0;
  off_t size = -1;
  int multiprocessors = 0;
  std::shared_ptr<const MeasuredTimes> times;
};

}  // namespace

std::shared_ptr<const MeasuredTimes> MeasuredTimes::Load(
    int capability, int multiprocessors, const std::function<void(const std::string&)>& warn) {
  const char* chosen = std::getenv("DEFTONNX_TUNING");
  const std::string path = chosen != nullptr ? chosen : DefaultPath(capability);
  if (path.empty()) return nullptr;

  static std::mutex mutex;
  static auto* files = new std::map<std::string, Known>;
  std::lock_guard<std::mutex> lock(mutex);
  Known& known = (*files)[path];
  struct stat now = {};
  const bool there = stat(path.c_str(), &now) == 0;
  if (!there) now.st_size = 0;
  const bool same = known.modified == now.st_mtime && known.size == now.st_size;
  if (same && known.multiprocessors == multiprocessors) return known.times;
  known = {now.st_mtime, now.st_size, multiprocessors, nullptr};
  if (!there && chosen == nullptr) return nullptr;
  try {
    if (!there) throw std::runtime_error("it does not exist");
    if (now.st_size > kLargestFile) throw std::runtime_error("it is too large");
    known.times = std::make_shared<MeasuredTimes>(Read(ReadFile(path), capability, multiprocessors));
  } catch (const std::exception& error) {
    warn("tuning table '" + path + "' is not used: " + error.what());
  }
  return known.times;
}

MeasuredTimes MeasuredTimes::Read(const std::string& text, int capability, int multiprocessors) {
  const Json table = ParseJson(text);
  if (table.Member("library", Json::kString).text != kLibraryFingerprint) {
    throw std::runtime_error("it was made with another build of the library; run 'deftonnx tune' again");
  }
  if (table.Member("architecture", Json::kNumber).number != capability ||
      table.Member("multiprocessors", Json::kNumber).number != multiprocessors) {
    throw std::runtime_error("it was made on another GPU; run 'deftonnx tune' on this one");
  }
  MeasuredTimes times;
  for (const auto& [kernel, points] : table.Member("kernels", Json::kObject).members) {
    for (const Json& point : points.items) {
      double values[5];  // M, K, N, measured and estimated nanoseconds
      if (point.items.size() != 5)
        throw std::runtime_error("kernel '" + kernel + "' needs rows of 5 numbers");
      for (size_t i = 0; i < 5; ++i) {
        values[i] = point.items[i].number;
        if (!(values[i] > 0) || !std::isfinite(values[i])) {
          throw std::runtime_error("kernel '" + kernel + "' has a number that is not positive");
        }
      }
      times.kernels_[kernel].push_back(
          {std::log(values[0]), std::log(values[1]), std::log(values[2]), values[3] / values[4]});
    }
  }
  return times;
}

double MeasuredTimes::Correction(const std::string& kernel, int64_t M, int64_t K, int64_t N) const {
  const auto found = kernels_.find(kernel);
  if (found == kernels_.end()) return 1;
  const double log_M = std::log(static_cast<double>(M)), log_K = std::log(static_cast<double>(K));
  const double log_N = std::log(static_cast<double>(N));
  double ratio = 1, least = std::numeric_limits<double>::infinity();
  for (const Point& point : found->second) {
    const double distance =
        std::fabs(point.log_M - log_M) + std::fabs(point.log_K - log_K) + std::fabs(point.log_N - log_N);
    if (distance < least) least = distance, ratio = point.ratio;
  }
  return ratio;
}

}  // namespace deftonnx
