// Where a new scene begins: integers only, so that every host finds the same cuts. The twin of
// editverse_rt/media/scenes.py.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <optional>
#include <vector>

#include "tensor.hpp"

namespace ev {

/// The sum of the absolute differences of two frames uint8 [H, W, 3].
inline std::int64_t frame_difference(const Tensor& frame, const Tensor& before) {
  std::int64_t sum = 0;
  const auto *one = frame.as<const std::uint8_t>(), *other = before.as<const std::uint8_t>();
  for (std::int64_t i = 0; i < frame.num_elements(); ++i) sum += std::abs(one[i] - other[i]);
  return sum;
}

/// Whether a scene begins at a frame. differences: of each frame to the one before it; nothing for a first one.
/// num_values: height * width * 3.
inline bool is_scene_cut(const std::vector<std::optional<std::int64_t>>& differences, std::size_t index,
                         std::int64_t num_values) {
  // Grey levels, in the mean over all values, and how many times as much as its neighbours a frame differs.
  constexpr std::int64_t kMinLevels = 16, kMinRatio = 3;
  const std::optional<std::int64_t>& here = differences[index];
  if (!here || *here <= kMinLevels * num_values) return false;
  const auto exceeds = [&](const std::optional<std::int64_t>& other) { return !other || *here > kMinRatio * *other; };
  const bool exceeds_before = index == 0 || exceeds(differences[index - 1]);
  return exceeds_before && (index + 1 >= differences.size() || exceeds(differences[index + 1]));
}

}  // namespace ev
