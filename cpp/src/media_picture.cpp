#include "media_picture.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <vector>

#include "error.hpp"
#include "media_colour.hpp"

namespace ev {

namespace {

[[noreturn]] void fail_to_convert(const char* what, int code) {
  throw Error(EV_ERROR_MEDIA, "media.undecodable")
      .found("a picture cannot be ", what, " (", reason_of(code), ")")
      .hint("convert the file first");
}

constexpr int kHdLines = 720;
constexpr int kExact = SWS_ACCURATE_RND | SWS_BITEXACT | SWS_FULL_CHR_H_INT | SWS_FULL_CHR_H_INP;

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
  const bool is_left =
      chroma == AVCHROMA_LOC_LEFT || chroma == AVCHROMA_LOC_TOPLEFT || chroma == AVCHROMA_LOC_BOTTOMLEFT;
  const bool is_top = chroma == AVCHROMA_LOC_TOP || chroma == AVCHROMA_LOC_TOPLEFT;
  const bool is_bottom = chroma == AVCHROMA_LOC_BOTTOM || chroma == AVCHROMA_LOC_BOTTOMLEFT;
  const std::int64_t across = (1 << format->log2_chroma_w) - 1, down = (1 << format->log2_chroma_h) - 1;
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

std::size_t bytes_per_pixel(AVPixelFormat format) {
  if (format == AV_PIX_FMT_GRAY8) return 1;
  return format == AV_PIX_FMT_RGBA ? 4 : format == AV_PIX_FMT_RGB48 ? 6 : 3;
}

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
  if (code < 0) fail_to_convert("converted", code);
  int *from_table = nullptr, *to_table = nullptr, from_range = 0, to_range = 0;
  int brightness = 0, contrast = 0, saturation = 0;
  const int known = sws_getColorspaceDetails(scaler.get(), &from_table, &from_range, &to_table, &to_range, &brightness,
                                             &contrast, &saturation);
  // Nothing of a picture in RGB, which has no matrix.
  if (known >= 0) {
    sws_setColorspaceDetails(scaler.get(), sws_getCoefficients(from.colorspace), from_range, to_table, to_range,
                             brightness, contrast, saturation);
  }
  const std::size_t row_bytes = static_cast<std::size_t>(width) * bytes_per_pixel(format);
  Padded padded(row_bytes, static_cast<std::size_t>(height));
  std::uint8_t* const planes[4] = {padded.bytes.data(), nullptr, nullptr, nullptr};
  const int strides[4] = {static_cast<int>(padded.stride), 0, 0, 0};
  const int done = sws_scale(scaler.get(), from.data, from.strides, 0, from.height, planes, strides);
  if (done < 0) fail_to_convert("resized", done);
  for (std::size_t y = 0; y < static_cast<std::size_t>(height); ++y) {
    std::memcpy(to + y * row_bytes, padded.bytes.data() + y * padded.stride, row_bytes);
  }
}

/// A frame's pixels as they are stored, with the colours that it names.
Planes planes_of(const AVFrame& frame, bool is_image, int full_height) {
  const AVPixelFormat stored = static_cast<AVPixelFormat>(frame.format), plain = plain_format(stored);
  const bool is_unnamed_hd = frame.colorspace == AVCOL_SPC_UNSPECIFIED && full_height >= kHdLines && !is_image;
  Planes planes{frame.data, frame.linesize, frame.width, frame.height, plain};
  planes.chroma = frame.chroma_location;
  planes.colorspace = is_unnamed_hd ? AVCOL_SPC_BT709 : frame.colorspace;
  planes.is_full_range = frame.color_range == AVCOL_RANGE_JPEG || plain != stored;
  return planes;
}

/// Whether a frame has brightness alone, in the limited range, which swscale takes for the full one.
bool is_limited_grey(const AVFrame& frame) {
  const char* const name = av_get_pix_fmt_name(static_cast<AVPixelFormat>(frame.format));
  return name != nullptr && std::strncmp(name, "gray", 4) == 0 && frame.color_range == AVCOL_RANGE_MPEG;
}

std::uint8_t full_of_limited(int level) {
  // Floor division, as in Python.
  const int scaled = (level - 16) * 255 + 109;
  return static_cast<std::uint8_t>(std::clamp(scaled < 0 ? 0 : scaled / 219, 0, 255));
}

bool is_interlaced(const AVFrame& frame) {
#if LIBAVUTIL_VERSION_INT >= AV_VERSION_INT(58, 7, 100)
  return (frame.flags & AV_FRAME_FLAG_INTERLACED) != 0;
#else
  return frame.interlaced_frame != 0;
#endif
}

/// Every other line of a frame, from the first on, over the same memory.
FramePointer top_field(const AVFrame& frame) {
  FramePointer field(require_memory(av_frame_clone(&frame)));
  field->height = (frame.height + 1) / 2;
  for (int& linesize : field->linesize) linesize *= 2;
  field->chroma_location = AVCHROMA_LOC_UNSPECIFIED;
  return field;
}

/// A frame with transparency, laid over white.
std::vector<std::uint8_t> over_white(const AVFrame& frame, const Planes& planes) {
  const std::size_t num_pixels = static_cast<std::size_t>(frame.height) * static_cast<std::size_t>(frame.width);
  std::vector<std::uint8_t> rgba(num_pixels * 4), rgb(num_pixels * 3);
  scale(planes, AV_PIX_FMT_RGBA, frame.width, frame.height, SWS_BICUBIC, rgba.data());
  for (std::size_t i = 0; i < num_pixels; ++i) {
    const int alpha = rgba[4 * i + 3];
    for (std::size_t k = 0; k < 3; ++k) {
      rgb[3 * i + k] = static_cast<std::uint8_t>((rgba[4 * i + k] * alpha + 255 * (255 - alpha) + 127) / 255);
    }
  }
  return rgb;
}

/// 8-bit sRGB of that size, without gaps. Transparency is laid over white.
std::vector<std::uint8_t> rgb_of(const AVFrame& given, bool is_image, int height, int width) {
  const AVPixFmtDescriptor* format = av_pix_fmt_desc_get(static_cast<AVPixelFormat>(given.format));
  if (format == nullptr) {
    throw Error(EV_ERROR_MEDIA, "media.unsupported")
        .found("a picture of an unknown pixel format")
        .hint("convert the file first");
  }
  FramePointer field = is_interlaced(given) ? top_field(given) : nullptr;
  const AVFrame& frame = field ? *field : given;
  const std::optional<ColourMapping> mapping = find_colour_mapping(given.color_trc, given.color_primaries);
  Planes planes = planes_of(frame, is_image, given.height);
  const bool has_alpha = format->nb_components == 2 || format->nb_components == 4;
  std::vector<std::uint8_t> blended;
  Padded padded(0, 0);
  const std::uint8_t* data[4] = {};
  int strides[4] = {};
  if (has_alpha || (format->flags & AV_PIX_FMT_FLAG_PAL) != 0) {
    blended = over_white(frame, planes);
    const std::size_t row_bytes = static_cast<std::size_t>(frame.width) * 3;
    padded = Padded(row_bytes, static_cast<std::size_t>(frame.height));
    for (std::size_t y = 0; y < static_cast<std::size_t>(frame.height); ++y) {
      std::memcpy(padded.bytes.data() + y * padded.stride, blended.data() + y * row_bytes, row_bytes);
    }
    data[0] = padded.bytes.data();
    strides[0] = static_cast<int>(padded.stride);
    planes = {data, strides, frame.width, frame.height, AV_PIX_FMT_RGB24};
  }
  const std::size_t num_pixels = static_cast<std::size_t>(height) * static_cast<std::size_t>(width);
  std::vector<std::uint8_t> picture(num_pixels * 3);
  const int filter = filter_for(frame.height, frame.width, height, width);
  if (is_limited_grey(given)) {
    std::vector<std::uint8_t> grey(num_pixels);
    scale(planes, AV_PIX_FMT_GRAY8, width, height, filter, grey.data());
    for (std::size_t i = 0; i < num_pixels; ++i) std::memset(&picture[3 * i], full_of_limited(grey[i]), 3);
    return picture;
  }
  if (!mapping) {
    scale(planes, AV_PIX_FMT_RGB24, width, height, filter, picture.data());
    return picture;
  }
  std::vector<std::uint16_t> deep(num_pixels * 3);
  scale(planes, AV_PIX_FMT_RGB48, width, height, filter, reinterpret_cast<std::uint8_t*>(deep.data()));
  map_colours(deep.data(), num_pixels, *mapping, picture.data());
  return picture;
}

}  // namespace

