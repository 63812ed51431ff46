// One video or image file being decoded.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "libav.hpp"

namespace ev {

struct TimedFrame {
  double time_s;
  double end_s;
  FramePointer frame;
};

/// One video stream being decoded; times count from the stream's beginning. Everything throws EV_ERROR_MEDIA.
class VideoSource {
 public:
  explicit VideoSource(const std::string& path);

  double rate() const { return av_q2d(rate_); }
  std::int64_t num_damaged() const { return num_damaged_; }
  double end_s() const { return end_s_; }
  const std::string& path() const { return path_; }
  AVStream* stream() const { return stream_; }

  bool is_image() const;
  std::optional<double> duration_s() const;
  AVRational sample_aspect_ratio() const { return av_guess_sample_aspect_ratio(format_.get(), stream_, nullptr); }

  /// Enters the stream at the key frame at or before start_s; false if it cannot be entered there.
  bool seek(double start_s);

  /// The next frame in order of time; frames without a time follow at the average rate.
  std::optional<TimedFrame> next();

 private:
  void open_decoder();
  FramePointer decode();
  /// Gives the decoder the next packet of the stream, or tells it that there is none.
  void send_packet();

  std::string path_;
  FormatPointer format_;
  CodecPointer codec_;
  AVStream* stream_ = nullptr;
  AVRational rate_{25, 1};
  std::int64_t origin_ = 0;
  std::int64_t num_damaged_ = 0;
  double end_s_ = 0;
  double last_s_ = -std::numeric_limits<double>::infinity();
  bool is_flushed_ = false;
};

}  // namespace ev
