#include "inputs.hpp"

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <tuple>

#include "error.hpp"

namespace ev {

namespace {

constexpr double kSameRate = 1e-3;

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
    fail(EV_ERROR_MEDIA, name, " has ", source.num_frames, " frames of ", width, "x", height,
         " px (width x height); expected at least one frame, and 1 to ", kMaxFrameSidePx, " px a side");
  }
  const auto row_bytes = static_cast<std::size_t>(width) * 3;
  const auto rows = static_cast<std::size_t>(height), frames = static_cast<std::size_t>(source.num_frames);
  // In this order nothing can wrap around: every product stays below the stride that it is compared with.
  const bool rows_fit = source.row_stride_bytes >= row_bytes &&
                        source.row_stride_bytes <= (SIZE_MAX - row_bytes) / rows &&
                        source.frame_stride_bytes >= source.row_stride_bytes * (rows - 1) + row_bytes &&
                        source.frame_stride_bytes <= (SIZE_MAX / 2) / frames;
  if (!rows_fit) {
    fail(EV_ERROR_MEDIA, name, " has strides of ", source.row_stride_bytes, " bytes a row and ",
         source.frame_stride_bytes, " a frame; ", width, "x", height, " RGB pixels (width x height) need ", row_bytes,
         " and ", row_bytes * rows, " at least");
  }
  const std::size_t needed =
      source.frame_stride_bytes * (frames - 1) + source.row_stride_bytes * (rows - 1) + row_bytes;
  if (source.data != nullptr && source.num_bytes < needed) {
    fail(EV_ERROR_MEDIA, name, " has ", source.num_bytes, " bytes; ", source.num_frames, " frames of ", width, "x",
         height, " RGB pixels (width x height) with these strides need ", needed);
  }
  const bool is_image = source.num_frames == 1 && input_kind(name) == "image";
  return {is_image ? "image" : "video", width, height, fps, source.num_frames};
}

MediaInfo describe_source(const Source& source, const InputFile* file, double fps) {
  MediaInfo info = file != nullptr ? probe_file(*file) : describe_frames(source, fps);
  if (info.kind != input_kind(source.name)) {
    fail(EV_ERROR_MEDIA, source.name, ": ", source.is_path() ? source.path : "these frames",
         info.kind == "image" ? " is an image" : " are a video", "; give it as ", info.kind, "1 and mention it as <",
         info.kind, "1>");
  }
  return info;
}

}  // namespace

Inputs::Inputs(const std::vector<Source>& sources, const Geometry& geometry, const Wanted& wanted)
    : geometry_(geometry), wanted_(wanted) {
  std::map<std::string, Size> pixels;
  for (const Source& source : sources) {
    if (source.is_path()) files_[source.name] = open_file(source.path);
    const InputFile* const file = source.is_path() ? files_[source.name].get() : nullptr;
    const MediaInfo info = describe_source(source, file, wanted.fps.value_or(geometry.default_fps));
    sources_[source.name] = &source;
    media_[source.name] = info;
    pixels[source.name] = Size(info.height_px, info.width_px);
    names_.push_back(source.name);
  }
  std::sort(names_.begin(), names_.end(), comes_before);
  if (!names_.empty()) main_ = names_.front();
  has_video_ = main_ && input_kind(*main_) == "video";
  if (wanted.start_s > 0 && !has_video_) {
    fail(EV_ERROR_REQUEST, "start_s is ", wanted.start_s, ", but there is no video to begin in; leave it out");
  }
  std::tie(size_, sizes_) = plan_sizes(pixels, main_, geometry, wanted.size);
  num_frames_ = plan_frames(wanted.num_frames, has_video_, main_.has_value(), geometry);
  fps_ = wanted.fps.value_or(geometry.default_fps);
}

