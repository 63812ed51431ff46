// The structs of the C interface as the library has them: their sizes by version, and what a caller filled in.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <type_traits>

#include "editverse_rt.h"
#include "error.hpp"
#include "pipeline.hpp"

namespace ev {

#define EV_TEXT_OF(x) #x
#define EV_TEXT(x) EV_TEXT_OF(x)
inline constexpr const char* kVersion =
    EV_TEXT(EV_VERSION_MAJOR) "." EV_TEXT(EV_VERSION_MINOR) "." EV_TEXT(EV_VERSION_PATCH);
// Larger than any version of a struct; a struct_size above it was never set.
inline constexpr std::size_t kMaxStructBytes = 4096;

template <typename T>
T* require(T* pointer, const char* name) {
  if (pointer == nullptr) throw Error(EV_ERROR_ARGUMENT, "", name).found(name, " is NULL").hint("give a pointer");
  return pointer;
}

/// The sizes that a struct had in older versions of the header.
template <typename T>
constexpr std::array<std::size_t, 0> kOlderBytes = {};
template <>
constexpr std::array<std::size_t, 2> kOlderBytes<ev_options> = {offsetof(ev_options, tensorrt),
                                                                offsetof(ev_options, release_graphs)};
template <>
constexpr std::array<std::size_t, 2> kOlderBytes<ev_request> = {offsetof(ev_request, negative_prompt),
                                                                offsetof(ev_request, length)};
template <>
constexpr std::array<std::size_t, 1> kOlderBytes<ev_request_info> = {offsetof(ev_request_info, num_windows)};

/// Refuses what no version of the header says: a struct that was never prepared.
template <typename T>
std::size_t check_struct_size(std::size_t struct_size, const char* name) {
  const auto& sizes = kOlderBytes<T>;
  const bool older = std::find(sizes.begin(), sizes.end(), struct_size) != sizes.end();
  const bool newer = struct_size >= sizeof(T) && struct_size <= kMaxStructBytes;
  if (!older && !newer) {
    throw Error(EV_ERROR_ARGUMENT, "", join_text(name, ".struct_size"))
        .found(name, " has struct_size ", struct_size)
        .expected(sizeof(T))
        .hint("prepare it with ", name, "_init");
  }
  return struct_size;
}

/// Lays a struct of this version into one of the caller's, as far as that reaches; zeros beyond what is known here.
template <typename T>
void write_struct(const T& value, T* target, std::size_t struct_size) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::memcpy(target, &value, std::min(struct_size, sizeof value));
  if (struct_size > sizeof value) {
    std::memset(reinterpret_cast<unsigned char*>(target) + sizeof value, 0, struct_size - sizeof value);
  }
  std::memcpy(target, &struct_size, sizeof struct_size);
}

/// What the ev_*_init functions do. A size that no struct has is left to the call that is given the struct.
template <typename T>
void init_struct(const T& defaults, T* target, std::size_t struct_size) {
  if (target != nullptr && struct_size >= sizeof struct_size && struct_size <= kMaxStructBytes) {
    write_struct(defaults, target, struct_size);
  }
}

/// The struct that a caller gave, as this version knows it. What an older one lacks is as in `defaults`; a newer one
/// may only hold zeros in what is not known here.
template <typename T>
T read_struct(const T* given, const char* name, T defaults = {}) {
  static_assert(std::is_trivially_copyable_v<T>);
  require(given, name);
  std::size_t struct_size = 0;
  std::memcpy(&struct_size, given, sizeof struct_size);
  check_struct_size<T>(struct_size, name);
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (std::size_t i = sizeof(T); i < struct_size; ++i) {
    if (bytes[i] != 0) {
      throw Error(EV_ERROR_ARGUMENT, "", name)
          .found(name, " sets a field that version ", kVersion, " of the library does not know");
    }
  }
  std::memcpy(&defaults, given, std::min(struct_size, sizeof defaults));
  return defaults;
}

ev_options default_options();
ev_request default_request();

/// Throw EV_ERROR_ARGUMENT, EV_ERROR_REQUEST, EV_ERROR_MEDIA. with_pixels: frames in memory are needed, not only their
/// sizes.
BackendOptions read_backend_options(const ev_options& given);
Request read_request(const ev_request* pointer, bool with_pixels);

/// The caller's callbacks, empty where there is none.
StepCallback read_step_callback(const ev_request* pointer);
WindowCallback read_window_callback(const ev_request* pointer);

}  // namespace ev
