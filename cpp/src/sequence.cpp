#include "sequence.hpp"

#include <algorithm>
#include <tuple>

#include "error.hpp"

namespace ev {

namespace {

// Two sizes whose aspect ratios differ by no more than this many percent count as of one aspect ratio.
constexpr int kSameAspectPercent = 1;
// A source whose aspect ratio no size of the bundle meets within this many percent is refused, not distorted.
constexpr int kMaxDistortionPercent = 33;
// Of a size that is refused, the nearest one is advised if its aspect ratio is within this many percent, else one of
// the asked shape.
constexpr int kNearShapePercent = 10;
// Of a size that has a shape worth keeping in an advice; products of two such sides fit 64 bits.
constexpr std::int64_t kLargestSidePx = 65536;

__extension__ using Wide = __int128;

/// How far two aspect ratios are apart, compared exactly: the larger over the smaller, as a fraction.
struct AspectError {
  std::int64_t larger;
  std::int64_t smaller;

  AspectError(const Size& size, const Size& source) {
    const std::int64_t a = size.first * source.second, b = size.second * source.first;
    larger = std::max(a, b);
    smaller = std::min(a, b);
  }

  bool operator<(const AspectError& other) const {
    return static_cast<Wide>(larger) * other.smaller < static_cast<Wide>(other.larger) * smaller;
  }