std::map<std::string, Tensor> Inputs::read(std::vector<std::string>& notices,
                                           const std::function<void()>& check_stopped) {
  std::map<std::string, Tensor> clips;
  for (const std::string& name : names_) {
    if (input_kind(name) == "image") {
      const Clip picture = read_source(name, 1, std::nullopt, 0.0, check_stopped);
      clips[name] = picture.frames;
      for (const std::string& line : picture.notices) notices.push_back(name + ": " + line);
      continue;
    }
    const bool is_main = name == *main_;
    const Clip clip = read_source(name, num_frames_, rate_for(name), wanted_.start_s, check_stopped);
    const std::int64_t count = clip.frames.shape[0], kept = geometry_.round_frames(count);
    clips[name] = slice_rows(clip.frames, 0, kept);
    for (const std::string& line : clip.notices) notices.push_back(name + ": " + line);
    if (clip.num_damaged > 0) {
      notices.push_back(join_text(name, ": ", clip.num_damaged, " packets or frames are damaged; some were skipped"));
    }
    const bool to_its_end = (clip.covers_source || clip.is_short) && kept == count;
    const std::optional<std::int64_t> asked = is_main ? wanted_.num_frames : num_frames_;
    if (asked ? kept < *asked : !to_its_end) notices.push_back(describe_cut(name, kept, clip.fps));
    if (is_main) {
      num_frames_ = kept;
      fps_ = clip.fps;
    }
  }
  if (wanted_.num_frames && *wanted_.num_frames != num_frames_ && !has_video_) {
    notices.push_back(join_text("num_frames ", *wanted_.num_frames, " became ", num_frames_, ": ", length_rule()));
  }
  return clips;
}

std::map<std::string, std::vector<std::int64_t>> Inputs::shapes() {
  std::map<std::string, std::vector<std::int64_t>> shapes;
  for (const std::string& name : names_) {
    const MediaInfo& info = media_.at(name);
    std::int64_t count = 1;
    if (input_kind(name) == "video") {
      const std::optional<double> fps = rate_for(name);
      const double source_fps = info.fps.value_or(geometry_.default_fps);
      count = std::min(num_frames_, info.num_frames.value_or(num_frames_));
      if (!sources_.at(name)->is_path()) {
        count = 0;
        TimeSampler sampler(wanted_.start_s, std::nullopt, source_fps);
        for (std::int64_t i = 0; i < *info.num_frames && count < num_frames_; ++i) {
          count += sampler.count_slots(static_cast<double>(i + 1) / source_fps, 1);
        }
        if (count == 0) {
          fail(EV_ERROR_MEDIA, name, ": found a start of ", wanted_.start_s, " s; the frames end before");
        }
      } else if (fps || wanted_.start_s > 0) {
        // Sampled by time: the frames that are left, at the rate asked for.
        const double left_s = static_cast<double>(info.num_frames.value_or(INT32_MAX)) / source_fps - wanted_.start_s;
        const double wanted_frames = std::ceil(left_s * fps.value_or(source_fps) - 1e-6);
        count = wanted_frames < 1                                  ? 1
                : wanted_frames < static_cast<double>(num_frames_) ? static_cast<std::int64_t>(wanted_frames)
                                                                   : num_frames_;
      }
      count = geometry_.round_frames(count);
    }
    if (main_ && name == *main_ && has_video_) {
      num_frames_ = count;
      fps_ = wanted_.fps.value_or(info.fps.value_or(fps_));
    }
    shapes[name] = {count, sizes_.at(name).first, sizes_.at(name).second, 3};
  }
  return shapes;
}

Clip Inputs::read_source(const std::string& name, std::int64_t num_frames, std::optional<double> fps, double start_s,
                         const std::function<void()>& check_stopped) const {
  const Source& source = *sources_.at(name);
  if (!source.is_path()) return take_frames(source, num_frames, start_s);
  const auto [height, width] = sizes_.at(name);
  return read_clip(*files_.at(name), start_s, num_frames, fps, height, width, check_stopped);
}

