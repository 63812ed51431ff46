// libFuzzer target: any bytes as a bundle.json. Either a spec comes out or EV_ERROR_BUNDLE, and nothing else.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "bundle.hpp"
#include "error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t num_bytes) {
  try {
    const std::string_view text(reinterpret_cast<const char*>(data), num_bytes);
    const ev::BundleSpec spec = ev::spec_from_json(text, "bundle.json");
    if (spec.find_schedule(spec.default_schedule) == nullptr) std::abort();
  } catch (const ev::Error& error) {
    if (error.code() != EV_ERROR_BUNDLE) std::abort();
  }
  return 0;
}