Placement placement_of(const AVFrame& frame, AVStream* stream) {
  const std::uint8_t* matrix = nullptr;
  if (const AVFrameSideData* data = av_frame_get_side_data(&frame, AV_FRAME_DATA_DISPLAYMATRIX)) matrix = data->data;
#if LIBAVCODEC_VERSION_INT >= AV_VERSION_INT(60, 31, 102)
  if (matrix == nullptr) {
    const AVPacketSideData* data = av_packet_side_data_get(
        stream->codecpar->coded_side_data, stream->codecpar->nb_coded_side_data, AV_PKT_DATA_DISPLAYMATRIX);
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

Placement placement_of_exif(int orientation) {
  constexpr Placement kPlacements[] = {{false, false, false}, {false, true, false}, {false, true, true},
                                       {false, false, true},  {true, false, false}, {true, true, false},
                                       {true, true, true},    {true, false, true}};
  return kPlacements[orientation - 1];
}

std::vector<std::string> pixel_notices(const AVFrame& frame) {
  std::vector<std::string> notices;
  if (is_interlaced(frame)) {
    notices.emplace_back("the footage is interlaced: of each frame the upper field was taken");
  }
  const std::string_view range = dynamic_range_name(frame.color_trc);
  if (!range.empty()) {
    notices.push_back(join_text("the footage has high dynamic range (", range, "): it was mapped to standard range"));
  }
  return notices;
}

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

void convert_rgb(const AVFrame& rgb, AVFrame& to, int colorspace, bool is_full_range) {
  const auto format = static_cast<AVPixelFormat>(to.format);
  const ScalerPointer scaler(
      require_memory(sws_getContext(rgb.width, rgb.height, AV_PIX_FMT_RGB24, to.width, to.height, plain_format(format),
                                    kExact | SWS_BICUBIC, nullptr, nullptr, nullptr)));
  const int* const table = sws_getCoefficients(colorspace);
  // Of a format that is RGB itself there is nothing to set.
  (void)sws_setColorspaceDetails(scaler.get(), table, 1, table, is_full_range ? 1 : 0, 0, 1 << 16, 1 << 16);
  const int done = sws_scale(scaler.get(), rgb.data, rgb.linesize, 0, rgb.height, to.data, to.linesize);
  if (done < 0) {
    throw Error(EV_ERROR_MEDIA, "media.unwritable")
        .found("a picture cannot be converted (", reason_of(done), ")")
        .hint("write another type");
  }
}

void render(const AVFrame& frame, const Placement& place, bool is_image, int height, int width, char* target) {
  const int stored_height = place.transpose ? width : height, stored_width = place.transpose ? height : width;
  const std::vector<std::uint8_t> stored = rgb_of(frame, is_image, stored_height, stored_width);
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      const int shown_x = place.flip_x ? width - 1 - x : x, shown_y = place.flip_y ? height - 1 - y : y;
      const int row = place.transpose ? shown_x : shown_y, column = place.transpose ? shown_y : shown_x;
      const auto from =
          (static_cast<std::size_t>(row) * static_cast<std::size_t>(stored_width) + static_cast<std::size_t>(column)) *
          3;
      const auto to = (static_cast<std::size_t>(y) * static_cast<std::size_t>(width) + static_cast<std::size_t>(x)) * 3;
      std::memcpy(target + to, stored.data() + from, 3);
    }
  }
}

}  // namespace ev