Clip Inputs::take_frames(const Source& source, std::int64_t num_frames, double start_s) const {
  const auto [height, width] = sizes_.at(source.name);
  const double source_fps = media_.at(source.name).fps.value_or(1.0);
  if (!(source_fps >= 0.001 && source_fps <= 1000)) {
    fail(EV_ERROR_MEDIA, "found ", source_fps, " frames a second; expected 0.001 to 1000");
  }
  const std::size_t row_bytes = static_cast<std::size_t>(source.width_px) * 3;
  const bool is_packed = source.row_stride_bytes == row_bytes &&
                         source.frame_stride_bytes == row_bytes * static_cast<std::size_t>(source.height_px);
  const bool fits = source.height_px == height && source.width_px == width;
  // Nothing is taken twice from frames in memory, so what is taken is a run of them.
  TimeSampler sampler(start_s, std::nullopt, source_fps);
  std::int64_t begin = 0;
  while (begin < source.num_frames && sampler.count_slots(static_cast<double>(begin + 1) / source_fps, 1) == 0) {
    ++begin;
  }
  if (begin == source.num_frames) {
    std::ostringstream end_s;
    end_s.imbue(std::locale::classic());
    end_s << std::fixed << std::setprecision(2) << static_cast<double>(source.num_frames) / source_fps;
    fail(EV_ERROR_MEDIA, source.name, ": found a start of ", start_s, " s; the frames end at ", end_s.str(), " s");
  }
  const std::int64_t count = std::min(num_frames, source.num_frames - begin);
  Clip clip;
  clip.fps = source_fps;
  clip.covers_source = start_s <= 0 && begin + count == source.num_frames;
  clip.is_short = count < num_frames;
  const std::uint8_t* first = source.data + static_cast<std::size_t>(begin) * source.frame_stride_bytes;
  if (fits && is_packed) {
    // Graphs read their inputs only; a tensor has no const.
    clip.frames = Tensor{"uint8", {count, height, width, 3}, const_cast<std::uint8_t*>(first)};
    return clip;
  }
  clip.frames = make_unset_tensor("uint8", {count, height, width, 3});
  const std::size_t target_row = static_cast<std::size_t>(width) * 3;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint8_t* from = first + static_cast<std::size_t>(i) * source.frame_stride_bytes;
    char* to = slice_rows(clip.frames, i, 1).as<char>();
    if (!fits) {
      resize_picture(source.name, {from, source.height_px, source.width_px, source.row_stride_bytes}, height, width,
                     to);
      continue;
    }
    for (std::int64_t row = 0; row < height; ++row) {
      std::memcpy(to + static_cast<std::size_t>(row) * target_row,
                  from + static_cast<std::size_t>(row) * source.row_stride_bytes, target_row);
    }
  }
  return clip;
}

/// Videos of main's own rate go frame by frame, as main does: on a variable frame rate, sampling by time would pair
/// other frames of a mask with those of its video.
std::optional<double> Inputs::rate_for(const std::string& name) const {
  if (name == *main_ || wanted_.fps) return wanted_.fps;
  const std::optional<double> own = media_.at(name).fps, main = media_.at(*main_).fps;
  if (own && main && std::abs(*own - *main) <= kSameRate * std::max(std::abs(*own), std::abs(*main))) {
    return std::nullopt;
  }
  return fps_;
}

std::string Inputs::describe_cut(const std::string& name, std::int64_t kept, double fps) const {
  const MediaInfo& info = media_.at(name);
  std::ostringstream text;
  text.imbue(std::locale::classic());
  const auto seconds = [&] {
    std::ostringstream shown;
    shown.imbue(std::locale::classic());
    shown << std::fixed << std::setprecision(2) << static_cast<double>(kept) / fps;
    return shown.str();
  };
  if (wanted_.start_s == 0 && (!wanted_.fps || !sources_.at(name)->is_path())) {
    text << "took frames 0-" << kept - 1 << " (" << seconds() << " s)";
    if (info.num_frames.value_or(0) > 0) text << " of " << *info.num_frames;
  } else {
    text << "took " << kept << " frames (" << seconds() << " s) from " << wanted_.start_s << " s on";
  }
  return join_text(name, ": ", text.str(), " at ", fps, " fps; ", length_rule(),
                   "; choose otherwise with start_s, num_frames, fps");
}

std::string Inputs::length_rule() const {
  return join_text("clips have 1 + ", geometry_.temporal_ratio, " k frames, up to ", geometry_.max_frames);
}

}  // namespace ev
