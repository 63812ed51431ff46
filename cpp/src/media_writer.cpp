// Writing of results with FFmpeg. The twin of editverse_rt/media/writing.py, choice for choice, but for sound and GIF,
// which are not written here. Encoders run on one thread and write no random identifiers.
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>

#include "error.hpp"
#include "lifetime.hpp"
#include "media.hpp"
#include "media_picture.hpp"
#include "media_targets.hpp"
#include "media_timing.hpp"

namespace ev {

namespace {

namespace fs = std::filesystem;
using Settings = std::vector<std::pair<const char*, const char*>>;

/// A video file type: muxer, the clock of frames that are not evenly spaced (the finest that it keeps), encoder, its
/// options (visually lossless), muxer options.
struct Container {
  const char* suffix;
  const char* muxer;
  int clock;
  const char* encoder;
  Settings encoder_options;
  Settings muxer_options;
};

struct PictureType {
  const char* suffix;
  const char* encoder;
  AVPixelFormat format;
  Settings options;
};

// Without x264's macroblock tree, which reads memory that it did not write, the same frames give the same file.
const Settings kH264 = {{"crf", "14"}, {"preset", "medium"}, {"mbtree", "0"}};
const Container kContainers[] = {
    {".mp4", "mp4", 90000, "libx264", kH264, {{"movflags", "+faststart"}}},
    {".mov", "mov", 90000, "libx264", kH264, {{"movflags", "+faststart"}}},
    {".mkv", "matroska", 1000, "libx264", kH264, {}},
    {".webm", "webm", 1000, "libvpx-vp9", {{"crf", "16"}, {"b", "0"}, {"cpu-used", "2"}, {"row-mt", "0"}}, {}},
};
const PictureType kPictures[] = {
    {".png", "png", AV_PIX_FMT_RGB24, {}},
    {".jpg", "mjpeg", AV_PIX_FMT_YUVJ444P, {{"qmin", "1"}, {"qmax", "2"}}},
    {".jpeg", "mjpeg", AV_PIX_FMT_YUVJ444P, {{"qmin", "1"}, {"qmax", "2"}}},
    {".webp", "libwebp", AV_PIX_FMT_BGRA, {{"lossless", "1"}}},
};
constexpr const char* kFolderPattern = "frame_%05d.png";

struct OutputFreed {
  void operator()(AVFormatContext* output) const {
    avio_closep(&output->pb);
    avformat_free_context(output);
  }
};
using OutputPointer = std::unique_ptr<AVFormatContext, OutputFreed>;

class Options {
 public:
  explicit Options(const Settings& settings) {
    for (const auto& [name, value] : settings) av_dict_set(&options_, name, value, 0);
  }
  ~Options() { av_dict_free(&options_); }
  Options(const Options&) = delete;
  Options& operator=(const Options&) = delete;

  AVDictionary** get() { return &options_; }

 private:
  AVDictionary* options_ = nullptr;
};

std::string advice_for(int number) {
  if (number == ENOSPC || number == EDQUOT) return "the disk is full; free some space or write elsewhere";
  if (number == EACCES || number == EPERM || number == EROFS) {
    return "no permission to write there; change the folder's permissions or write elsewhere";
  }
  return std::string(std::strerror(number)) + "; write elsewhere or under another name";
}

[[noreturn]] void fail_to_write(const fs::path& target, int number) {
  throw Error(EV_ERROR_MEDIA, "media.unwritable").found(target.string(), ": cannot be written: ", advice_for(number));
}

/// Turns what libav returns into an error: the system's (disk, permission), or its own.
void check(int code, const fs::path& target) {
  if (code >= 0) return;
  for (const int number : {ENOSPC, EDQUOT, EACCES, EPERM, EROFS, EIO, ENOENT}) {
    if (code == AVERROR(number)) fail_to_write(target, number);
  }
  throw Error(EV_ERROR_MEDIA, "media.unwritable")
      .found(target.string(), ": cannot be encoded (", reason_of(code), ")")
      .hint("write another type or size");
}

/// A hidden folder beside a path, to prepare it in; it goes, with what is left in it, in any case.
class WorkingFolder {
 public:
  explicit WorkingFolder(const fs::path& target) : target_(target) {
    const fs::path parent = target.has_parent_path() ? target.parent_path() : fs::path(".");
    std::error_code error;
    if (!fs::is_directory(parent, error)) {
      throw Error(EV_ERROR_MEDIA, "media.place")
          .found(target.string(), ": found no folder ", parent.string())
          .expected("an existing one")
          .hint("create it first");
    }
    std::string name = (parent / ("." + target.stem().string().substr(0, 100) + ".XXXXXX")).string();
    if (mkdtemp(name.data()) == nullptr) fail_to_write(target, errno);
    folder_ = name;
  }
  ~WorkingFolder() {
    std::error_code error;
    fs::remove_all(folder_, error);
  }
  WorkingFolder(const WorkingFolder&) = delete;
  WorkingFolder& operator=(const WorkingFolder&) = delete;

