#include "inputs.hpp"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "error.hpp"
#include "memory_frames.hpp"
#include "tables.hpp"

namespace ev {

namespace {

constexpr double kSameRate = 1e-3;
// Of a result that lasts as long as its video.
constexpr std::int64_t kLargestNumFrames = 16'777'216;

/// Videos before images, then by number, whatever its length.
bool comes_before(const std::string& a, const std::string& b) {
  const auto key = [](const std::string& name) {
    const std::string number = name.substr(input_kind(name).size());
    return std::make_tuple(input_kind(name) != "video", number.size(), number);
  };
  return key(a) < key(b);
}

MediaInfo describe_frames(const Source& source, double fps) {
  const auto [name, width, height] = std::tie(source.name, source.width_px, source.height_px);
  if (source.num_frames < 1 || width < 1 || height < 1 || width > kMaxFrameSidePx || height > kMaxFrameSidePx) {
    throw Error(EV_ERROR_MEDIA, "request.input_type")
        .found(name, " has ", source.num_frames, " frames of ", width, "x", height, " px (width x height)")
        .expected("at least one frame, and 1 to ", kMaxFrameSidePx, " px a side");
  }
  const auto row_bytes = static_cast<std::size_t>(width) * 3;
  const auto rows = static_cast<std::size_t>(height), frames = static_cast<std::size_t>(source.num_frames);
  // In this order nothing can wrap around: every product stays below the stride that it is compared with.
  const bool rows_fit = source.row_stride_bytes >= row_bytes &&
                        source.row_stride_bytes <= (SIZE_MAX - row_bytes) / rows &&
                        source.frame_stride_bytes >= source.row_stride_bytes * (rows - 1) + row_bytes &&
                        source.frame_stride_bytes <= (SIZE_MAX / 2) / frames;
  if (!rows_fit) {
    throw Error(EV_ERROR_MEDIA, "request.input_type")
        .found(name, " has strides of ", source.row_stride_bytes, " bytes a row and ", source.frame_stride_bytes,
               " a frame")
        .hint(width, "x", height, " RGB pixels (width x height) need ", row_bytes, " and ", row_bytes * rows,
              " at least");
  }
  const std::size_t needed =
      source.frame_stride_bytes * (frames - 1) + source.row_stride_bytes * (rows - 1) + row_bytes;
  if (source.data != nullptr && source.num_bytes < needed) {
    throw Error(EV_ERROR_MEDIA, "request.input_type")
        .found(name, " has ", source.num_bytes, " bytes")
        .hint(source.num_frames, " frames of ", width, "x", height,
              " RGB pixels (width x height) with these strides need ", needed);
  }
  const bool is_image = source.num_frames == 1 && input_kind(name) == "image";
  return {is_image ? "image" : "video", width, height, fps, std::nullopt, source.num_frames, false};
}

MediaInfo describe_source(const Source& source, const InputFile* file, double fps) {
  MediaInfo info = file != nullptr ? probe_file(*file) : describe_frames(source, fps);
  if (info.kind != input_kind(source.name)) {
    const char* const verb = source.is_path() ? " is " : " are ";
    throw Error(EV_ERROR_MEDIA, "request.input_kind")
        .found(source.name, ": ", source.is_path() ? source.path : "these frames", verb,
               info.kind == "image" ? "an image" : "a video")
        .hint("give it as ", info.kind, "1 and mention it as <", info.kind, "1>");
  }
  return info;
}

std::string length_rule(const Geometry& geometry) {
  return join_text("clips have 1 + ", geometry.temporal_ratio, " k frames, up to ", geometry.max_frames);
}

std::string describe_cut(const ExaminedInputs& examined, const std::string& name, std::int64_t kept, double fps) {
  const Request& request = *examined.request;
  const std::int64_t total = examined.media.at(name).num_frames.value_or(0);
  const std::string seconds = two_places(static_cast<double>(kept) / fps);
  std::string took;
  if (request.start_s == 0 && (!request.fps || !examined.sources.at(name)->is_path())) {
    took = join_text("took frames 0-", kept - 1, " (", seconds, " s)");
    if (total > 0) took += join_text(" of ", total);
  } else {
    took = join_text("took ", kept, " frames (", seconds, " s) from ", request.start_s, " s on");
  }
  return join_text(name, ": ", took, " at ", fps, " fps; ", length_rule(*examined.geometry),
                   "; choose otherwise with start_s, num_frames, fps");
}

Clip read_source(const ExaminedInputs& examined, const std::string& name, std::int64_t num_frames,
                 std::optional<double> fps, double start_s, const std::function<void()>& check_stopped,
                 const std::vector<double>& moments_s = {}) {
  const Source& source = *examined.sources.at(name);
  const auto [height, width] = examined.sizes.at(name);
  if (!source.is_path()) {
    const double source_fps = examined.media.at(name).fps.value_or(1.0);
    return take_memory_frames(source, source_fps, start_s, num_frames, height, width);
  }
  return read_clip(*examined.files.at(name), start_s, num_frames, fps, height, width, check_stopped,
                   fps ? moments_s : std::vector<double>());
}

/// How many frames a video in memory has from start_s on, at most at_most.
std::int64_t count_frames(const std::string& name, std::int64_t num_frames, double fps, double start_s,
                          std::int64_t at_most) {
  std::int64_t count = 0;
  TimeSampler sampler(start_s, std::nullopt, fps);
  for (std::int64_t i = 0; i < num_frames && count < at_most; ++i) {
    count += sampler.count_slots(static_cast<double>(i + 1) / fps, 1);
  }
  if (count == 0) throw start_error(name, start_s, static_cast<double>(num_frames) / fps);
  return count;
}

/// Frames that a file has at the rate at which it is read, at most kLargestNumFrames; nothing where it does not say.
std::optional<std::int64_t> frames_there(const ExaminedInputs& examined, const std::string& name, double result_fps) {
  const MediaInfo& info = examined.media.at(name);
  const double start_s = examined.request->start_s, own_fps = info.fps.value_or(examined.fps);
  const std::optional<double> fps = examined.rate_for(name, result_fps);
  if (!fps && start_s == 0 && info.num_frames) return info.num_frames;
  std::optional<double> there_s = info.duration_s;
  if (info.num_frames) there_s = static_cast<double>(*info.num_frames) / own_fps;
  if (!there_s) return std::nullopt;
  const double count = std::ceil((*there_s - start_s) * fps.value_or(own_fps) - 1e-6);
  return static_cast<std::int64_t>(std::clamp(count, 1.0, static_cast<double>(kLargestNumFrames)));
}

/// How many frames of a video are taken, by what it says of itself; nothing where it does not say.
std::optional<std::int64_t> expect_frames(const ExaminedInputs& examined, const std::string& name, std::int64_t at_most,
                                          double result_fps) {
  if (examined.sources.at(name)->is_path()) {
    const std::optional<std::int64_t> there = frames_there(examined, name, result_fps);
    return there ? std::optional(std::min(at_most, *there)) : std::nullopt;
  }
  const MediaInfo& info = examined.media.at(name);
  const double source_fps = info.fps.value_or(examined.geometry->default_fps);
  return count_frames(name, *info.num_frames, source_fps, examined.request->start_s, at_most);
}

/// Whether a request is done window by window. Throws EV_ERROR_REQUEST where the bundle cannot do that.
bool is_whole(const Request& request, bool has_video, const Geometry& geometry) {
  if (request.length == "whole" && geometry.shared_frames == 0) {
    throw Error(EV_ERROR_REQUEST, "request.unsupported", "length")
        .found("length is whole")
        .hint("this bundle has no window for longer videos; export it again, or leave length out");
  }
  const std::string length = request.length.value_or(kDefaultLength);
  if (request.length == "cut" || geometry.shared_frames == 0) return false;
  if (request.num_frames) return *request.num_frames > geometry.max_frames;
  return has_video && length == "whole";
}

}  // namespace

std::optional<std::string> ExaminedInputs::main() const {
  return names.empty() ? std::nullopt : std::optional<std::string>(names.front());
}

bool ExaminedInputs::has_video() const { return !names.empty() && input_kind(names.front()) == "video"; }

std::optional<double> ExaminedInputs::rate_for(const std::string& name, double result_fps) const {
  if (name == names.front() || request->fps) return request->fps;
  const std::optional<double> own = media.at(name).fps, main_fps = media.at(names.front()).fps;
  const bool same =
      own && main_fps && std::abs(*own - *main_fps) <= kSameRate * std::max(std::abs(*own), std::abs(*main_fps));
  return same ? std::nullopt : std::optional<double>(result_fps);
}

ExaminedInputs examine_inputs(const Request& request, const Geometry& geometry, const std::string& conditioning) {
  ExaminedInputs examined;
  examined.geometry = &geometry;
  examined.request = &request;
  std::map<std::string, Size> pixels;
  for (const Source& source : request.sources) {
    if (source.is_path()) examined.files[source.name] = open_file(source.path);
    const InputFile* const file = source.is_path() ? examined.files[source.name].get() : nullptr;
    const MediaInfo info = describe_source(source, file, request.fps.value_or(geometry.default_fps));
    examined.sources[source.name] = &source;
    examined.media[source.name] = info;
    pixels[source.name] = Size(info.height_px, info.width_px);
    examined.names.push_back(source.name);
  }
  std::sort(examined.names.begin(), examined.names.end(), comes_before);
  const bool has_video = examined.has_video();
  if (request.start_s > 0 && !has_video) {
    throw Error(EV_ERROR_REQUEST, "request.option", "start_s")
        .found("start_s is ", request.start_s, ", but there is no video to begin in")
        .hint("leave it out");
  }
  std::tie(examined.size, examined.sizes) = choose_sizes(pixels, examined.main(), geometry, request.size);
  const bool is_interleaved = conditioning == "interleaved";
  for (const std::string& name : examined.names) {
    if (is_interleaved) break;
    const bool is_reference = conditioning == "control" && input_kind(name) == "image";
    examined.sizes[name] = is_reference ? fit_inside(pixels[name], examined.size) : examined.size;
  }
  const bool has_image = is_interleaved && !examined.names.empty();
  if (is_whole(request, has_video, geometry)) {
    examined.num_frames = geometry.max_frames;
    examined.total_frames = request.num_frames.value_or(kLargestNumFrames);
  } else {
    examined.num_frames = choose_num_frames(request.num_frames, has_video, has_image, geometry);
  }
  examined.fps = request.fps.value_or(geometry.default_fps);
  return examined;
}

Tensor read_picture(const ExaminedInputs& examined, const std::string& name, std::vector<std::string>& notices,
                    const std::function<void()>& check_stopped) {
  const Clip picture = read_source(examined, name, 1, std::nullopt, 0.0, check_stopped);
  for (const std::string& line : picture.notices) notices.push_back(join_text(name, ": ", line));
  return picture.frames;
}

Footage read_inputs(const ExaminedInputs& examined, const std::function<void()>& check_stopped) {
  const Request& request = *examined.request;
  const Geometry& geometry = *examined.geometry;
  Footage footage{{}, examined.num_frames, examined.fps, {}, {}};
  for (const std::string& name : examined.names) {
    if (input_kind(name) == "image") {
      footage.clips[name] = read_picture(examined, name, footage.notices, check_stopped);
      continue;
    }
    const bool is_main = name == examined.names.front();
    // Where main's frames are not evenly spaced, a video of another rate is sampled at their times.
    std::vector<double> moments_s = footage.times_s;
    if (!moments_s.empty()) moments_s.pop_back();
    const Clip clip = read_source(examined, name, footage.num_frames, examined.rate_for(name, footage.fps),
                                  request.start_s, check_stopped, moments_s);
    const std::int64_t count = clip.frames.shape[0], kept = geometry.round_frames(count);
    footage.clips[name] = slice_rows(clip.frames, 0, kept);
    for (const std::string& line : clip.notices) footage.notices.push_back(join_text(name, ": ", line));
    if (clip.num_damaged > 0) {
      footage.notices.push_back(
          join_text(name, ": ", clip.num_damaged, " packets or frames are damaged; some were skipped"));
    }
    const bool to_its_end = (clip.covers_source || clip.is_short) && kept == count;
    const std::optional<std::int64_t> asked = is_main ? request.num_frames : footage.num_frames;
    if (asked ? kept < *asked : !to_its_end) {
      footage.notices.push_back(describe_cut(examined, name, kept, clip.fps));
    }
    if (is_main) {
      footage.num_frames = kept;
      footage.fps = clip.fps;
      footage.times_s = uneven_times_s(clip, kept);
      if (clip.covers_source && kept == count && examined.media.at(name).has_audio) {
        footage.notices.push_back(name + ": its audio was left out: this library writes none");
      }
    }
  }
  if (request.num_frames && *request.num_frames != footage.num_frames && !examined.has_video()) {
    footage.notices.push_back(
        join_text("num_frames ", *request.num_frames, " became ", footage.num_frames, ": ", length_rule(geometry)));
  }
  return footage;
}

std::optional<std::int64_t> expect_num_frames(const ExaminedInputs& examined) {
  if (!examined.total_frames) return examined.num_frames;
  if (!examined.has_video()) return examined.total_frames;
  return expect_frames(examined, examined.names.front(), *examined.total_frames, examined.fps);
}

std::optional<std::int64_t> expect_length(const ExaminedInputs& examined, const std::string& name) {
  if (!examined.total_frames || !examined.media.at(name).num_frames) return std::nullopt;
  const double result_fps = examined.media.at(examined.names.front()).fps.value_or(examined.fps);
  return expect_frames(examined, name, *examined.total_frames, result_fps);
}

std::optional<std::int64_t> expect_num_windows(const ExaminedInputs& examined) {
  if (!examined.total_frames) return 1;
  const std::optional<std::int64_t> num_frames = expect_num_frames(examined);
  return num_frames ? std::optional(count_windows(*num_frames, *examined.geometry)) : std::nullopt;
}

Footage expect_footage(const ExaminedInputs& examined) {
  const Geometry& geometry = *examined.geometry;
  Footage footage{{}, examined.num_frames, examined.fps, {}, {}};
  if (examined.total_frames) {
    // Of a request that is done window by window, the first window.
    const std::int64_t whole = expect_num_frames(examined).value_or(geometry.max_frames);
    footage.num_frames = geometry.pad_frames(std::min(whole, geometry.max_frames));
  }
  for (const std::string& name : examined.names) {
    std::int64_t count = 1;
    if (input_kind(name) == "video") {
      const bool is_main = name == examined.names.front();
      count = footage.num_frames;
      if (!examined.total_frames) {
        const std::int64_t most = footage.num_frames;
        count = geometry.round_frames(expect_frames(examined, name, most, footage.fps).value_or(most));
      }
      if (is_main) {
        footage.num_frames = count;
        footage.fps = examined.request->fps.value_or(examined.media.at(name).fps.value_or(footage.fps));
      }
    }
    const auto [height, width] = examined.sizes.at(name);
    footage.clips[name] = Tensor{"uint8", {count, height, width, 3}};
  }
  return footage;
}

}  // namespace ev
