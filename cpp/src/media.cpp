// Reading of files, and resizing, with FFmpeg: the only file that includes it. The twin of editverse_rt/video/reading.py,
// choice for choice; where the two may differ is how a version of FFmpeg rounds.
extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>
}

#include <unistd.h>

#include <array>
#include <cmath>
#include <filesystem>
#include <iomanip>
#include <limits>
#include <memory>
#include <set>
#include <thread>

#include "error.hpp"
#include "media.hpp"

namespace ev {

namespace fs = std::filesystem;

namespace {

constexpr int kHdLines = 720;
constexpr std::int64_t kMaxSourceAreaPx = 1 << 27;
constexpr int kExact = SWS_ACCURATE_RND | SWS_BITEXACT | SWS_FULL_CHR_H_INT | SWS_FULL_CHR_H_INP;

template <auto Function>
struct Freed {
  template <typename T>
  void operator()(T* pointer) const {
    Function(&pointer);
  }
};
using FormatPointer = std::unique_ptr<AVFormatContext, Freed<avformat_close_input>>;
using CodecPointer = std::unique_ptr<AVCodecContext, Freed<avcodec_free_context>>;
using FramePointer = std::unique_ptr<AVFrame, Freed<av_frame_free>>;
using PacketPointer = std::unique_ptr<AVPacket, Freed<av_packet_free>>;
struct ScalerFreed {
  void operator()(SwsContext* context) const { sws_freeContext(context); }
};
using ScalerPointer = std::unique_ptr<SwsContext, ScalerFreed>;

std::string reason_of(int code) {
  std::array<char, AV_ERROR_MAX_STRING_SIZE> text{};
  av_strerror(code, text.data(), text.size());
  return text.data();
}

[[noreturn]] void fail_to_decode(const std::string& path, int code) {
  fail(EV_ERROR_MEDIA, path, ": no video or image that can be decoded (", reason_of(code),
       "); it may be cut short or of another type, make or convert it again");
}

template <typename Pointer>
Pointer require_memory(Pointer pointer) {
  if (pointer == nullptr) throw std::bad_alloc();
  return pointer;
}

std::string two_places(double value) {
  std::ostringstream text;
  text.imbue(std::locale::classic());
  text << std::fixed << std::setprecision(2) << value;
  return text.str();
}

void check_input_file(const std::string& path) {
  std::error_code error;
  if (!fs::exists(path, error)) {
    fail(EV_ERROR_MEDIA, path, ": no such file; expected a video or an image, check the path");
  }
  if (!fs::is_regular_file(path, error)) {
    fail(EV_ERROR_MEDIA, path, ": found a folder or a device; expected a video or image file");
  }
  if (access(path.c_str(), R_OK) != 0) {
    fail(EV_ERROR_MEDIA, path, ": no permission to read it; expected a readable file, change its permissions");
  }
  if (fs::file_size(path, error) == 0) {
    fail(EV_ERROR_MEDIA, path, ": the file is empty; expected a video or an image, make it again");
  }
}

/// How stored pixels become the picture shown: swap the axes first, then flip.
struct Placement {
  bool transpose = false;
  bool flip_x = false;
  bool flip_y = false;
};

struct TimedFrame {
  double time_s;
  double end_s;
  FramePointer frame;
};

/// One video stream being decoded; times count from the stream's beginning.
class VideoSource {
 public:
  explicit VideoSource(const std::string& path) : path_(path) {
    check_input_file(path);
    AVDictionary* options = nullptr;
    // An absolute path is never taken for a protocol, and the whitelist keeps playlists from fetching.
    av_dict_set(&options, "protocol_whitelist", "file", 0);
    AVFormatContext* opened = nullptr;
    int code = avformat_open_input(&opened, fs::absolute(path).c_str(), nullptr, &options);
    av_dict_free(&options);
    if (code < 0) fail_to_decode(path, code);
    format_.reset(opened);
    code = avformat_find_stream_info(opened, nullptr);
    if (code < 0) fail_to_decode(path, code);
    const std::string name = opened->iformat->name;
    if (std::set<std::string>{"tty", "bin", "xbin", "adf", "idf"}.count(name) != 0) {
      fail(EV_ERROR_MEDIA, path, ": found a text file; expected a video or an image");
    }
    bool has_audio = false;
    for (unsigned int i = 0; i < opened->nb_streams; ++i) {
      AVStream* stream = opened->streams[i];
      has_audio = has_audio || stream->codecpar->codec_type == AVMEDIA_TYPE_AUDIO;
      // The cover picture of an audio file is no video.
      const bool is_cover = (stream->disposition & AV_DISPOSITION_ATTACHED_PIC) != 0;
      if (stream_ == nullptr && stream->codecpar->codec_type == AVMEDIA_TYPE_VIDEO && !is_cover) stream_ = stream;
    }
    if (stream_ == nullptr) {
      fail(EV_ERROR_MEDIA, path, ": found ", has_audio ? "only audio" : "no picture",
           " in the file; expected a video or an image");
    }
    const std::int64_t area = static_cast<std::int64_t>(stream_->codecpar->width) * stream_->codecpar->height;
    if (area > kMaxSourceAreaPx) {
      fail(EV_ERROR_MEDIA, path, ": found frames of ", area, " px; expected ", kMaxSourceAreaPx, " or fewer");
    }
    open_decoder();
    rate_ = stream_->avg_frame_rate;
    // The guessed rate is a multiple of the true rate where the frame rate varies: a last resort.
    if (rate_.num <= 0 || rate_.den <= 0) rate_ = av_guess_frame_rate(opened, stream_, nullptr);
    if (rate_.num <= 0 || rate_.den <= 0) rate_ = {25, 1};
    origin_ = stream_->start_time == AV_NOPTS_VALUE ? 0 : stream_->start_time;
  }

