// Reading of files, and resizing, with FFmpeg, which only libav.hpp includes. The twin of
// editverse_rt/media/reading.py, choice for choice; where the two may differ is how a version of FFmpeg rounds.
#include "media.hpp"

#include <algorithm>

#include "error.hpp"
#include "media_picture.hpp"
#include "media_source.hpp"

namespace ev {

namespace {

[[noreturn]] void fail_without_frame(const VideoSource& source) {
  throw Error(EV_ERROR_MEDIA, "media.undecodable")
      .found(source.path(), ": found no frame that can be decoded",
             source.num_damaged() > 0 ? join_text(" (", source.num_damaged(), " damaged)") : "")
      .expected("at least one")
      .hint("make it again");
}

/// Writes a decoded frame, upright and resized, and adds what the user should know of it to notices.
void render_frame(VideoSource& source, const AVFrame& frame, std::int64_t height_px, std::int64_t width_px,
                  char* picture, std::vector<std::string>& notices) {
  if ((frame.flags & AV_FRAME_FLAG_CORRUPT) != 0) source.count_damaged();
  for (std::string& line : pixel_notices(frame)) {
    if (std::find(notices.begin(), notices.end(), line) == notices.end()) notices.push_back(std::move(line));
  }
  render(frame, source.placement(frame), source.is_image(), static_cast<int>(height_px), static_cast<int>(width_px),
         picture);
}

class DecodingReader final : public FrameReader {
 public:
  DecodingReader(const InputFile& file, double start_s, std::optional<double> fps, std::int64_t height_px,
                 std::int64_t width_px, std::function<void()> check_stopped)
      : FrameReader(height_px, width_px), source_(file), check_stopped_(std::move(check_stopped)) {
    begin(start_s, fps, [this] { return source_.rate(); });
  }

  std::int64_t num_damaged() const override { return source_.num_damaged(); }

  std::vector<std::string> notices() const override {
    std::vector<std::string> lines = source_.notices();
    lines.insert(lines.end(), notices_.begin(), notices_.end());
    return lines;
  }

 private:
  std::optional<Span> move_on() override {
    if (check_stopped_) check_stopped_();
    shown_ = std::exchange(next_, source_.next());
    return next_ ? std::optional(Span{next_->time_s, next_->end_s}) : std::nullopt;
  }

  void render(char* picture) override {
    render_frame(source_, *shown_->frame, height_px(), width_px(), picture, notices_);
  }

  VideoSource source_;
  std::function<void()> check_stopped_;
  std::optional<TimedFrame> shown_;
  std::optional<TimedFrame> next_;
  std::vector<std::string> notices_;
};

/// Nothing if the source ends before start_s.
std::optional<Clip> take_clip(VideoSource& source, std::optional<TimedFrame> shown, double start_s,
                              std::int64_t num_frames, std::optional<double> fps, std::int64_t height_px,
                              std::int64_t width_px, const std::function<void()>& check_stopped,
                              const std::vector<double>& moments_s) {
  const std::int64_t wanted = source.is_image() ? 1 : num_frames;
  ClipTaker taker(start_s, wanted, fps, source.rate(), height_px, width_px, moments_s);
  std::vector<std::string> notices;
  bool more = true;
  while (shown && more) {
    if (check_stopped) check_stopped();
    std::optional<TimedFrame> next = source.next();
    const double until_s = next ? next->time_s : shown->end_s;
    more = taker.show_until(until_s, shown->time_s, [&](char* picture) {
      render_frame(source, *shown->frame, height_px, width_px, picture, notices);
    });
    shown = std::move(next);
  }
  std::optional<Clip> clip = taker.finish();
  if (!clip) return std::nullopt;
  clip->is_short = clip->frames.shape[0] < num_frames;
  clip->num_damaged = source.num_damaged();
  clip->notices = source.notices();
  clip->notices.insert(clip->notices.end(), notices.begin(), notices.end());
  return clip;
}

/// Half to even, as Python's round.
std::int64_t round_fraction(std::int64_t number, AVRational factor) {
  const std::int64_t numerator = number * factor.num, quotient = numerator / factor.den;
  const std::int64_t twice_rest = 2 * (numerator % factor.den);
  const bool up = twice_rest > factor.den || (twice_rest == factor.den && quotient % 2 == 1);
  return quotient + (up ? 1 : 0);
}

}  // namespace

bool has_media() { return true; }

std::shared_ptr<const InputFile> open_file(const std::string& path) { return std::make_shared<InputFile>(path); }

MediaInfo probe_file(const InputFile& file) {
  VideoSource source(file);
  const std::optional<TimedFrame> first = source.next();
  if (!first) fail_without_frame(source);
  MediaInfo info;
  info.width_px = first->frame->width;
  info.height_px = first->frame->height;
  const AVRational aspect = source.sample_aspect_ratio();
  if (aspect.num > 0 && aspect.den > 0 && aspect.num * 8L > aspect.den && aspect.num < aspect.den * 8L) {
    info.width_px = std::max<std::int64_t>(1, round_fraction(info.width_px, aspect));
  }
  if (source.placement(*first->frame).transpose) std::swap(info.width_px, info.height_px);
  info.kind = source.is_image() ? "image" : "video";
  info.has_audio = source.has_audio();
  info.num_frames = 1;
  if (info.kind == "video") {
    info.fps = source.rate();
    info.duration_s = source.duration_s();
    info.num_frames = source.stream()->nb_frames > 0 ? std::optional(source.stream()->nb_frames) : std::nullopt;
  }
  return info;
}

Clip read_clip(const InputFile& file, double start_s, std::int64_t num_frames, std::optional<double> fps,
               std::int64_t height_px, std::int64_t width_px, const std::function<void()>& check_stopped,
               const std::vector<double>& moments_s) {
  if (fps) check_rate(*fps);
  const auto take = [&](VideoSource& source, std::optional<TimedFrame> first) {
    return take_clip(source, std::move(first), start_s, num_frames, fps, height_px, width_px, check_stopped, moments_s);
  };
  if (start_s > 0) {
    VideoSource source(file);
    if (source.is_image()) {
      start_s = 0;
    } else if (source.seek(start_s)) {
      std::optional<TimedFrame> first = source.next();
      if (first && first->time_s <= start_s) {
        std::optional<Clip> clip = take(source, std::move(first));
        if (clip && clip->num_damaged == 0) return std::move(*clip);
      }
    }
  }
  // From the beginning, also where an index is missing or leads astray.
  VideoSource source(file);
  if (source.is_image() && !fps) fps = 1.0;
  std::optional<Clip> clip = take(source, source.next());
  if (clip) return std::move(*clip);
  if (source.end_s() > 0) throw start_error(source.path(), start_s, source.end_s());
  fail_without_frame(source);
}

std::unique_ptr<FrameReader> open_frames(const InputFile& file, double start_s, std::optional<double> fps,
                                         std::int64_t height_px, std::int64_t width_px,
                                         std::function<void()> check_stopped) {
  if (fps) check_rate(*fps);
  return std::make_unique<DecodingReader>(file, start_s, fps, height_px, width_px, std::move(check_stopped));
}

void resize_picture(const std::string&, const Picture& source, std::int64_t height_px, std::int64_t width_px,
                    char* target) {
  scale_rgb(source, static_cast<int>(width_px), static_cast<int>(height_px), reinterpret_cast<std::uint8_t*>(target));
}

}  // namespace ev
