#include "memory_frames.hpp"

#include <algorithm>
#include <cstring>

#include "error.hpp"
#include "media.hpp"

namespace ev {

namespace {

const std::uint8_t* frame_at(const Source& source, std::int64_t index) {
  return source.data + static_cast<std::size_t>(index) * source.frame_stride_bytes;
}

/// Writes one frame without gaps, resized where it is of another size.
void copy_frame(const Source& source, std::int64_t index, std::int64_t height_px, std::int64_t width_px, char* target) {
  const std::uint8_t* from = frame_at(source, index);
  if (source.height_px != height_px || source.width_px != width_px) {
    resize_picture(source.name, {from, source.height_px, source.width_px, source.row_stride_bytes}, height_px, width_px,
                   target);
    return;
  }
  const std::size_t row_bytes = static_cast<std::size_t>(width_px) * 3;
  for (std::int64_t row = 0; row < height_px; ++row) {
    std::memcpy(target + static_cast<std::size_t>(row) * row_bytes,
                from + static_cast<std::size_t>(row) * source.row_stride_bytes, row_bytes);
  }
}

class MemoryReader final : public FrameReader {
 public:
  MemoryReader(const Source& source, double source_fps, double start_s, std::int64_t height_px, std::int64_t width_px)
      : FrameReader(height_px, width_px), source_(source), source_fps_(source_fps) {
    begin(start_s, std::nullopt, [&] { return source_fps; });
  }

 private:
  std::optional<Span> move_on() override {
    shown_ = next_;
    if (++next_ >= source_.num_frames) return std::nullopt;
    return Span{static_cast<double>(next_) / source_fps_, static_cast<double>(next_ + 1) / source_fps_};
  }

  void render(char* picture) override { copy_frame(source_, shown_, height_px(), width_px(), picture); }

  const Source& source_;
  double source_fps_;
  std::int64_t shown_ = -1;
  std::int64_t next_ = -1;
};

}  // namespace

Clip take_memory_frames(const Source& source, double source_fps, double start_s, std::int64_t num_frames,
                        std::int64_t height_px, std::int64_t width_px) {
  check_rate(source_fps);
  const std::size_t row_bytes = static_cast<std::size_t>(source.width_px) * 3;
  const bool is_packed = source.row_stride_bytes == row_bytes &&
                         source.frame_stride_bytes == row_bytes * static_cast<std::size_t>(source.height_px);
  const bool fits = source.height_px == height_px && source.width_px == width_px;
  // Nothing is taken twice from frames in memory, so what is taken is a run of them.
  TimeSampler sampler(start_s, std::nullopt, source_fps);
  std::int64_t begin = 0;
  while (begin < source.num_frames && sampler.count_slots(static_cast<double>(begin + 1) / source_fps, 1) == 0) {
    ++begin;
  }
  if (begin == source.num_frames) {
    throw start_error(source.name, start_s, static_cast<double>(source.num_frames) / source_fps);
  }
  const std::int64_t count = std::min(num_frames, source.num_frames - begin);
  Clip clip;
  clip.fps = source_fps;
  clip.covers_source = start_s <= 0 && begin + count == source.num_frames;
  clip.is_short = count < num_frames;
  if (fits && is_packed) {
    // Graphs read their inputs only; a tensor has no const.
    auto* const first = const_cast<std::uint8_t*>(frame_at(source, begin));
    clip.frames = Tensor{"uint8", {count, height_px, width_px, 3}, first};
    return clip;
  }
  clip.frames = make_unset_tensor("uint8", {count, height_px, width_px, 3});
  for (std::int64_t i = 0; i < count; ++i) {
    copy_frame(source, begin + i, height_px, width_px, slice_rows(clip.frames, i, 1).as<char>());
  }
  return clip;
}

std::unique_ptr<FrameReader> open_memory_frames(const Source& source, double source_fps, double start_s,
                                                std::int64_t height_px, std::int64_t width_px) {
  check_rate(source_fps);
  return std::make_unique<MemoryReader>(source, source_fps, start_s, height_px, width_px);
}

}  // namespace ev
