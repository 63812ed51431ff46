// Reading of files, and resizing, with FFmpeg, which only libav.hpp includes. The twin of
// editverse_rt/media/reading.py, choice for choice; where the two may differ is how a version of FFmpeg rounds.
#include "media.hpp"

#include <iomanip>
#include <sstream>

#include "error.hpp"
#include "media_picture.hpp"
#include "media_source.hpp"

namespace ev {

namespace {

std::string two_places(double value) {
  std::ostringstream text;
  text.imbue(std::locale::classic());
  text << std::fixed << std::setprecision(2) << value;
  return text.str();
}

[[noreturn]] void fail_without_frame(const VideoSource& source) {
  fail(EV_ERROR_MEDIA, source.path(), ": found no frame that can be decoded",
       source.num_damaged() > 0 ? join_text(" (", source.num_damaged(), " damaged)") : "",
       "; expected at least one, make it again");
}

[[noreturn]] void fail_to_start(const VideoSource& source, double start_s, double end_s) {
  fail(EV_ERROR_MEDIA, source.path(), ": found a start of ", start_s, " s; the video ends at ", two_places(end_s),
       " s, start earlier");
}

Clip take_clip(VideoSource& source, std::optional<TimedFrame> shown, double start_s, std::int64_t num_frames,
               std::optional<double> fps, std::int64_t height_px, std::int64_t width_px,
               const std::function<void()>& check_stopped) {
  const std::int64_t wanted = source.is_image() ? 1 : num_frames;
  ClipTaker taker(start_s, wanted, fps, source.rate(), height_px, width_px);
  bool more = true;
  while (shown && more) {
    if (check_stopped) check_stopped();
    std::optional<TimedFrame> next = source.next();
    const double until_s = next ? next->time_s : shown->end_s;
    more = taker.show_until(until_s, shown->time_s, [&](char* picture) {
      render(*shown->frame, placement_of(*shown->frame, source.stream()), source.is_image(),
             static_cast<int>(height_px), static_cast<int>(width_px), picture);
    });
    shown = std::move(next);
  }
  std::optional<Clip> clip = taker.finish();
  if (!clip) {
    if (source.end_s() > 0) fail_to_start(source, start_s, source.end_s());
    fail_without_frame(source);
  }
  clip->is_short = clip->frames.shape[0] < num_frames;
  clip->num_damaged = source.num_damaged();
  return std::move(*clip);
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

MediaInfo probe_file(const std::string& path) {
  VideoSource source(path);
  const std::optional<TimedFrame> first = source.next();
  if (!first) fail_without_frame(source);
  MediaInfo info;
  info.width_px = first->frame->width;
  info.height_px = first->frame->height;
  const AVRational aspect = source.sample_aspect_ratio();
  if (aspect.num > 0 && aspect.den > 0 && aspect.num * 8L > aspect.den && aspect.num < aspect.den * 8L) {
    info.width_px = std::max<std::int64_t>(1, round_fraction(info.width_px, aspect));
  }
  if (placement_of(*first->frame, source.stream()).transpose) std::swap(info.width_px, info.height_px);
  info.kind = source.is_image() ? "image" : "video";
  info.num_frames = 1;
  if (info.kind == "video") {
    info.fps = source.rate();
    info.num_frames = source.stream()->nb_frames > 0 ? std::optional(source.stream()->nb_frames) : std::nullopt;
  }
  return info;
}

Clip read_clip(const std::string& path, double start_s, std::int64_t num_frames, std::optional<double> fps,
               std::int64_t height_px, std::int64_t width_px, const std::function<void()>& check_stopped) {
  if (fps && !(*fps >= 0.001 && *fps <= 1000)) {
    fail(EV_ERROR_MEDIA, "found ", *fps, " frames a second; expected 0.001 to 1000");
  }
  if (start_s > 0) {
    VideoSource source(path);
    if (source.is_image()) {
      start_s = 0;
    } else if (source.duration_s() && start_s > *source.duration_s()) {
      fail_to_start(source, start_s, *source.duration_s());
    } else if (source.seek(start_s)) {
      std::optional<TimedFrame> first = source.next();
      if (first && first->time_s <= start_s) {
        return take_clip(source, std::move(first), start_s, num_frames, fps, height_px, width_px, check_stopped);
      }
    }
  }
  // From the beginning, also where an index is missing or leads too far.
  VideoSource source(path);
  if (source.is_image() && !fps) fps = 1.0;
  return take_clip(source, source.next(), start_s, num_frames, fps, height_px, width_px, check_stopped);
}

void resize_picture(const std::string&, const Picture& source, std::int64_t height_px, std::int64_t width_px,
                    char* target) {
  scale_rgb(source, static_cast<int>(width_px), static_cast<int>(height_px), reinterpret_cast<std::uint8_t*>(target));
}

}  // namespace ev
