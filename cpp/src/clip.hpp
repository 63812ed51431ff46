// Clips as tensors, without any codec: sampling by time. The twin of editverse_rt/media/frames.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "error.hpp"
#include "tensor.hpp"

namespace ev {

constexpr std::int64_t kMaxFrameSidePx = 16384;

/// What an input holds, as it is shown: upright, with square pixels. fps, duration_s: nothing for an image; duration_s
/// and num_frames also where the file does not say.
struct MediaInfo {
  std::string kind;  // "video" or "image"
  std::int64_t width_px = 0;
  std::int64_t height_px = 0;
  std::optional<double> fps;
  std::optional<double> duration_s;
  std::optional<std::int64_t> num_frames;
  bool has_audio = false;
};

/// Frames taken from a source: uint8 [T, H, W, 3], at fps. covers_source: nothing was left out before or after.
struct Clip {
  Tensor frames;
  double fps = 0;
  bool covers_source = false;
  bool is_short = false;  // the source held fewer frames than were asked for
  std::int64_t num_damaged = 0;
  std::vector<double> source_times_s;  // when each frame appears in the source
  double end_s = 0;                    // when the last frame ends in the source
  bool is_sampled = false;             // at a rate that was asked for, so the frames are evenly spaced
  std::vector<std::string> notices;    // lines for the user about what was changed or is missing
};

// Matroska and WebM round timestamps to milliseconds.
constexpr double kTimestampRounding_s = 0.002;

/// When frames that appear at times_s begin, from 0 on, and when the last of them ends, in seconds; nothing where they
/// are spaced evenly, so that a rate says all. end_s: when the last one ends. See uneven_times_s in frames.py.
inline std::vector<double> uneven_times_s(std::vector<double> times_s, double end_s) {
  constexpr double kEvenShare = 0.25;
  if (times_s.empty()) return {};
  const std::size_t count = times_s.size();
  const double first_s = times_s.front(), last_s = times_s.back();
  const double gap_s = (last_s - first_s) / static_cast<double>(std::max<std::size_t>(1, count - 1));
  const double limit_s = std::max(kTimestampRounding_s, kEvenShare * gap_s);
  bool is_even = true;
  for (std::size_t k = 0; k < count; ++k) {
    is_even = is_even && std::abs(times_s[k] - first_s - static_cast<double>(k) * gap_s) <= limit_s;
    times_s[k] -= first_s;
  }
  if (is_even) return {};
  times_s.push_back(std::max(end_s, last_s + kTimestampRounding_s) - first_s);
  return times_s;
}

/// The times of the first num_frames frames of a clip, see above.
inline std::vector<double> uneven_times_s(const Clip& clip, std::int64_t num_frames) {
  if (clip.is_sampled || num_frames < 1) return {};
  const auto count = std::min(static_cast<std::size_t>(num_frames), clip.source_times_s.size());
  const double end_s = count < clip.source_times_s.size() ? clip.source_times_s[count] : clip.end_s;
  return uneven_times_s({clip.source_times_s.begin(), clip.source_times_s.begin() + static_cast<std::ptrdiff_t>(count)},
                        end_s);
}

/// The average rate of frames that follow one another: the container's where they agree but for rounded timestamps.
inline double average_fps(const std::vector<double>& times_s, double source_fps) {
  if (times_s.empty()) return source_fps;
  const double span_s = times_s.back() - times_s.front(), count = static_cast<double>(times_s.size() - 1);
  if (span_s <= 0 || std::abs(count / source_fps - span_s) <= kTimestampRounding_s) return source_fps;
  return count / span_s;
}

/// The error of a video that ends at end_s, before start_s.
inline Error start_error(const std::string& name, double start_s, double end_s) {
  return Error(EV_ERROR_MEDIA, "media.start")
      .found(name, ": found a start of ", start_s, " s; the video ends at ", two_places(end_s), " s")
      .hint("start earlier");
}

/// Throws EV_ERROR_MEDIA for a rate that no video has.
inline void check_rate(double fps) {
  if (fps >= 0.001 && fps <= 1000) return;
  throw Error(EV_ERROR_MEDIA, "media.rate").found("found ", fps, " frames a second").expected("0.001 to 1000");
}

/// Chooses which frames, given as (time, end) in order of time, stand for the slots from start_s on; see sample_by_time
/// in frames.py. With fps, one for each 1/fps seconds; without, every frame from the one on screen at start_s.
class TimeSampler {
 public:
  /// moments_s: beginnings of slots, from start_s on, that are not evenly spaced; fps is their average rate then.
  TimeSampler(double start_s, std::optional<double> fps, double source_fps, std::vector<double> moments_s = {})
      : start_s_(start_s),
        moments_s_(std::move(moments_s)),
        slot_s_(fps ? 1 / *fps : 0.0),
        share_s_(fps ? kSlotShare / std::max(source_fps, *fps)
                     : std::min(kTimestampRounding_s, kSlotShare / source_fps)),
        every_(!fps) {}

