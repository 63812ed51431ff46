// The attributes of the node RopeAttention, and what the plugin takes of them.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "rope_arithmetic.h"

namespace ev::plugin {

// What was found, what was expected, what to do; one line.
class PluginError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct RopeOptions {
  std::int32_t num_heads = 0;
  std::array<std::int32_t, kNumAxes> axis_dims{};
  std::array<float, kNumAxes> axis_thetas{};
  float epsilon = -1.0f;

  std::int32_t head_dim() const;
  std::int32_t inner() const { return num_heads * head_dim(); }
};

// Throws PluginError for values that the kernel or the attention cannot take.
void check_options(const RopeOptions& options);

}  // namespace ev::plugin
