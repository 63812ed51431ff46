// From a request to integers: segments, sizes, lengths, and the interleaved sequence's layout and positions. The twin
// of editverse_rt/request/sizes.py and layout.py, held to it by tests/vectors/.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "spec.hpp"

namespace ev {

/// Height and width in pixels.
using Size = std::pair<std::int64_t, std::int64_t>;

/// A stretch of instruction between two tags, stripped.
struct TextSegment {
  std::string text;
};

/// The place of one input in the sequence; `name` is its tag without the brackets, "video1".
struct VisionSegment {
  std::string name;
};

using Segment = std::variant<TextSegment, VisionSegment>;

/// A vision segment in latent units: latent frames x patch rows x patch columns.
struct Grid {
  std::int64_t frames = 0;
  std::int64_t rows = 0;
  std::int64_t columns = 0;

  std::int64_t num_patches() const { return frames * rows * columns; }
};

/// The interleaved sequence of one branch, as the `transformer` graph takes it: layout [L], positions [L, 4].
struct Layout {
  std::vector<std::int64_t> layout;
  std::vector<std::int64_t> positions;
  std::int64_t num_text = 0;
  std::int64_t num_clean = 0;
  std::int64_t num_noisy = 0;
};

/// Throws EV_ERROR_REQUEST unless name is one that a tag can mention: video1, image2 ...
void check_input_name(const std::string& name);

/// "video" or "image"; `name` has passed check_input_name.
std::string input_kind(const std::string& name);

/// Puts the tags of all inputs, in their order, in front of an instruction that has no tag; see with_tags in prompt.py.
std::string with_tags(const std::string& prompt, const std::vector<std::string>& input_names);

/// Splits an instruction at its tags into segments, in order; text is stripped, empty text left out. Throws
/// EV_ERROR_REQUEST: no words, a tag without its input, an input without its tag, a tag mentioned twice, something
/// that looks like a tag and is none, text that is not UTF-8.
std::vector<Segment> parse_prompt(const std::string& prompt, const std::vector<std::string>& input_names);

/// The size of the result, and the size that each source (by name) is resized to; see choose_sizes in sizes.py.
std::pair<Size, std::map<std::string, Size>> choose_sizes(const std::map<std::string, Size>& sources,
                                                          const std::optional<std::string>& main,
                                                          const Geometry& geometry, const std::optional<Size>& size);

/// The area rule on the bundle's grid; see choose_size in sizes.py.
Size choose_size(const std::string& name, const Size& source, const Geometry& geometry);

/// The largest size of the source's shape inside target, in whole pixels, at least one a side.
Size fit_inside(const Size& source, const Size& target);

/// How many frames to ask the main source for, or to generate: 1 + temporal_ratio * k.
std::int64_t choose_num_frames(const std::optional<std::int64_t>& num_frames, bool has_video, bool has_image,
                               const Geometry& geometry);

/// In how many windows so many frames of one scene are done.
std::int64_t count_windows(std::int64_t num_frames, const Geometry& geometry);

/// Lays the sequence out: the segments (a number of text tokens, or a grid) in order, then the target.
/// with_text = false is guidance's unconditional branch.
Layout lay_out(const std::vector<std::variant<std::int64_t, Grid>>& segments, const Grid& target, bool with_text);

}  // namespace ev
