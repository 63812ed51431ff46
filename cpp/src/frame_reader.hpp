// A video a few frames at a time, so that memory does not grow with its length. The twin of FrameTaker in
// editverse_rt/media/frames.py and of editverse_rt/media/video_reader.py.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "clip.hpp"

namespace ev {

/// Frames that are chosen as TimeSampler says, and resized. A class of its own knows where they come from.
class FrameReader {
 public:
  virtual ~FrameReader() = default;
  FrameReader(const FrameReader&) = delete;
  FrameReader& operator=(const FrameReader&) = delete;

  /// The next frames, uint8 [H, W, 3] each, fewer at the end; one that is taken twice shares its memory. Throws
  /// EV_ERROR_MEDIA where decoding fails.
  std::vector<Tensor> take(std::int64_t num_frames) {
    std::vector<Tensor> pictures;
    while (static_cast<std::int64_t>(pictures.size()) < num_frames && has_more()) {
      is_ahead_ = false;
      if (picture_.data == nullptr) {
        picture_ = make_unset_tensor("uint8", {height_px_, width_px_, 3});
        render(picture_.as<char>());
      }
      pictures.push_back(picture_);
      times_s_.push_back(shown_->time_s);
      end_s_ = until_s_;
    }
    return pictures;
  }

  /// Whether another frame follows; decodes it. Throws EV_ERROR_MEDIA where decoding fails.
  bool has_more() {
    is_ahead_ = is_ahead_ || find_next();
    return is_ahead_;
  }

  /// Further beginnings of slots, for a reader that was opened with a rate and is to follow another video.
  void add_moments(const std::vector<double>& moments_s) { sampler_->add_moments(moments_s); }

  /// When each frame that was taken appears in the source.
  const std::vector<double>& times_s() const { return times_s_; }
  /// When the last frame that was taken ends; where the source is over and none was, when it ended.
  double end_s() const { return end_s_; }
  /// Frames a second: what was asked for, else the average of what was taken.
  double fps() const { return fps_ ? *fps_ : average_fps(times_s_, source_fps_); }

  /// Packets and frames so far that could not be decoded, or not without errors.
  virtual std::int64_t num_damaged() const { return 0; }
  /// Lines for the user so far.
  virtual std::vector<std::string> notices() const { return {}; }

 protected:
  /// When a frame of the source is shown.
  struct Span {
    double time_s;
    double end_s;
  };

  FrameReader(std::int64_t height_px, std::int64_t width_px) : height_px_(height_px), width_px_(width_px) {}

  /// Decodes the first frame; to be called once, by the constructor of a final class. source_fps(): asked after it.
  template <typename Rate>
  void begin(double start_s, std::optional<double> fps, const Rate& source_fps) {
    next_ = move_on();
    fps_ = fps;
    source_fps_ = source_fps();
    sampler_.emplace(start_s, fps, source_fps_);
  }

  /// The frame that was decoded last becomes the one that render() shows, and the one after it is decoded; nothing at
  /// the end.
  virtual std::optional<Span> move_on() = 0;
  /// Writes the frame that is shown, uint8 [height_px, width_px, 3].
  virtual void render(char* picture) = 0;

  std::int64_t height_px() const { return height_px_; }
  std::int64_t width_px() const { return width_px_; }

 private:
  /// Moves to the next frame that is taken; false at the end.
  bool find_next() {
    while (true) {
      // Without a rate each frame stands for itself, and is taken once.
      const bool is_done = !fps_ && was_taken_;
      if (shown_ && !is_done && sampler_->count_slots(until_s_, 1) > 0) {
        was_taken_ = true;
        return true;
      }
      shown_ = std::exchange(next_, std::nullopt);
      picture_ = Tensor{};
      was_taken_ = false;
      if (!shown_) {
        if (times_s_.empty()) end_s_ = until_s_;
        return false;
      }
      next_ = move_on();
      until_s_ = next_ ? next_->time_s : shown_->end_s;
    }
  }

  std::int64_t height_px_;
  std::int64_t width_px_;
  std::optional<double> fps_;
  double source_fps_ = 0;
  std::optional<TimeSampler> sampler_;
  std::optional<Span> shown_;
  std::optional<Span> next_;
  double until_s_ = 0;  // when the frame that is shown ends
  bool was_taken_ = false;
  bool is_ahead_ = false;
  Tensor picture_;  // of the frame that is shown, once it was taken
  std::vector<double> times_s_;
  double end_s_ = 0;
};

}  // namespace ev
