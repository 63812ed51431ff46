// The answers of a build without FFmpeg.
#include "error.hpp"
#include "media.hpp"

namespace ev {

namespace {

[[noreturn]] void fail_without_ffmpeg(const std::string& path) {
  throw Error(EV_ERROR_MEDIA, "media.unsupported")
      .found(path, " cannot be read: this library was built without FFmpeg")
      .hint("decode it and give frames, or build with -DEDITVERSE_FFMPEG=ON");
}

}  // namespace

bool has_media() { return false; }

/// There is none, because none can be opened.
class InputFile {};

std::shared_ptr<const InputFile> open_file(const std::string& path) { fail_without_ffmpeg(path); }

MediaInfo probe_file(const InputFile&) { fail_without_ffmpeg("a file"); }

Clip read_clip(const InputFile&, double, std::int64_t, std::optional<double>, std::int64_t, std::int64_t,
               const std::function<void()>&, const std::vector<double>&) {
  fail_without_ffmpeg("a file");
}

// NOLINTBEGIN(performance-unnecessary-value-param): media.cpp keeps the function that this one has no use for
std::unique_ptr<FrameReader> open_frames(const InputFile&, double, std::optional<double>, std::int64_t, std::int64_t,
                                         std::function<void()>) {
  fail_without_ffmpeg("a file");
}
// NOLINTEND(performance-unnecessary-value-param)

void resize_picture(const std::string& name, const Picture& source, std::int64_t height_px, std::int64_t width_px,
                    char*) {
  throw Error(EV_ERROR_MEDIA, "media.unsupported")
      .found(name, " is ", source.width_px, "x", source.height_px, " px (width x height); it is run at ", width_px, "x",
             height_px, ", and this library was built without FFmpeg")
      .hint("resize it to what ev_describe_request says");
}

void check_target(const std::string& path, std::optional<double>) {
  throw Error(EV_ERROR_MEDIA, "media.unsupported")
      .found(path, " cannot be written: this library was built without FFmpeg")
      .hint("encode what ev_result_frames gives, or build with -DEDITVERSE_FFMPEG=ON");
}

void write_clip(const std::string& path, const Tensor&, double, const std::vector<double>&) {
  check_target(path, std::nullopt);
}

}  // namespace ev
