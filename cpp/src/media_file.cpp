#include "media_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "error.hpp"

namespace ev {

namespace {

constexpr std::int64_t kMaxPictureBytes = 1 << 28;
constexpr int kBufferBytes = 1 << 17;

// Demuxers that read the one file they are given, as in media/libav.py. Playlists and lists of files (hls, concat,
// dash, imf, sdp, image2) are not among them, and libav checks the list before a demuxer reads its header.
constexpr const char* kDemuxers =
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,vvc,obu,av1,ivf,vc1,cavsvideo,dirac,"
    "flv,live_flv,kux,asf,asf_o,ogg,gif,apng,nut,mxf,yuv4mpegpipe,dv,rm,wtv,swf,mjpeg,mjpeg_2000,ico,png_pipe,jpeg_"
    "pipe,"
    "webp_pipe,bmp_pipe,tiff_pipe,gif_pipe,j2k_pipe,jpegls_pipe,jpegxl_pipe,jpegxl_anim,ppm_pipe,pgm_pipe,pbm_pipe,"
    "pam_pipe,pgmyuv_pipe,pcx_pipe,exr_pipe,dpx_pipe,psd_pipe,qoi_pipe,sunrast_pipe,sgi_pipe,hdr_pipe,pfm_pipe,aac,mp3,"
    "wav,flac,w64,aiff,caf,amr,au,ac3,eac3,dts";

int refuse_to_open(AVFormatContext*, AVIOContext**, const char*, int, AVDictionary**) { return AVERROR(EPERM); }

}  // namespace

InputFile::InputFile(const std::string& path) : path_(path) {
  // A pipe without a writer would make open() wait.
  handle_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  const int number = errno;
  try {
    if (handle_ < 0 && (number == EACCES || number == EPERM)) {
      throw Error(EV_ERROR_MEDIA, "media.permission")
          .found(path, ": no permission to read it")
          .expected("a readable file")
          .hint("change its permissions");
    }
    if (handle_ < 0 && (number == ENOENT || number == ENOTDIR || number == ENAMETOOLONG)) {
      throw Error(EV_ERROR_MEDIA, "media.not_found")
          .found(path, ": no such file")
          .expected("a video or an image")
          .hint("check the path");
    }
    if (handle_ < 0) {
      throw Error(EV_ERROR_MEDIA, "media.permission").found(path, ": cannot be opened (", std::strerror(number), ")");
    }
    struct stat facts = {};
    if (fstat(handle_, &facts) != 0 || !S_ISREG(facts.st_mode)) {
      throw Error(EV_ERROR_MEDIA, "media.not_a_file")
          .found(path, ": found a folder or a device")
          .expected("a video or image file");
    }
    num_bytes_ = facts.st_size;
    if (num_bytes_ == 0) {
      throw Error(EV_ERROR_MEDIA, "media.empty")
          .found(path, ": the file is empty")
          .expected("a video or an image")
          .hint("make it again");
    }
    check_header();
  } catch (...) {
    if (handle_ >= 0) close(handle_);
    throw;
  }
}

InputFile::~InputFile() { close(handle_); }

std::int64_t InputFile::read_at(std::int64_t offset, std::uint8_t* target, std::int64_t count) const {
  std::int64_t done = 0;
  while (done < count) {
    const ssize_t part = pread(handle_, target + done, static_cast<std::size_t>(count - done), offset + done);
    if (part < 0 && errno == EINTR) continue;
    if (part < 0) return -1;
    if (part == 0) break;
    done += part;
  }
  return done;
}

std::string InputFile::read_at(std::int64_t offset, std::int64_t count) const {
  std::string bytes(static_cast<std::size_t>(std::max<std::int64_t>(0, std::min(count, num_bytes_ - offset))), '\0');
  const auto wanted = static_cast<std::int64_t>(bytes.size());
  const std::int64_t done = read_at(offset, reinterpret_cast<std::uint8_t*>(bytes.data()), wanted);
  bytes.resize(static_cast<std::size_t>(std::max<std::int64_t>(done, 0)));
  return bytes;
}

void InputFile::check_header() {
  if (!is_picture_type(read_at(0, static_cast<std::int64_t>(kHeadBytes)))) return;
  if (num_bytes_ > kMaxPictureBytes) {
    throw Error(EV_ERROR_MEDIA, "media.too_large")
        .found(path_, ": found a picture of ", num_bytes_, " bytes")
        .expected(kMaxPictureBytes, " bytes or fewer")
        .hint("make it smaller first");
  }
  header_ = examine_file(read_at(0, num_bytes_));
  check_source_area(path_, header_.width_px, header_.height_px);
  if (header_.kind == "webp" && header_.is_animated) {
    throw Error(EV_ERROR_MEDIA, "media.unsupported")
        .found(path_, ": found an animated WebP")
        .expected("another type, which this library reads")
        .hint("convert it to GIF or MP4");
  }
  if (header_.is_assembled) {
    throw Error(EV_ERROR_MEDIA, "media.unsupported")
        .found(path_, ": found a HEIF picture of several parts, or with a turn, a cut or transparency")
        .expected("a plain one, which this library reads")
        .hint("convert it to PNG or JPEG");
  }
}

FileReader::FileReader(const InputFile& file) : file_(file) {
  auto* buffer = static_cast<unsigned char*>(require_memory(av_malloc(kBufferBytes)));
  context_ = avio_alloc_context(buffer, kBufferBytes, 0, this, read, nullptr, seek);
  if (context_ == nullptr) av_free(buffer);
  require_memory(context_);
}

FileReader::~FileReader() {
  // libav may have put another buffer in place of ours.
  av_freep(static_cast<void*>(&context_->buffer));
  avio_context_free(&context_);
}

int FileReader::read(void* reader, std::uint8_t* buffer, int count) {
  auto& self = *static_cast<FileReader*>(reader);
  const std::int64_t done = self.file_.read_at(self.place_, buffer, count);
  if (done < 0) return AVERROR(EIO);
  self.place_ += done;
  return done == 0 ? AVERROR_EOF : static_cast<int>(done);
}

std::int64_t FileReader::seek(void* reader, std::int64_t offset, int whence) {
  auto& self = *static_cast<FileReader*>(reader);
  const int from = whence & ~AVSEEK_FORCE;
  if (from == AVSEEK_SIZE) return self.file_.num_bytes();
  const std::int64_t base = from == SEEK_CUR ? self.place_ : from == SEEK_END ? self.file_.num_bytes() : 0;
  if (offset < -base || offset > INT64_MAX - base) return AVERROR(EINVAL);
  return self.place_ = base + offset;
}

void check_source_area(const std::string& path, std::int64_t width_px, std::int64_t height_px) {
  // Sides of 32 bits at most, so the product fits.
  if (width_px > 0 && height_px > 0 && width_px > kMaxSourceAreaPx / height_px) {
    throw Error(EV_ERROR_MEDIA, "media.too_large")
        .found(path, ": found frames of ", width_px, "x", height_px)
        .expected(kMaxSourceAreaPx, " pixels or fewer")
        .hint("make it smaller first");
  }
}

FormatPointer open_container(const InputFile& file, const FileReader& reader) {
  AVFormatContext* opened = require_memory(avformat_alloc_context());
  opened->pb = reader.context();
  opened->io_open = refuse_to_open;
  AVDictionary* options = nullptr;
  av_dict_set(&options, "format_whitelist", kDemuxers, 0);
  av_dict_set(&options, "protocol_whitelist", "none", 0);
  int code = avformat_open_input(&opened, nullptr, nullptr, &options);  // frees it on failure
  av_dict_free(&options);
  if (code < 0) fail_to_decode(file, code);
  FormatPointer format(opened);
  for (unsigned int i = 0; i < format->nb_streams; ++i) {
    const AVCodecParameters& known = *format->streams[i]->codecpar;
    if (known.codec_type == AVMEDIA_TYPE_VIDEO) check_source_area(file.path(), known.width, known.height);
  }
  // Frames are decoded here already where the container does not say their size.
  std::vector<AVDictionary*> limits(std::max(1U, format->nb_streams), nullptr);
  for (AVDictionary*& limit : limits) av_dict_set_int(&limit, "max_pixels", kMaxSourceAreaPx, 0);
  code = avformat_find_stream_info(format.get(), limits.data());
  for (AVDictionary*& limit : limits) av_dict_free(&limit);
  if (code < 0) fail_to_decode(file, code);
  return format;
}

void fail_to_decode(const InputFile& file, int code) {
  if (is_list(file.read_at(0, static_cast<std::int64_t>(kHeadBytes)))) {
    throw Error(EV_ERROR_MEDIA, "media.unsupported")
        .found(file.path(), ": found a list of other files")
        .expected("a video or an image")
        .hint("give one of those files");
  }
  if (file.header().kind == "heif") {
    throw Error(EV_ERROR_MEDIA, "media.undecodable")
        .found(file.path(), ": found a HEIF picture that this FFmpeg cannot decode (", reason_of(code), ")")
        .hint("convert it to PNG or JPEG");
  }
  throw Error(EV_ERROR_MEDIA, "media.undecodable")
      .found(file.path(), ": no video or image that can be decoded (", reason_of(code), ")")
      .hint("it may be cut short or of another type, make or convert it again");
}

}  // namespace ev
