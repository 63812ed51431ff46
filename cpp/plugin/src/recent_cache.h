// A map that holds a limited number of values and lets go of the one that was asked for longest ago.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

namespace ev::plugin {

template <typename Key, typename Value>
class RecentCache {
 public:
  explicit RecentCache(std::size_t capacity) : capacity_(capacity) {}

  // The value of `key`, or what `make` gives for it; who holds it keeps it after the cache lets go.
  template <typename Make>
  std::shared_ptr<const Value> get(const Key& key, const Make& make) {
    const auto found = entries_.find(key);
    if (found != entries_.end()) {
      found->second.last_use = ++clock_;
      return found->second.value;
    }
    std::shared_ptr<const Value> value = make();
    if (entries_.size() >= capacity_) {
      auto oldest = entries_.begin();
      for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
        if (entry->second.last_use < oldest->second.last_use) oldest = entry;
      }
      entries_.erase(oldest);
    }
    entries_.emplace(key, Entry{value, ++clock_});
    return value;
  }

  std::size_t size() const { return entries_.size(); }

 private:
  struct Entry {
    std::shared_ptr<const Value> value;
    std::uint64_t last_use;
  };

  std::size_t capacity_;
  std::uint64_t clock_ = 0;
  std::map<Key, Entry> entries_;
};

}  // namespace ev::plugin
