#include "rope_options.h"

#include <cmath>
#include <limits>
#include <locale>
#include <numeric>
#include <sstream>

namespace ev::plugin {

namespace {

std::string written(const std::array<std::int32_t, kNumAxes>& values) {
  std::string text = "(";
  for (int i = 0; i < kNumAxes; ++i) text += (i == 0 ? "" : ", ") + std::to_string(values[i]);
  return text + ")";
}

/// As std::to_string, which follows the application's locale.
std::string written(float value) {
  std::ostringstream text;
  text.imbue(std::locale::classic());
  text << std::fixed << value;
  return text.str();
}

}  // namespace

std::int32_t RopeOptions::head_dim() const {
  return std::accumulate(axis_dims.begin(), axis_dims.end(), std::int32_t{0});
}

void check_options(const RopeOptions& options) {
  for (const std::int32_t dim : options.axis_dims) {
    if (dim < 0 || dim > kMaxHeadDim || dim % 2 != 0) {
      throw PluginError("axis_dims " + written(options.axis_dims) + "; expected even numbers from 0 to " +
                        std::to_string(kMaxHeadDim) + ": channels turn in pairs");
    }
  }
  const std::int32_t head_dim = options.head_dim();
  if (head_dim < 16 || head_dim > kMaxHeadDim || head_dim % 16 != 0) {
    throw PluginError("axis_dims " + written(options.axis_dims) + " sum to a head of " + std::to_string(head_dim) +
                      " channels; expected a multiple of 16 from 16 to " + std::to_string(kMaxHeadDim) +
                      "; export other models with --attention inline");
  }
  if (options.num_heads < 1 || options.num_heads > std::numeric_limits<std::int32_t>::max() / kMaxHeadDim) {
    throw PluginError("num_heads " + std::to_string(options.num_heads) + "; expected at least 1 head");
  }
  for (const float theta : options.axis_thetas) {
    if (!std::isfinite(theta) || theta <= 0.0f) {
      throw PluginError("axis_thetas hold " + written(theta) + "; expected RoPE bases above 0");
    }
  }
  if (!std::isfinite(options.epsilon) || options.epsilon < 0.0f) {
    throw PluginError("epsilon " + written(options.epsilon) + "; expected 0 or more");
  }
}

}  // namespace ev::plugin