  bool exceeds(int percent) const {
    return static_cast<Wide>(100) * larger > static_cast<Wide>(100 + percent) * smaller;
  }
};

bool is_same_aspect(const Size& size, const Size& source) {
  return !AspectError(size, source).exceeds(kSameAspectPercent);
}

/// Calls visit(size) for every size that the bundle takes, by height, then by width.
template <typename Visit>
void visit_sizes(const Geometry& geometry, const Visit& visit) {
  const std::int64_t multiple = geometry.size_multiple();
  for (std::int64_t height = multiple; height <= geometry.max_side_px; height += multiple) {
    for (std::int64_t width = multiple; width <= geometry.max_side_px; width += multiple) {
      const std::int64_t area = height * width;
      if (geometry.min_area_px <= area && area <= geometry.max_area_px) visit(Size(height, width));
    }
  }
}

[[noreturn]] void fail_without_sizes(const Geometry& geometry) {
  throw Error(EV_ERROR_BUNDLE)
      .found("no size has a multiple of ", geometry.size_multiple(), " px a side up to ", geometry.max_side_px, " and ",
             geometry.min_area_px, " to ", geometry.max_area_px, " px in all")
      .hint("export the bundle again");
}

/// Of all sizes the one whose shape is closest to the source's, the first of equals; none where there is no size.
std::optional<Size> find_closest_shape(const Size& source, const Geometry& geometry) {
  std::optional<Size> closest;
  visit_sizes(geometry, [&](const Size& size) {
    if (!closest || AspectError(size, source) < AspectError(*closest, source)) closest = size;
  });
  return closest;
}

/// Of the sizes of the source's shape, or of the closest one, that of the nearest area.
Size choose_of_shape(const Size& source, const Size& closest, const Geometry& geometry) {
  const AspectError least(closest, source);
  const bool has_same = is_same_aspect(closest, source);
  const std::int64_t area = source.first * source.second;
  std::optional<Size> best;
  const auto distance = [&](const Size& size) { return std::abs(size.first * size.second - area); };
  visit_sizes(geometry, [&](const Size& size) {
    const AspectError error(size, source);
    if (has_same ? !is_same_aspect(size, source) : least < error) return;
    // Sizes come in order, so of equals the first, which is the lower, stays.
    if (!best || distance(size) < distance(*best) ||
        (distance(size) == distance(*best) && error < AspectError(*best, source))) {
      best = size;
    }
  });
  return *best;
}

Size check_size(const Size& size, const Geometry& geometry) {
  // Not a structured binding: before C++20 a lambda may not capture one.
  const auto height = size.first, width = size.second;
  const std::int64_t multiple = geometry.size_multiple();
  // Bounded before the product, which otherwise might not fit.
  const bool in_range = height >= 1 && width >= 1 && height <= geometry.max_side_px && width <= geometry.max_side_px;
  if (in_range && height % multiple == 0 && width % multiple == 0 && geometry.min_area_px <= height * width &&
      height * width <= geometry.max_area_px) {
    return size;
  }
  std::optional<Size> nearest;
  const auto distance = [&](const Size& s) { return std::abs(s.first - height) + std::abs(s.second - width); };
  visit_sizes(geometry, [&](const Size& s) {
    if (!nearest || distance(s) < distance(*nearest)) nearest = s;
  });
  if (!nearest) fail_without_sizes(geometry);
  const bool has_shape = height >= 1 && width >= 1 && std::max(height, width) <= kLargestSidePx;
  if (has_shape && AspectError(*nearest, size).exceeds(kNearShapePercent)) {
    nearest = choose_of_shape(size, *find_closest_shape(size, geometry), geometry);
  }
  throw Error(EV_ERROR_REQUEST, "request.size")
      .found("size is ", width, "x", height, " (width x height)")
      .hint("this bundle takes multiples of ", multiple, " up to ", geometry.max_side_px, " px a side, with ",
            geometry.min_area_px, " to ", geometry.max_area_px, " px in all; the nearest is ", nearest->second, "x",
            nearest->first);
}

void place(std::vector<std::int64_t>& positions, std::int64_t sequential, std::int64_t frame, std::int64_t row,
           std::int64_t column) {
  positions.insert(positions.end(), {sequential, frame, row, column});
}

}  // namespace

std::pair<Size, std::map<std::string, Size>> choose_sizes(const std::map<std::string, Size>& sources,
                                                          const std::optional<std::string>& main,
                                                          const Geometry& geometry, const std::optional<Size>& size) {
  Size target(geometry.default_height_px, geometry.default_width_px);
  if (size) {
    target = check_size(*size, geometry);
  } else if (main) {
    target = choose_size(*main, sources.at(*main), geometry);
  }
  std::map<std::string, Size> sizes;
  for (const auto& [name, source] : sources) {
    const bool like_main = main && is_same_aspect(source, sources.at(*main));
    sizes[name] = like_main ? target : choose_size(name, source, geometry);
  }
  return {target, sizes};
}

Size choose_size(const std::string& name, const Size& source, const Geometry& geometry) {
  const auto [height, width] = source;
  if (height < 1 || width < 1) {
    throw Error(EV_ERROR_REQUEST, "request.size")
        .found(name, " is ", width, "x", height, " px (width x height)")
        .hint("give one that has pixels");
  }
  const std::optional<Size> closest = find_closest_shape(source, geometry);
  if (!closest) fail_without_sizes(geometry);
  if (AspectError(*closest, source).exceeds(kMaxDistortionPercent)) {
    throw Error(EV_ERROR_REQUEST, "request.size")
        .found(name, " is ", width, "x", height, " px (width x height)")
        .hint("the nearest shape that this bundle takes is ", closest->second, "x", closest->first, "; crop it first");
  }
  return choose_of_shape(source, *closest, geometry);
}

Size fit_inside(const Size& source, const Size& target) {
  const auto [height, width] = source;
  const auto fit = [](std::int64_t side, std::int64_t number, std::int64_t divisor) {
    return std::max<std::int64_t>(1, side * number / divisor);
  };
  if (target.first * width <= target.second * height) return {target.first, fit(width, target.first, height)};
  return {fit(height, target.second, width), target.second};
}

std::int64_t choose_num_frames(const std::optional<std::int64_t>& num_frames, bool has_video, bool has_image,
                               const Geometry& geometry) {
  if (!num_frames) return has_video ? geometry.max_frames : has_image ? 1 : geometry.default_frames;
  if (*num_frames < 1 || *num_frames > geometry.max_frames) {
    throw Error(EV_ERROR_REQUEST, "request.option", "num_frames")
        .found("num_frames is ", *num_frames)
        .hint("this bundle takes 1 to ", geometry.max_frames);
  }
  return geometry.round_frames(*num_frames);
}

std::int64_t count_windows(std::int64_t num_frames, const Geometry& geometry) {
  const std::int64_t beyond = std::max<std::int64_t>(0, num_frames - geometry.max_frames);
  const std::int64_t a_window = geometry.max_frames - geometry.shared_frames;
  return 1 + (beyond + a_window - 1) / a_window;
}

Layout lay_out(const std::vector<std::variant<std::int64_t, Grid>>& segments, const Grid& target, bool with_text) {
  Layout result;
  for (const auto& segment : segments) {
    if (const auto* grid = std::get_if<Grid>(&segment)) {
      result.num_clean += grid->num_patches();
    } else if (with_text) {
      result.num_text += std::get<std::int64_t>(segment);
    }
  }
  result.num_noisy = target.num_patches();
  const std::int64_t start_row = result.num_text + result.num_clean + result.num_noisy;
  std::int64_t next_text = 0, next_vision = result.num_text, sequential = 0;
  const auto add_vision = [&](const Grid& grid) {
    result.layout.push_back(start_row);
    place(result.positions, sequential, 0, 0, 0);
    for (std::int64_t frame = 0; frame < grid.frames; ++frame) {
      for (std::int64_t row = 0; row < grid.rows; ++row) {
        for (std::int64_t column = 0; column < grid.columns; ++column) {
          result.layout.push_back(next_vision++);
          place(result.positions, sequential + 1 + frame, frame, row, column);
        }
      }
    }
    result.layout.push_back(start_row + 1);
    place(result.positions, sequential + 1 + grid.frames, 0, 0, 0);
    sequential += grid.frames + 2;
  };
  for (const auto& segment : segments) {
    if (const auto* grid = std::get_if<Grid>(&segment)) {
      add_vision(*grid);
    } else if (with_text) {
      for (std::int64_t i = 0; i < std::get<std::int64_t>(segment); ++i) {
        result.layout.push_back(next_text++);
        place(result.positions, sequential++, 0, 0, 0);
      }
    }
  }
  add_vision(target);
  return result;
}

}  // namespace ev