  double rate() const { return av_q2d(rate_); }
  std::int64_t num_damaged() const { return num_damaged_; }
  double end_s() const { return end_s_; }
  const std::string& path() const { return path_; }
  AVStream* stream() const { return stream_; }

  bool is_image() const {
    const std::string name = format_->iformat->name;
    if (name == "gif") return stream_->nb_frames == 1;
    const AVDictionaryEntry* entry = av_dict_get(format_->metadata, "major_brand", nullptr, 0);
    const std::string brand = entry == nullptr ? "" : entry->value;
    const bool is_pipe = name.size() >= 5 && name.compare(name.size() - 5, 5, "_pipe") == 0;
    return is_pipe || name == "image2" || brand == "avif" || brand == "mif1" || brand == "heic";
  }

  std::optional<double> duration_s() const {
    if (stream_->duration > 0 && stream_->time_base.num > 0) {
      return static_cast<double>(stream_->duration) * av_q2d(stream_->time_base);
    }
    if (format_->duration > 0) return static_cast<double>(format_->duration) / AV_TIME_BASE;
    return std::nullopt;
  }

  AVRational sample_aspect_ratio() const { return av_guess_sample_aspect_ratio(format_.get(), stream_, nullptr); }

  /// Enters the stream at the key frame at or before start_s; false if it cannot be entered there.
  bool seek(double start_s) {
    if (stream_->time_base.num <= 0) return false;
    const double offset = start_s / av_q2d(stream_->time_base);
    if (!(offset < 9e18)) return false;
    const std::int64_t target = origin_ + static_cast<std::int64_t>(offset);
    if (av_seek_frame(format_.get(), stream_->index, target, AVSEEK_FLAG_BACKWARD) < 0) return false;
    avcodec_flush_buffers(codec_.get());
    return true;
  }

