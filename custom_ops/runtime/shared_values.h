// Values that are made of constants once and shared by all nodes that read the same ones, in any session:
// further forms of a weight in device memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>

namespace deftonnx {

// Of so many bytes, going on from `digest`: tells constants apart that were at one address one after the
// other.
inline uint64_t Digest(const void* data, size_t bytes, uint64_t digest = 0) {
  const auto* from = static_cast<const char*>(data);
  digest += bytes;
  for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, from + i, bytes - i < sizeof word ? bytes - i : sizeof word);
    digest = (digest ^ word) * 0x9E3779B97F4A7C15;
    digest ^= digest >> 29;
  }
  return digest;
}

// Thread-safe.
template <class Key, class Value>
class SharedValues {
 public:
  // The value of `key` that somebody holds, else a new one, make().
  template <class Make>
  std::shared_ptr<const Value> Get(const Key& key, Make make) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto it = values_.begin(); it != values_.end();) {
      it = it->second.expired() ? values_.erase(it) : std::next(it);
    }
    std::shared_ptr<const Value> value;
    if (const auto known = values_.find(key); known != values_.end()) value = known->second.lock();
    if (value == nullptr) {
      value = std::make_shared<const Value>(make());
      values_[key] = value;
    }
    return value;
  }

 private:
  std::mutex mutex_;
  std::map<Key, std::weak_ptr<const Value>> values_;
};

}  // namespace deftonnx
