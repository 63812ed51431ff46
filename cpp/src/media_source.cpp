#include "media_source.hpp"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <thread>

#include "error.hpp"

namespace ev {

namespace fs = std::filesystem;

namespace {

constexpr std::int64_t kMaxSourceAreaPx = 1 << 27;

[[noreturn]] void fail_to_decode(const std::string& path, int code) {
  fail(EV_ERROR_MEDIA, path, ": no video or image that can be decoded (", reason_of(code),
       "); it may be cut short or of another type, make or convert it again");
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

}  // namespace

VideoSource::VideoSource(const std::string& path) : path_(path) {
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

bool VideoSource::is_image() const {
  const std::string name = format_->iformat->name;
  if (name == "gif") return stream_->nb_frames == 1;
  const AVDictionaryEntry* entry = av_dict_get(format_->metadata, "major_brand", nullptr, 0);
  const std::string brand = entry == nullptr ? "" : entry->value;
  const bool is_pipe = name.size() >= 5 && name.compare(name.size() - 5, 5, "_pipe") == 0;
  return is_pipe || name == "image2" || brand == "avif" || brand == "mif1" || brand == "heic";
}

std::optional<double> VideoSource::duration_s() const {
  if (stream_->duration > 0 && stream_->time_base.num > 0) {
    return static_cast<double>(stream_->duration) * av_q2d(stream_->time_base);
  }
  if (format_->duration > 0) return static_cast<double>(format_->duration) / AV_TIME_BASE;
  return std::nullopt;
}

bool VideoSource::seek(double start_s) {
  if (stream_->time_base.num <= 0) return false;
  const double offset = start_s / av_q2d(stream_->time_base);
  if (!(offset < 9e18)) return false;
  const std::int64_t target = origin_ + static_cast<std::int64_t>(offset);
  if (av_seek_frame(format_.get(), stream_->index, target, AVSEEK_FLAG_BACKWARD) < 0) return false;
  avcodec_flush_buffers(codec_.get());
  return true;
}

std::optional<TimedFrame> VideoSource::next() {
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

void VideoSource::open_decoder() {
  const AVCodec* decoder = avcodec_find_decoder(stream_->codecpar->codec_id);
  if (decoder == nullptr) fail_to_decode(path_, AVERROR_DECODER_NOT_FOUND);
  codec_.reset(require_memory(avcodec_alloc_context3(decoder)));
  int code = avcodec_parameters_to_context(codec_.get(), stream_->codecpar);
  codec_->pkt_timebase = stream_->time_base;
  // Bounded, because every frame in flight is a whole picture in memory.
  codec_->thread_count = static_cast<int>(std::min(4u, std::max(1u, std::thread::hardware_concurrency())));
  codec_->thread_type = FF_THREAD_FRAME | FF_THREAD_SLICE;
  codec_->log_level_offset = kQuiet;
  codec_->max_pixels = kMaxSourceAreaPx;
  if (code >= 0) code = avcodec_open2(codec_.get(), decoder, nullptr);
  if (code < 0) fail_to_decode(path_, code);
}

FramePointer VideoSource::decode() {
  FramePointer frame(require_memory(av_frame_alloc()));
  while (true) {
    const int received = avcodec_receive_frame(codec_.get(), frame.get());
    if (received >= 0) return frame;
    if (received != AVERROR(EAGAIN) && received != AVERROR_EOF) ++num_damaged_;
    if (received == AVERROR_EOF || is_flushed_) return nullptr;
    send_packet();
  }
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
    if (is_ours && is_whole) {
      const int sent = avcodec_send_packet(codec_.get(), packet.get());
      if (sent < 0 && sent != AVERROR_EOF) ++num_damaged_;
      return;
    }
    av_packet_unref(packet.get());
  }
}

}  // namespace ev
