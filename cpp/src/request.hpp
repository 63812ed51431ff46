// A request as data: what a caller asks for. The twin of editverse_rt/request/edit_request.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sequence.hpp"

namespace ev {

/// An input as the caller gave it: a path, or frames in memory (whose strides are set). data may be NULL where
/// nothing but its size is asked for.
struct Source {
  std::string name;
  std::string path;
  const std::uint8_t* data = nullptr;
  std::size_t num_bytes = 0;
  std::int64_t num_frames = 0;
  std::int64_t width_px = 0;
  std::int64_t height_px = 0;
  std::size_t row_stride_bytes = 0;
  std::size_t frame_stride_bytes = 0;

  bool is_path() const { return !path.empty(); }
};

/// One request: an instruction, its inputs by tag, and options; nothing leaves an option to the bundle or the inputs.
struct Request {
  std::string prompt;
  std::vector<Source> sources;
  std::optional<std::string> negative_prompt;
  std::optional<std::string> schedule;
  std::optional<std::int64_t> num_inference_steps;
  std::optional<double> guidance_scale;
  std::optional<double> strength;
  std::int64_t seed = 0;
  std::optional<Size> size;
  std::optional<std::int64_t> num_frames;
  std::optional<std::string> length;
  std::optional<double> fps;
  double start_s = 0;
};

/// Throws EV_ERROR_REQUEST that names the option for a value out of the range that tables.hpp has, and for an input
/// that is given twice or has a name that no tag can mention.
void check_options(const Request& request);

}  // namespace ev