  fs::path operator/(const fs::path& name) const { return folder_ / name; }

  /// Moves a file or folder that is whole to its place, over a file that stands there.
  void move(const fs::path& from, const fs::path& to) const {
    std::error_code error;
    fs::rename(from, to, error);
    if (error) fail_to_write(target_, error.value());
  }

 private:
  fs::path target_;
  fs::path folder_;
};

FramePointer make_frame(AVPixelFormat format, int width, int height) {
  FramePointer frame(require_memory(av_frame_alloc()));
  frame->format = format;
  frame->width = width;
  frame->height = height;
  if (av_frame_get_buffer(frame.get(), 0) < 0) throw std::bad_alloc();
  return frame;
}

/// A picture [H, W, 3] as a frame for an encoder, an edge padded by repeating its last line.
FramePointer convert(const Picture& picture, AVPixelFormat format, int width, int height, bool is_video) {
  const int given_width = static_cast<int>(picture.width_px), given_height = static_cast<int>(picture.height_px);
  const FramePointer rgb = make_frame(AV_PIX_FMT_RGB24, width, height);
  for (int y = 0; y < height; ++y) {
    std::uint8_t* const row = rgb->data[0] + static_cast<std::ptrdiff_t>(y) * rgb->linesize[0];
    const auto from = static_cast<std::size_t>(std::min(y, given_height - 1)) * picture.row_stride_bytes;
    std::memcpy(row, picture.data + from, static_cast<std::size_t>(given_width) * 3);
    const std::uint8_t* const last = row + 3 * static_cast<std::ptrdiff_t>(given_width - 1);
    for (int x = given_width; x < width; ++x) std::memcpy(row + 3 * static_cast<std::ptrdiff_t>(x), last, 3);
  }
  if (format == AV_PIX_FMT_RGB24) {
    FramePointer same(require_memory(av_frame_clone(rgb.get())));
    return same;
  }
  FramePointer made = make_frame(format, width, height);
  convert_rgb(*rgb, *made, is_video ? AVCOL_SPC_BT709 : AVCOL_SPC_UNSPECIFIED, !is_video);
  return made;
}

CodecPointer make_encoder(const char* name, const fs::path& target) {
  const AVCodec* codec = avcodec_find_encoder_by_name(name);
  if (codec == nullptr) {
    throw Error(EV_ERROR_MEDIA, "media.unwritable")
        .found(target.string(), ": this FFmpeg has no encoder ", name)
        .hint("write another type, or use an FFmpeg that has it");
  }
  CodecPointer encoder(require_memory(avcodec_alloc_context3(codec)));
  encoder->thread_count = 1;
  encoder->log_level_offset = kQuiet;
  return encoder;
}

/// Gives a frame (NULL: no more) to an encoder, and each packet that comes out to take.
template <typename Take>
void encode(AVCodecContext& encoder, const AVFrame* frame, const fs::path& target, const Take& take) {
  check_process_ending();
  check(avcodec_send_frame(&encoder, frame), target);
  const PacketPointer packet(require_memory(av_packet_alloc()));
  while (true) {
    const int code = avcodec_receive_packet(&encoder, packet.get());
    if (code == AVERROR(EAGAIN) || code == AVERROR_EOF) return;
    check(code, target);
    check_process_ending();
    take(*packet);
    av_packet_unref(packet.get());
  }
}

void write_picture(const fs::path& target, const fs::path& part, const Picture& picture, const PictureType& type) {
  const int width = static_cast<int>(picture.width_px), height = static_cast<int>(picture.height_px);
  const CodecPointer encoder = make_encoder(type.encoder, target);
  encoder->width = width;
  encoder->height = height;
  encoder->pix_fmt = type.format;
  encoder->time_base = {1, 1};
  Options options(type.options);
  check(avcodec_open2(encoder.get(), nullptr, options.get()), target);
  const FramePointer frame = convert(picture, type.format, width, height, false);
  frame->pts = 0;
  std::string bytes;
  const auto take = [&](const AVPacket& packet) {
    bytes.append(reinterpret_cast<const char*>(packet.data), static_cast<std::size_t>(packet.size));
  };
  encode(*encoder, frame.get(), target, take);
  encode(*encoder, nullptr, target, take);
  std::FILE* const file = std::fopen(part.c_str(), "wb");
  if (file == nullptr) fail_to_write(target, errno);
  const bool is_written = std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
  const int number = errno;
  if (std::fclose(file) != 0) fail_to_write(target, errno);
  if (!is_written) fail_to_write(target, number);
}

Picture picture_of(const Tensor& frames, std::int64_t index) {
  const std::int64_t height = frames.shape[1], width = frames.shape[2];
  return {frames.as<const std::uint8_t>() + index * height * width * 3, height, width,
          static_cast<std::size_t>(width) * 3};
}

/// Frames with what is needed to lay them out in time; see write_clip.
struct TimedFrames {
  const Tensor& frames;
  double fps;
  const std::vector<double>& times_s;
};

/// When each frame is shown, in ticks; nothing for those that are left out.
std::vector<std::optional<Span>> lay_out_in_time(const TimedFrames& clip, int clock) {
  const auto count = static_cast<std::size_t>(clip.frames.shape[0]);
  if (!clip.times_s.empty()) return spans_of(ticks_of(clip.times_s, clock), 1);
  std::vector<std::optional<Span>> spans(count);
  for (std::size_t i = 0; i < count; ++i) spans[i] = Span{static_cast<std::int64_t>(i), 1};
  return spans;
}

void write_container(const fs::path& target, const fs::path& part, const TimedFrames& clip, const Container& type) {
  const Tensor& frames = clip.frames;
  const auto [numerator, denominator] = fraction_of_rate(clip.fps);
  const AVRational rate{numerator, denominator};
  const AVRational tick = clip.times_s.empty() ? av_inv_q(rate) : AVRational{1, type.clock};
  // 4:2:0 H.264 has even sides, and players know no other layout.
  const std::int64_t multiple = std::strcmp(type.encoder, "libx264") == 0 ? 2 : 1;
  const auto rounded = [&](std::int64_t side) { return static_cast<int>((side + multiple - 1) / multiple * multiple); };
  const int width = rounded(frames.shape[2]), height = rounded(frames.shape[1]);
  AVFormatContext* created = nullptr;
  const std::string url = "file:" + part.string();  // so that a colon in the name ends no protocol
  check(avformat_alloc_output_context2(&created, nullptr, type.muxer, url.c_str()), target);
  const OutputPointer output(created);
  output->flags |= AVFMT_FLAG_BITEXACT;
  const CodecPointer encoder = make_encoder(type.encoder, target);
  encoder->width = width;
  encoder->height = height;
  encoder->pix_fmt = AV_PIX_FMT_YUV420P;
  encoder->time_base = tick;
  encoder->framerate = rate;
  encoder->colorspace = AVCOL_SPC_BT709;
  encoder->color_primaries = AVCOL_PRI_BT709;
  encoder->color_trc = AVCOL_TRC_BT709;
  encoder->color_range = AVCOL_RANGE_MPEG;
  if ((output->oformat->flags & AVFMT_GLOBALHEADER) != 0) encoder->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
  Options encoder_options(type.encoder_options), muxer_options(type.muxer_options);
  check(avcodec_open2(encoder.get(), nullptr, encoder_options.get()), target);
  AVStream* const stream = require_memory(avformat_new_stream(output.get(), nullptr));
  stream->time_base = encoder->time_base;
  stream->avg_frame_rate = rate;
  check(avcodec_parameters_from_context(stream->codecpar, encoder.get()), target);
  check(avio_open(&output->pb, url.c_str(), AVIO_FLAG_WRITE), target);
  check(avformat_write_header(output.get(), muxer_options.get()), target);
  const std::vector<std::optional<Span>> spans = lay_out_in_time(clip, type.clock);
  std::map<std::int64_t, std::int64_t> durations;
  for (const std::optional<Span>& span : spans) {
    if (span) durations[span->begin] = span->duration;
  }
  const auto take = [&](AVPacket& packet) {
    // Encoders state no length, or that of the nominal rate.
    const auto known = durations.find(packet.pts);
    if (known != durations.end()) packet.duration = known->second;
    av_packet_rescale_ts(&packet, encoder->time_base, stream->time_base);
    packet.stream_index = stream->index;
    check(av_interleaved_write_frame(output.get(), &packet), target);
  };
  for (std::int64_t i = 0; i < frames.shape[0]; ++i) {
    const std::optional<Span>& span = spans[static_cast<std::size_t>(i)];
    if (!span) continue;
    const FramePointer frame = convert(picture_of(frames, i), AV_PIX_FMT_YUV420P, width, height, true);
    frame->pts = span->begin;
    encode(*encoder, frame.get(), target, take);
  }
  encode(*encoder, nullptr, target, take);
  check(av_write_trailer(output.get()), target);
  // What is still in a buffer may find the disk full.
  check(avio_closep(&output->pb), target);
}

template <typename Type, std::size_t count>
const Type* find_type(const Type (&types)[count], const std::string& suffix) {
  const auto found = std::find_if(types, types + count, [&](const Type& type) { return suffix == type.suffix; });
  return found == types + count ? nullptr : found;
}

void write_numbered(const fs::path& target, const Tensor& frames, const PictureType& type) {
  const WorkingFolder folder(target);
  const std::string pattern = target.filename().string();
  for (std::int64_t i = 0; i < frames.shape[0]; ++i) {
    write_picture(target, folder / numbered(pattern, i + 1), picture_of(frames, i), type);
  }
  for (std::int64_t i = 0; i < frames.shape[0]; ++i) {
    const std::string name = numbered(pattern, i + 1);
    try {
      folder.move(folder / name, target.parent_path() / name);
    } catch (const Error&) {
      // All or none.
      std::error_code error;
      for (std::int64_t k = 0; k < i; ++k) fs::remove(target.parent_path() / numbered(pattern, k + 1), error);
      throw;
    }
  }
}

void write_folder(const fs::path& target, const Tensor& frames) {
  std::error_code error;
  const bool is_taken = fs::exists(target, error) && !(fs::is_directory(target, error) && fs::is_empty(target, error));
  if (is_taken) {
    throw Error(EV_ERROR_MEDIA, "media.place")
        .found(target.string(), ": already there")
        .expected("a new or an empty folder")
        .hint("choose another name");
  }
  const WorkingFolder folder(target);
  if (!fs::create_directory(folder / "frames", error)) fail_to_write(target, error.value());
  for (std::int64_t i = 0; i < frames.shape[0]; ++i) {
    write_picture(target, folder / "frames" / numbered(kFolderPattern, i + 1), picture_of(frames, i), kPictures[0]);
  }
  folder.move(folder / "frames", target);
}

/// Writes one file by write(part), which becomes `target` when it is whole.
template <typename Write>
void replace_file(const fs::path& target, const Write& write) {
  std::error_code error;
  if (fs::is_directory(target, error)) {
    throw Error(EV_ERROR_MEDIA, "media.place")
        .found(target.string(), ": found a folder of that name")
        .expected("a file name")
        .hint("choose another");
  }
  const WorkingFolder folder(target);
  write(folder / target.filename());
  folder.move(folder / target.filename(), target);
}

}  // namespace

void write_clip(const std::string& path, const Tensor& frames, double fps, const std::vector<double>& times_s) {
  const fs::path target(path);
  if (target.filename().empty()) {
    throw Error(EV_ERROR_MEDIA, "media.type")
        .found("found the path \"", path, "\"")
        .expected("the name of a file, or of a folder without a / behind");
  }
  const std::string suffix = suffix_of(target);
  if (suffix.empty()) return write_folder(target, frames);
  if (const Container* type = find_type(kContainers, suffix)) {
    if (!(fps >= 0.001 && fps <= 1000)) {
      throw Error(EV_ERROR_MEDIA, "media.rate").found("found ", fps, " frames a second").expected("0.001 to 1000");
    }
    return replace_file(target,
                        [&](const fs::path& part) { write_container(target, part, {frames, fps, times_s}, *type); });
  }
  const PictureType* type = find_type(kPictures, suffix);
  if (type == nullptr) {
    throw Error(EV_ERROR_MEDIA, "media.type")
        .found(path, ": found the suffix ", suffix)
        .expected("one of ", list_suffixes(), ", or none for a folder");
  }
  if (!numbered(target.filename().string(), 1).empty()) return write_numbered(target, frames, *type);
  if (frames.shape[0] != 1) {
    throw Error(EV_ERROR_MEDIA, "media.type")
        .found(path, ": found several frames for one picture")
        .expected("one")
        .hint("write a folder, ", target.stem().string(), "_%04d", target.extension().string(), " or a video");
  }
  replace_file(target, [&](const fs::path& part) { write_picture(target, part, picture_of(frames, 0), *type); });
}

}  // namespace ev
