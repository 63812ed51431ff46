// A request laid out in integers: what the graphs are called with, besides pixels. The twin of
// editverse_rt/request/laid_out.py.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "schedule.hpp"
#include "sequence.hpp"

namespace ev {

/// One of guidance's two branches. text: which of the encoded texts it takes, nothing for no text rows.
struct Branch {
  std::optional<std::size_t> text;
  Layout layout;
};

/// What a request came to, before any graph of the model ran. sources: what each input became, as [frames, height,
/// width] in pixels. target: what is solved for, in latent units. cond, uncond: the branches of guidance. num_kept:
/// clean latent frames that stand before the solved ones in the result. num_dropped: leading latent frames that do not
/// belong to it. start: the input that is noised to begin with.
struct LaidOutRequest {
  std::map<std::string, std::vector<std::int64_t>> sources;
  std::int64_t num_frames = 0;
  Size size;
  double fps = 0;
  Schedule schedule;
  std::int64_t seed = 0;
  Grid target;
  Branch cond;
  Branch uncond;
  std::int64_t num_kept = 0;
  std::int64_t num_dropped = 0;
  std::optional<std::string> start;
};

}  // namespace ev
