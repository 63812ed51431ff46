#include "media_source.hpp"

#include <algorithm>
#include <cstring>
#include <sstream>
#include <thread>
#include <tuple>

#include "error.hpp"

namespace ev {

namespace {

// Demuxers without an index: libav seeks by guesses there, and times after a seek cannot be trusted.
const std::set<std::string> kSeekable = {"mov", "matroska"};
// Elementary streams: no timestamps, and the rate that libav states is its own default.
const std::set<std::string> kWithoutTimes = {"h264",      "hevc", "vvc",       "obu",   "m4v",
                                             "mpegvideo", "vc1",  "cavsvideo", "dirac", "mjpeg"};
// Covers, thumbnails and layers that depend on another stream are never the input.
constexpr int kNeverTaken = AV_DISPOSITION_ATTACHED_PIC | AV_DISPOSITION_TIMED_THUMBNAILS | AV_DISPOSITION_DEPENDENT;
// Codecs whose pictures are of the limited range unless they say otherwise.
const std::set<int> kLimitedUnlessSaid = {AV_CODEC_ID_H264, AV_CODEC_ID_HEVC, AV_CODEC_ID_VVC, AV_CODEC_ID_AV1,
                                          AV_CODEC_ID_VP9};
constexpr double kStatedShare = 0.95, kStatedSlack_s = 0.25;

std::set<std::string> split_names(const char* names) {
  std::set<std::string> parts;
  std::istringstream text(names);
  for (std::string part; std::getline(text, part, ',');) parts.insert(part);
  return parts;
}

std::string metadata(const AVStream& stream, const char* key) {
  const AVDictionaryEntry* entry = av_dict_get(stream.metadata, key, nullptr, 0);
  return entry == nullptr ? "" : entry->value;
}

/// Seconds of "HH:MM:SS.fraction"; 0 for another text.
double seconds_of_clock(const std::string& text) {
  std::istringstream stream(text);
  stream.imbue(std::locale::classic());
  std::int64_t hours = 0, minutes = 0;
  double seconds = 0;
  char one = 0, other = 0;
  stream >> hours >> one >> minutes >> other >> seconds;
  return stream && one == ':' && other == ':' ? static_cast<double>(hours * 3600 + minutes * 60) + seconds : 0;
}

/// Whether a later stream holds the transparency of an AVIF or HEIC sequence: grey, of the same size and length. Its
/// twin is _alpha_beside in streams.py.
bool has_alpha_beside(const AVFormatContext& format, const AVStream& stream) {
  const AVDictionaryEntry* brand = av_dict_get(format.metadata, "major_brand", nullptr, 0);
  if (brand == nullptr || split_names("avis,msf1,hevc,hevx").count(brand->value) == 0) return false;
  const AVCodecParameters& own = *stream.codecpar;
  return std::any_of(format.streams, format.streams + format.nb_streams, [&](const AVStream* other) {
    const AVCodecParameters& its = *other->codecpar;
    const char* name = av_get_pix_fmt_name(static_cast<AVPixelFormat>(its.format));
    return its.codec_type == AVMEDIA_TYPE_VIDEO && other->index > stream.index && its.width == own.width &&
           its.height == own.height && other->nb_frames == stream.nb_frames && name != nullptr &&
           std::string(name).rfind("gray", 0) == 0;
  });
}

bool is_known(AVRational rate) { return rate.num > 0 && rate.den > 0; }

}  // namespace

VideoSource::VideoSource(const InputFile& file)
    : file_(file), reader_(file), format_(open_container(file, reader_)), names_(split_names(format_->iformat->name)) {
  choose_stream();
  check_source_area(path(), stream_->codecpar->width, stream_->codecpar->height);
  if (file.header().is_cut) {
    num_damaged_ = 1;
    notices_.emplace_back("the file ends before its picture does; what is missing is filled in");
  }
  if (has_alpha_beside(*format_, *stream_)) {
    notices_.emplace_back("its transparency was left out: this library reads none of AVIF and HEIC sequences");
  }
  open_decoder();
  rate_ = stream_->avg_frame_rate;
  // The guessed rate is a multiple of the true rate where the frame rate varies: a last resort.
  if (!is_known(rate_)) rate_ = av_guess_frame_rate(format_.get(), stream_, nullptr);
  if (!is_known(rate_)) rate_ = {25, 1};
  origin_ = stream_->start_time == AV_NOPTS_VALUE ? 0 : stream_->start_time;
}

bool VideoSource::is_one_of(const std::set<std::string>& names) const {
  return std::any_of(names_.begin(), names_.end(), [&](const std::string& name) { return names.count(name) != 0; });
}

/// By: more than one frame, the default flag, the larger picture, the earlier stream.
void VideoSource::choose_stream() {
  bool has_audio = false, has_video = false;
  const auto rank = [](const AVStream& stream) {
    const std::int64_t area = static_cast<std::int64_t>(stream.codecpar->width) * stream.codecpar->height;
    return std::make_tuple(stream.nb_frames != 1, (stream.disposition & AV_DISPOSITION_DEFAULT) != 0, area,
                           -stream.index);
  };
  for (unsigned int i = 0; i < format_->nb_streams; ++i) {
    AVStream* const stream = format_->streams[i];
    const AVMediaType type = stream->codecpar->codec_type;
    has_audio = has_audio || type == AVMEDIA_TYPE_AUDIO;
    if (type != AVMEDIA_TYPE_VIDEO || (stream->disposition & kNeverTaken) != 0) continue;
    has_video = true;
    if (avcodec_find_decoder(stream->codecpar->codec_id) == nullptr) continue;
    if (stream_ == nullptr || rank(*stream) > rank(*stream_)) stream_ = stream;
  }
  if (stream_ != nullptr) return;
  if (has_video) {
    throw Error(EV_ERROR_MEDIA, "media.unsupported")
        .found(path(), ": found video of a codec that is not known here")
        .hint("convert it to H.264, as in `ffmpeg -i IN -c:v libx264 out.mp4`");
  }
  throw Error(EV_ERROR_MEDIA, "media.no_picture")
      .found(path(), ": found ", has_audio ? "only audio" : "no picture", " in the file")
      .expected("a video or an image");
}

bool VideoSource::is_image() const {
  if (file_.header().kind != "container") return !file_.header().is_animated;
  return std::any_of(names_.begin(), names_.end(), [](const std::string& name) {
    return name.size() >= 5 && name.compare(name.size() - 5, 5, "_pipe") == 0;
  });
}

bool VideoSource::has_audio() const {
  return std::any_of(format_->streams, format_->streams + format_->nb_streams,
                     [](const AVStream* stream) { return stream->codecpar->codec_type == AVMEDIA_TYPE_AUDIO; });
}

std::optional<double> VideoSource::duration_s() const {
  const auto is_said = [](std::int64_t duration) { return duration != AV_NOPTS_VALUE && duration != 0; };
  if (is_said(stream_->duration) && stream_->time_base.num > 0) {
    return static_cast<double>(stream_->duration) * av_q2d(stream_->time_base);
  }
  if (!is_said(format_->duration)) return std::nullopt;
  return static_cast<double>(format_->duration) / AV_TIME_BASE;
}

Placement VideoSource::placement(const AVFrame& frame) const {
  return is_image() ? placement_of_exif(file_.header().orientation) : placement_of(frame, stream_);
}

bool VideoSource::seek(double start_s) {
  if (stream_->time_base.num <= 0 || !is_one_of(kSeekable)) return false;
  const double offset = start_s / av_q2d(stream_->time_base);
  if (!(offset < 9e18)) return false;
  const std::int64_t target = origin_ + static_cast<std::int64_t>(offset);
  if (av_seek_frame(format_.get(), stream_->index, target, AVSEEK_FLAG_BACKWARD) < 0) return false;
  avcodec_flush_buffers(codec_.get());
  return true;
}

std::optional<TimedFrame> VideoSource::next() {
  FramePointer frame = decode();
  if (is_one_of(kWithoutTimes)) return next_by_count(std::move(frame));
  if (is_one_of({"avi"})) return next_by_chunk(std::move(frame));
  if (frame == nullptr) {
    compare_with_stated_end();
    return std::nullopt;
  }
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

std::optional<TimedFrame> VideoSource::next_by_count(FramePointer frame) {
  if (frame == nullptr) return std::nullopt;
  if (num_frames_ == 0) {
    const AVRational guessed = av_guess_frame_rate(format_.get(), stream_, nullptr);
    rate_ = is_known(codec_->framerate) ? codec_->framerate : is_known(guessed) ? guessed : rate_;
  }
  const double time_s = static_cast<double>(num_frames_) * rate_.den / rate_.num;
  end_s_ = static_cast<double>(++num_frames_) * rate_.den / rate_.num;
  return TimedFrame{time_s, end_s_, std::move(frame)};
}

/// AVI has no timestamps: a frame's time is its chunk's number, and an empty chunk holds the last frame. Frames that
/// are shown in another order than they are stored take the times of the chunks in order.
std::optional<TimedFrame> VideoSource::next_by_chunk(FramePointer frame) {
  if (frame == nullptr) return std::nullopt;
  std::int64_t tick = num_frames_++;
  if (!chunks_.empty()) {
    tick = chunks_.front();
    chunks_.pop_front();
  }
  const double base = av_q2d(stream_->time_base);
  end_s_ = static_cast<double>(chunks_.empty() ? tick + 1 : chunks_.front()) * base;
  return TimedFrame{static_cast<double>(tick) * base, end_s_, std::move(frame)};
}

void VideoSource::compare_with_stated_end() {
  if (!is_one_of(kSeekable) || is_image()) return;
  double stated_s = 0;
  if (names_.count("mov") != 0) {
    if (stream_->duration > 0 && stream_->time_base.num > 0) {
      stated_s = static_cast<double>(stream_->duration) * av_q2d(stream_->time_base);
    }
  } else if (const std::string end = metadata(*stream_, "DURATION"); !end.empty()) {
    // When the track ends on the file's clock, while end_s_ counts from where the track begins.
    const double begin_s = stream_->time_base.num > 0 ? static_cast<double>(origin_) * av_q2d(stream_->time_base) : 0;
    stated_s = seconds_of_clock(end) - begin_s;
  }
  if (end_s_ >= stated_s * kStatedShare - kStatedSlack_s) return;
  ++num_damaged_;
  notices_.push_back(
      join_text("the file ends at ", two_places(end_s_), " s of ", two_places(stated_s), " s: it was cut short"));
}

void VideoSource::open_decoder() {
  const AVCodecID id = stream_->codecpar->codec_id;
  const AVCodec* decoder = avcodec_find_decoder(id);
  // FFmpeg's own decoders of VP8 and VP9 drop the transparency that a WebM has beside the picture.
  if (metadata(*stream_, "alpha_mode") == "1" && (id == AV_CODEC_ID_VP8 || id == AV_CODEC_ID_VP9)) {
    const AVCodec* whole = avcodec_find_decoder_by_name(id == AV_CODEC_ID_VP8 ? "libvpx" : "libvpx-vp9");
    if (whole == nullptr) notices_.emplace_back("this FFmpeg has no libvpx: transparency was dropped");
    if (whole != nullptr) decoder = whole;
  }
  codec_.reset(require_memory(avcodec_alloc_context3(decoder)));
  int code = avcodec_parameters_to_context(codec_.get(), stream_->codecpar);
  codec_->pkt_timebase = stream_->time_base;
  // Bounded, because every frame in flight is a whole picture in memory.
  codec_->thread_count = static_cast<int>(std::min(4u, std::max(1u, std::thread::hardware_concurrency())));
  codec_->thread_type = FF_THREAD_FRAME | FF_THREAD_SLICE;
  codec_->log_level_offset = kQuiet;
  codec_->max_pixels = kMaxSourceAreaPx;
  if (code >= 0) code = avcodec_open2(codec_.get(), decoder, nullptr);
  if (code < 0) fail_to_decode(file_, code);
}

FramePointer VideoSource::decode() {
  FramePointer frame(require_memory(av_frame_alloc()));
  while (true) {
    const int received = avcodec_receive_frame(codec_.get(), frame.get());
    if (received >= 0) {
      complete_colours(*frame);
      return frame;
    }
    if (received != AVERROR(EAGAIN) && received != AVERROR_EOF) ++num_damaged_;
    if (received == AVERROR_EOF || is_flushed_) return nullptr;
    send_packet();
  }
}

void VideoSource::complete_colours(AVFrame& frame) {
  const AVCodecID id = stream_->codecpar->codec_id;
  if (frame.color_range == AVCOL_RANGE_UNSPECIFIED && kLimitedUnlessSaid.count(id) != 0) {
    frame.color_range = AVCOL_RANGE_MPEG;
  }
  const AVFrameSideData* data = av_frame_get_side_data(&frame, AV_FRAME_DATA_ICC_PROFILE);
  if (data == nullptr || file_.header().kind == "container") return;
  const std::string profile = profile_of({reinterpret_cast<const char*>(data->data), data->size});
  if (profile == "other" && is_first_) {
    notices_.emplace_back("its colour profile is neither sRGB nor Display P3: colours were taken for sRGB's");
  }
  if (profile == "p3") {
    frame.color_primaries = AVCOL_PRI_SMPTE432;
    frame.color_trc = AVCOL_TRC_IEC61966_2_1;
  }
  is_first_ = false;
}

void VideoSource::send_packet() {
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
    // An empty packet holds the frame before.
    const bool is_empty = packet->size == 0 && packet->dts != AV_NOPTS_VALUE;
    if (is_ours && is_whole && !is_empty) {
      if (names_.count("avi") != 0 && packet->dts != AV_NOPTS_VALUE) chunks_.push_back(packet->dts);
      const int sent = avcodec_send_packet(codec_.get(), packet.get());
      if (sent < 0 && sent != AVERROR_EOF) ++num_damaged_;
      return;
    }
    av_packet_unref(packet.get());
  }
}

}  // namespace ev