  /// Further moments, behind those that there are.
  void add_moments(const std::vector<double>& moments_s) {
    moments_s_.insert(moments_s_.end(), moments_s.begin(), moments_s.end());
  }

  /// How often a frame that is shown until until_s is taken.
  std::int64_t count_slots(double until_s, std::int64_t at_most) {
    std::int64_t count = 0;
    while (count < at_most && has_slot() && start_s_ + slot_begin_s() + share_s_ < until_s) {
      ++count;
      ++slot_;
      if (every_) break;
    }
    return count;
  }

 private:
  // A slot takes the frame on screen this share of a frame after its beginning.
  static constexpr double kSlotShare = 0.3;

  bool has_slot() const { return moments_s_.empty() || static_cast<std::size_t>(slot_) < moments_s_.size(); }

  double slot_begin_s() const {
    return moments_s_.empty() ? static_cast<double>(slot_) * slot_s_ : moments_s_[static_cast<std::size_t>(slot_)];
  }

  double start_s_;
  std::vector<double> moments_s_;
  double slot_s_;
  double share_s_;
  bool every_;
  std::int64_t slot_ = 0;
};

/// Collects the frames of a clip as a source yields them, see take_clip in frames.py.
class ClipTaker {
 public:
  /// render(frame) writes one picture uint8 [height, width, 3] at the pointer that it is given.
  ClipTaker(double start_s, std::int64_t num_frames, std::optional<double> fps, double source_fps,
            std::int64_t height_px, std::int64_t width_px, std::vector<double> moments_s = {})
      : start_s_(start_s),
        fps_(fps),
        source_fps_(source_fps),
        num_frames_(num_frames),
        picture_bytes_(static_cast<std::size_t>(height_px * width_px * 3)),
        sampler_(start_s, fps, source_fps, std::move(moments_s)),
        frames_(make_unset_tensor("uint8", {num_frames, height_px, width_px, 3})) {}

  /// The frame before this one was shown until time_s; takes it as often as it fills slots. Returns false when no
  /// further frame is wanted. render: of the frame before.
  template <typename Render>
  bool show_until(double until_s, double time_s, const Render& render) {
    const std::int64_t left = num_frames_ - taken_;
    const std::int64_t count = sampler_.count_slots(until_s, left + 1);
    for (std::int64_t i = 0; i < std::min(count, left); ++i) {
      char* picture = frames_.as<char>() + static_cast<std::size_t>(taken_) * picture_bytes_;
      if (i == 0) {
        render(picture);
      } else {
        std::memcpy(picture, picture - picture_bytes_, picture_bytes_);
      }
      end_s_ = until_s;
      times_s_.push_back(time_s);
      ++taken_;
    }
    more_ = count > left;
    return !more_;
  }

  /// What was taken; nothing if that is no frame at all.
  std::optional<Clip> finish() const {
    if (taken_ == 0) return std::nullopt;
    Clip clip;
    clip.frames = slice_rows(frames_, 0, taken_);
    clip.fps = fps_ ? *fps_ : average_fps(times_s_, source_fps_);
    clip.covers_source = start_s_ <= 0 && !more_;
    clip.is_short = taken_ < num_frames_;
    clip.source_times_s = times_s_;
    clip.end_s = end_s_;
    clip.is_sampled = fps_.has_value();
    return clip;
  }

 private:
  double start_s_;
  std::optional<double> fps_;
  double source_fps_;
  std::int64_t num_frames_;
  std::size_t picture_bytes_;
  TimeSampler sampler_;
  Tensor frames_;
  std::vector<double> times_s_;
  std::int64_t taken_ = 0;
  double end_s_ = 0;
  bool more_ = false;
};

}  // namespace ev
