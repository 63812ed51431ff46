// What a bundle is made of: plain data, and the arithmetic on it. The twin of editverse_rt/bundle/spec.py.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace ev {

constexpr std::int64_t kFormatVersion = 1;

/// One input or output of a graph; a string in `shape` names a dynamic axis.
struct TensorSpec {
  std::string name;
  std::string dtype;
  std::vector<std::variant<std::int64_t, std::string>> shape;
};

struct GraphSpec {
  std::string name;
  std::string file;
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
};

struct FileSpec {
  std::string path;
  std::int64_t num_bytes = 0;
  std::string sha256;
};

struct TokenizerSpec {
  std::string file;
  std::int64_t eos_id = 0;
  std::int64_t max_tokens = 0;
};

struct Geometry {
  std::int64_t temporal_ratio = 1;
  std::int64_t spatial_ratio = 1;
  std::int64_t patch_size = 1;
  std::int64_t patch_dim = 1;
  std::int64_t min_area_px = 1;
  std::int64_t max_area_px = 1;
  std::int64_t max_side_px = 1;
  std::int64_t max_frames = 1;
  std::int64_t default_height_px = 1;
  std::int64_t default_width_px = 1;
  std::int64_t default_frames = 1;
  double default_fps = 1;

  /// Pixels a side of one latent patch; heights and widths are multiples of it.
  std::int64_t size_multiple() const { return spatial_ratio * patch_size; }

  /// The longest clip length 1 + temporal_ratio * k that is at most num_frames (itself at least 1).
  std::int64_t round_frames(std::int64_t num_frames) const { return num_frames - (num_frames - 1) % temporal_ratio; }

  std::int64_t count_latent_frames(std::int64_t num_frames) const { return 1 + (num_frames - 1) / temporal_ratio; }
};

/// One row per solver step; see Schedule in editverse_rt/bundle/spec.py.
struct Schedule {
  std::string name;
  std::string kind;
  std::vector<double> timesteps;
  std::vector<std::array<double, 3>> coefficients;
  std::vector<double> guidance_scale;

  std::int64_t num_inference_steps() const { return static_cast<std::int64_t>(timesteps.size()); }

  /// Throws EV_ERROR_REQUEST for fewer than one step, for more than a table can hold, and for a multistep table.
  Schedule with_steps(std::int64_t num_inference_steps) const;

  /// Steps that the table leaves unguided stay so, unless all are. Throws EV_ERROR_REQUEST below 0 or not finite.
  Schedule with_guidance(double guidance_scale) const;
};

struct BundleSpec {
  std::int64_t format_version = kFormatVersion;
  std::string name;
  Geometry geometry;
  TokenizerSpec tokenizer;
  std::vector<GraphSpec> graphs;
  std::vector<Schedule> schedules;
  std::string default_schedule;
  std::vector<FileSpec> files;
  std::string convolutions;  // how the VAE's were exported: "frames", or "" where it is not said

  const GraphSpec* find_graph(const std::string& graph_name) const;
  const Schedule* find_schedule(const std::string& schedule_name) const;
};

}  // namespace ev