  /// The next frame in order of time; frames without a time follow at the average rate.
  std::optional<TimedFrame> next() {
    FramePointer frame = decode();
    if (frame == nullptr) return std::nullopt;
    const double base = stream_->time_base.num > 0 ? av_q2d(stream_->time_base) : 0, interval_s = 1 / rate();
    double time_s = last_s_;
    if (frame->pts != AV_NOPTS_VALUE && base > 0) time_s = static_cast<double>(frame->pts - origin_) * base;
    if (time_s <= last_s_) time_s = end_s_ != 0 ? std::max(end_s_, last_s_ + interval_s) : 0.0;
#if LIBAVUTIL_VERSION_INT >= AV_VERSION_INT(57, 30, 100)
    const double duration_s = static_cast<double>(frame->duration) * base;
#else
    const double duration_s = static_cast<double>(frame->pkt_duration) * base;
#endif
    end_s_ = time_s + (duration_s > 0 ? duration_s : interval_s);
    last_s_ = time_s;
    return TimedFrame{time_s, end_s_, std::move(frame)};
  }

 private:
  void open_decoder() {
    const AVCodec* decoder = avcodec_find_decoder(stream_->codecpar->codec_id);
    if (decoder == nullptr) fail_to_decode(path_, AVERROR_DECODER_NOT_FOUND);
    codec_.reset(require_memory(avcodec_alloc_context3(decoder)));
    int code = avcodec_parameters_to_context(codec_.get(), stream_->codecpar);
    codec_->pkt_timebase = stream_->time_base;
    // Bounded, because every frame in flight is a whole picture in memory.
    codec_->thread_count = static_cast<int>(std::min(4u, std::max(1u, std::thread::hardware_concurrency())));
    codec_->thread_type = FF_THREAD_FRAME | FF_THREAD_SLICE;
    codec_->max_pixels = kMaxSourceAreaPx;
    if (code >= 0) code = avcodec_open2(codec_.get(), decoder, nullptr);
    if (code < 0) fail_to_decode(path_, code);
  }

  FramePointer decode() {
    FramePointer frame(require_memory(av_frame_alloc()));
    while (true) {
      const int received = avcodec_receive_frame(codec_.get(), frame.get());
      if (received >= 0) return frame;
      if (received != AVERROR(EAGAIN) && received != AVERROR_EOF) ++num_damaged_;
      if (received == AVERROR_EOF || is_flushed_) return nullptr;
      send_packet();
    }
  }

