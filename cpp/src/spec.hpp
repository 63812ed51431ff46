// What a bundle is made of: plain data, and the arithmetic on it. The twin of editverse_rt/bundle/spec.py.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "schedule.hpp"

namespace ev {

constexpr std::int64_t kFormatVersion = 2;

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
  std::int64_t patch_dim = 1;  // values of a noisy row
  std::int64_t clean_dim = 1;  // values of a clean row
  std::int64_t min_area_px = 1;
  std::int64_t max_area_px = 1;
  std::int64_t max_side_px = 1;
  std::int64_t max_frames = 1;
  std::int64_t default_height_px = 1;
  std::int64_t default_width_px = 1;
  std::int64_t default_frames = 1;
  double default_fps = 1;
  std::int64_t shared_frames = 0;  // that a window of a longer video takes over from the one before

  /// Pixels a side of one latent patch; heights and widths are multiples of it.
  std::int64_t size_multiple() const { return spatial_ratio * patch_size; }

  /// The longest clip length 1 + temporal_ratio * k that is at most num_frames (itself at least 1).
  std::int64_t round_frames(std::int64_t num_frames) const { return num_frames - (num_frames - 1) % temporal_ratio; }

  /// The shortest clip length 1 + temporal_ratio * k that holds num_frames (at least 1).
  std::int64_t pad_frames(std::int64_t num_frames) const { return round_frames(num_frames + temporal_ratio - 1); }

  std::int64_t count_latent_frames(std::int64_t num_frames) const { return 1 + (num_frames - 1) / temporal_ratio; }
};

/// What a bundle can do, which decides how it is called; see Capabilities in spec.py.
struct Capabilities {
  bool generates = true;
  bool edits = true;
  bool negative_prompt = false;
  bool strength = false;
  std::string attention = "fused";
  std::string convolutions = "frames";  // of the VAE: "frames" gives the same bytes on any number of threads
  std::string dtype = "float32";
  std::string weights = "float";
};

/// Everything that bundle.json says of how a bundle is run. family: which rules lay a request out. conditioning:
/// "none", "interleaved", "rows", "channels" or "control". unconditional: "drop_text" or "prompt". See BundleSpec in
/// spec.py.
struct BundleSpec {
  std::int64_t format_version = kFormatVersion;
  std::string name;
  std::string family;
  std::string conditioning;
  std::string unconditional;
  std::string default_negative_prompt;
  Capabilities capabilities;
  Geometry geometry;
  TokenizerSpec tokenizer;
  std::vector<GraphSpec> graphs;
  std::vector<Schedule> schedules;
  std::string default_schedule;
  std::vector<FileSpec> files;

  const GraphSpec* find_graph(const std::string& graph_name) const;
  const Schedule* find_schedule(const std::string& schedule_name) const;
};

}  // namespace ev
