// What the files share that include FFmpeg: its objects as pointers that free them, and its errors as text.
#pragma once

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>
}

#include <array>
#include <memory>
#include <new>
#include <string>

namespace ev {

/// A codec's log_level_offset: what it has to say reaches the caller as errors, and would be noise on stderr. A level
/// above 255 would wrap around.
constexpr int kQuiet = 100;

template <auto free_it>
struct Freed {
  template <typename T>
  void operator()(T* pointer) const {
    free_it(&pointer);
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

inline std::string reason_of(int code) {
  std::array<char, AV_ERROR_MAX_STRING_SIZE> text{};
  av_strerror(code, text.data(), text.size());
  return text.data();
}

template <typename Pointer>
Pointer require_memory(Pointer pointer) {
  if (pointer == nullptr) throw std::bad_alloc();
  return pointer;
}

}  // namespace ev