  /// Gives the decoder the next packet of the stream, or tells it that there is none.
  void send_packet() {
    const PacketPointer packet(require_memory(av_packet_alloc()));
    while (true) {
      const int code = av_read_frame(format_.get(), packet.get());
      if (code < 0) {
        is_flushed_ = true;
        if (code == AVERROR_EOF) {
          avcodec_send_packet(codec_.get(), nullptr);
          is_flushed_ = false;  // what is left in the decoder comes out, then its own end
        } else {
          ++num_damaged_;
        }
        return;
      }
      const bool is_ours = packet->stream_index == stream_->index;
      // What would be missing of a packet that was cut would be concealed by guesswork.
      const bool is_whole = (packet->flags & AV_PKT_FLAG_CORRUPT) == 0;
      if (is_ours && !is_whole) ++num_damaged_;
      if (is_ours && is_whole) {
        const int sent = avcodec_send_packet(codec_.get(), packet.get());
        if (sent < 0 && sent != AVERROR_EOF) ++num_damaged_;
        return;
      }
      av_packet_unref(packet.get());
    }
  }

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

/// How a frame is to be put upright, from its display matrix (of the container, or made from EXIF).
Placement placement_of(const AVFrame& frame, AVStream* stream) {
  const std::uint8_t* matrix = nullptr;
  if (const AVFrameSideData* data = av_frame_get_side_data(&frame, AV_FRAME_DATA_DISPLAYMATRIX)) matrix = data->data;
#if LIBAVCODEC_VERSION_INT >= AV_VERSION_INT(60, 31, 102)
  if (matrix == nullptr) {
    const AVPacketSideData* data =
        av_packet_side_data_get(stream->codecpar->coded_side_data, stream->codecpar->nb_coded_side_data,
                                AV_PKT_DATA_DISPLAYMATRIX);
    if (data != nullptr) matrix = data->data;
  }
#else
  if (matrix == nullptr) matrix = av_stream_get_side_data(stream, AV_PKT_DATA_DISPLAYMATRIX, nullptr);
#endif
  if (matrix == nullptr) return {};
  std::array<std::int32_t, 5> m{};
  std::memcpy(m.data(), matrix, sizeof m);
  const std::int64_t a = m[0], b = m[1], c = m[3], d = m[4];
  // A point (x, y) is shown at (a x + c y, b x + d y), up to a shift; turns of 90 degrees only.
  if (std::abs(b) + std::abs(c) > std::abs(a) + std::abs(d)) return {true, c < 0, b < 0};
  return {false, a < 0, d < 0};
}

/// A picture in any format, for the scaler.
struct Planes {
  const std::uint8_t* const* data;
  const int* strides;
  int width;
  int height;
  AVPixelFormat format;
  int colorspace = AVCOL_SPC_UNSPECIFIED;
  bool is_full_range = false;
  AVChromaLocation chroma = AVCHROMA_LOC_UNSPECIFIED;
};

/// Where the samples of colour lie among those of brightness, in 1/256 of a sample across and down. Newer versions of
/// FFmpeg take it from the frame by themselves.
void set_chroma_position(SwsContext* scaler, const Planes& from) {
  const AVPixFmtDescriptor* format = av_pix_fmt_desc_get(from.format);
  if (from.chroma == AVCHROMA_LOC_UNSPECIFIED || format == nullptr) return;
  const AVChromaLocation chroma = from.chroma;
  const bool is_left = chroma == AVCHROMA_LOC_LEFT || chroma == AVCHROMA_LOC_TOPLEFT || chroma == AVCHROMA_LOC_BOTTOMLEFT;
  const bool is_top = chroma == AVCHROMA_LOC_TOP || chroma == AVCHROMA_LOC_TOPLEFT;
  const bool is_bottom = chroma == AVCHROMA_LOC_BOTTOM || chroma == AVCHROMA_LOC_BOTTOMLEFT;
  const int across = (1 << format->log2_chroma_w) - 1, down = (1 << format->log2_chroma_h) - 1;
  if (across > 0) av_opt_set_int(scaler, "src_h_chr_pos", (is_left ? 0 : 128) * across, 0);
  if (down > 0) av_opt_set_int(scaler, "src_v_chr_pos", (is_top ? 0 : is_bottom ? 256 : 128) * down, 0);
}

/// The formats that say by their name that they use the whole range, by the name that leaves it to the frame.
AVPixelFormat plain_format(AVPixelFormat format) {
  switch (format) {
    case AV_PIX_FMT_YUVJ420P: return AV_PIX_FMT_YUV420P;
    case AV_PIX_FMT_YUVJ422P: return AV_PIX_FMT_YUV422P;
    case AV_PIX_FMT_YUVJ444P: return AV_PIX_FMT_YUV444P;
    case AV_PIX_FMT_YUVJ440P: return AV_PIX_FMT_YUV440P;
    case AV_PIX_FMT_YUVJ411P: return AV_PIX_FMT_YUV411P;
    default: return format;
  }
}

/// Room for a picture that the scaler may read and write a little beyond the ends of rows.
struct Padded {
  Padded(std::size_t row_bytes, std::size_t rows)
      : stride((row_bytes + 2 * kAlignment - 1) / kAlignment * kAlignment), bytes(stride * rows + kAlignment) {}

