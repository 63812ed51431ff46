// One video or picture being decoded. The twin of editverse_rt/media/streams.py and choosing.py.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "libav.hpp"
#include "media_file.hpp"
#include "media_picture.hpp"

namespace ev {

struct TimedFrame {
  double time_s;
  double end_s;
  FramePointer frame;
};

/// One video stream being decoded; times count from the stream's beginning. The file must outlive it. Everything throws
/// EV_ERROR_MEDIA.
class VideoSource {
 public:
  explicit VideoSource(const InputFile& file);

  const InputFile& file() const { return file_; }
  /// Frames a second; of an elementary stream known when its first frame is.
  double rate() const { return av_q2d(rate_); }
  /// What the stream says of its length, else what the file does; nothing where neither says.
  std::optional<double> duration_s() const;
  std::int64_t num_damaged() const { return num_damaged_; }
  double end_s() const { return end_s_; }
  const std::string& path() const { return file_.path(); }
  AVStream* stream() const { return stream_; }
  const std::vector<std::string>& notices() const { return notices_; }

  bool is_image() const;
  bool has_audio() const;
  AVRational sample_aspect_ratio() const { return av_guess_sample_aspect_ratio(format_.get(), stream_, nullptr); }
  /// How a frame is put upright: by EXIF for a picture, else by the display matrix.
  Placement placement(const AVFrame& frame) const;

  /// Enters the stream at the key frame at or before start_s; false if it cannot be entered there.
  bool seek(double start_s);

  /// The next frame in order of time; frames without a time follow at the average rate.
  std::optional<TimedFrame> next();

  /// A frame that is damaged was taken.
  void count_damaged() { ++num_damaged_; }

 private:
  bool is_one_of(const std::set<std::string>& names) const;
  void choose_stream();
  void open_decoder();
  FramePointer decode();
  /// Adds what the decoder left open: the range of colours, and those of a picture's ICC profile.
  void complete_colours(AVFrame& frame);
  /// Gives the decoder the next packet of the stream, or tells it that there is none.
  void send_packet();
  std::optional<TimedFrame> next_by_count(FramePointer frame);
  std::optional<TimedFrame> next_by_chunk(FramePointer frame);
  void compare_with_stated_end();

  const InputFile& file_;
  FileReader reader_;
  FormatPointer format_;
  CodecPointer codec_;
  AVStream* stream_ = nullptr;
  std::set<std::string> names_;  // of the demuxer
  AVRational rate_{25, 1};
  std::int64_t origin_ = 0;
  std::int64_t num_damaged_ = 0;
  std::int64_t num_frames_ = 0;
  std::vector<std::string> notices_;
  std::deque<std::int64_t> chunks_;  // numbers of AVI's chunks, of frames that are not out yet
  double end_s_ = 0;
  double last_s_ = -std::numeric_limits<double>::infinity();
  bool is_flushed_ = false;
  bool is_first_ = true;
};

}  // namespace ev