  static constexpr std::size_t kAlignment = 64;
  std::size_t stride;
  std::vector<std::uint8_t> bytes;
};

int filter_for(int from_height, int from_width, int height, int width) {
  return height < from_height || width < from_width ? SWS_AREA : SWS_BICUBIC;
}

/// Converts and resizes; down-scaling averages areas, up-scaling is bicubic; both are bit-exact.
void scale(const Planes& from, AVPixelFormat format, int width, int height, int filter, std::uint8_t* to) {
  ScalerPointer scaler(require_memory(sws_alloc_context()));
  av_opt_set_int(scaler.get(), "srcw", from.width, 0);
  av_opt_set_int(scaler.get(), "srch", from.height, 0);
  av_opt_set_int(scaler.get(), "src_format", from.format, 0);
  av_opt_set_int(scaler.get(), "dstw", width, 0);
  av_opt_set_int(scaler.get(), "dsth", height, 0);
  av_opt_set_int(scaler.get(), "dst_format", format, 0);
  av_opt_set_int(scaler.get(), "sws_flags", kExact | filter, 0);
  set_chroma_position(scaler.get(), from);
  av_opt_set_int(scaler.get(), "src_range", from.is_full_range ? 1 : 0, 0);
  const int code = sws_init_context(scaler.get(), nullptr, nullptr);
  if (code < 0) fail(EV_ERROR_MEDIA, "a picture cannot be converted (", reason_of(code), "); convert the file first");
  int *from_table = nullptr, *to_table = nullptr, from_range = 0, to_range = 0, brightness = 0, contrast = 0, saturation = 0;
  const int known = sws_getColorspaceDetails(scaler.get(), &from_table, &from_range, &to_table, &to_range, &brightness,
                                             &contrast, &saturation);
  // Nothing of a picture in RGB, which has no matrix.
  if (known >= 0) {
    sws_setColorspaceDetails(scaler.get(), sws_getCoefficients(from.colorspace), from_range, to_table, to_range,
                             brightness, contrast, saturation);
  }
  const std::size_t row_bytes = static_cast<std::size_t>(width) * (format == AV_PIX_FMT_RGBA ? 4 : 3);
  Padded padded(row_bytes, static_cast<std::size_t>(height));
  std::uint8_t* const planes[4] = {padded.bytes.data(), nullptr, nullptr, nullptr};
  const int strides[4] = {static_cast<int>(padded.stride), 0, 0, 0};
  const int done = sws_scale(scaler.get(), from.data, from.strides, 0, from.height, planes, strides);
  if (done < 0) fail(EV_ERROR_MEDIA, "a picture cannot be resized (", reason_of(done), "); convert the file first");
  for (std::size_t y = 0; y < static_cast<std::size_t>(height); ++y) {
    std::memcpy(to + y * row_bytes, padded.bytes.data() + y * padded.stride, row_bytes);
  }
}

/// scale() for a picture in RGB.
void scale_rgb(const Picture& from, int width, int height, std::uint8_t* to) {
  const std::size_t row_bytes = static_cast<std::size_t>(from.width_px) * 3;
  const auto rows = static_cast<std::size_t>(from.height_px);
  Padded padded(row_bytes, rows);
  for (std::size_t y = 0; y < rows; ++y) {
    std::memcpy(padded.bytes.data() + y * padded.stride, from.data + y * from.row_stride_bytes, row_bytes);
  }
  const int from_width = static_cast<int>(from.width_px), from_height = static_cast<int>(from.height_px);
  const std::uint8_t* const data[4] = {padded.bytes.data(), nullptr, nullptr, nullptr};
  const int strides[4] = {static_cast<int>(padded.stride), 0, 0, 0};
  scale({data, strides, from_width, from_height, AV_PIX_FMT_RGB24}, AV_PIX_FMT_RGB24, width, height,
        filter_for(from_height, from_width, height, width), to);
}

/// 8-bit RGB of that size, without gaps. Transparency is laid over white.
std::vector<std::uint8_t> rgb_of(const AVFrame& frame, bool is_image, int height, int width) {
  std::vector<std::uint8_t> picture(static_cast<std::size_t>(height) * static_cast<std::size_t>(width) * 3);
  const AVPixFmtDescriptor* format = av_pix_fmt_desc_get(static_cast<AVPixelFormat>(frame.format));
  if (format == nullptr) fail(EV_ERROR_MEDIA, "a picture of an unknown pixel format; convert the file first");
  const bool is_unnamed_hd = frame.colorspace == AVCOL_SPC_UNSPECIFIED && frame.height >= kHdLines && !is_image;
  const AVPixelFormat stored = static_cast<AVPixelFormat>(frame.format), plain = plain_format(stored);
  Planes planes{frame.data, frame.linesize, frame.width, frame.height, plain};
  planes.chroma = frame.chroma_location;
  planes.colorspace = is_unnamed_hd ? AVCOL_SPC_BT709 : frame.colorspace;
  planes.is_full_range = frame.color_range == AVCOL_RANGE_JPEG || plain != stored;
  const bool has_alpha = format->nb_components == 2 || format->nb_components == 4;
  const int filter = filter_for(frame.height, frame.width, height, width);
  if (!has_alpha && (format->flags & AV_PIX_FMT_FLAG_PAL) == 0) {
    scale(planes, AV_PIX_FMT_RGB24, width, height, filter, picture.data());
    return picture;
  }
  const std::size_t num_pixels = static_cast<std::size_t>(frame.height) * static_cast<std::size_t>(frame.width);
  std::vector<std::uint8_t> rgba(num_pixels * 4), rgb(num_pixels * 3);
  planes.colorspace = frame.colorspace;
  scale(planes, AV_PIX_FMT_RGBA, frame.width, frame.height, SWS_BICUBIC, rgba.data());
  for (std::size_t i = 0; i < num_pixels; ++i) {
    const int alpha = rgba[4 * i + 3];
    for (std::size_t k = 0; k < 3; ++k) {
      rgb[3 * i + k] = static_cast<std::uint8_t>((rgba[4 * i + k] * alpha + 255 * (255 - alpha) + 127) / 255);
    }
  }
  scale_rgb({rgb.data(), frame.height, frame.width, static_cast<std::size_t>(frame.width) * 3}, width, height,
            picture.data());
  return picture;
}

/// A decoded frame as an upright picture [height, width, 3].
void render(const AVFrame& frame, const VideoSource& source, int height, int width, char* target) {
  const Placement place = placement_of(frame, source.stream());
  const int stored_height = place.transpose ? width : height, stored_width = place.transpose ? height : width;
  const std::vector<std::uint8_t> stored = rgb_of(frame, source.is_image(), stored_height, stored_width);
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      const int shown_x = place.flip_x ? width - 1 - x : x, shown_y = place.flip_y ? height - 1 - y : y;
      const int row = place.transpose ? shown_x : shown_y, column = place.transpose ? shown_y : shown_x;
      const auto from = (static_cast<std::size_t>(row) * static_cast<std::size_t>(stored_width) +
                         static_cast<std::size_t>(column)) * 3;
      const auto to = (static_cast<std::size_t>(y) * static_cast<std::size_t>(width) + static_cast<std::size_t>(x)) * 3;
      std::memcpy(target + to, stored.data() + from, 3);
    }
  }
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
               std::optional<double> fps, std::int64_t height_px, std::int64_t width_px) {
  const std::int64_t wanted = source.is_image() ? 1 : num_frames;
  ClipTaker taker(start_s, wanted, fps, source.rate(), height_px, width_px);
  bool more = true;
  while (shown && more) {
    std::optional<TimedFrame> next = source.next();
    const double until_s = next ? next->time_s : shown->end_s;
    more = taker.show_until(until_s, shown->time_s, [&](char* picture) {
      render(*shown->frame, source, static_cast<int>(height_px), static_cast<int>(width_px), picture);
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
               std::int64_t height_px, std::int64_t width_px) {
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
        return take_clip(source, std::move(first), start_s, num_frames, fps, height_px, width_px);
      }
    }
  }
  // From the beginning, also where an index is missing or leads too far.
  VideoSource source(path);
  if (source.is_image() && !fps) fps = 1.0;
  return take_clip(source, source.next(), start_s, num_frames, fps, height_px, width_px);
}

void resize_picture(const std::string&, const Picture& source, std::int64_t height_px, std::int64_t width_px,
                    char* target) {
  scale_rgb(source, static_cast<int>(width_px), static_cast<int>(height_px), reinterpret_cast<std::uint8_t*>(target));
}

}  // namespace ev
