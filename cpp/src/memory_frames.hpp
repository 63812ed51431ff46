// Frames that a caller has in memory, as clips: sampled, resized and copied as those of files are.
#pragma once

#include <cstdint>
#include <memory>

#include "clip.hpp"
#include "frame_reader.hpp"
#include "request.hpp"

namespace ev {

/// Up to num_frames frames from start_s on. Those of the right size and without gaps are a view of the caller's memory.
/// source_fps: by which their times are told. Throws EV_ERROR_MEDIA if start_s lies beyond the end.
Clip take_memory_frames(const Source& source, double source_fps, double start_s, std::int64_t num_frames,
                        std::int64_t height_px, std::int64_t width_px);

/// The frames that take_memory_frames would take with no limit, a few at a time. The source must outlive it. Throws
/// EV_ERROR_MEDIA.
std::unique_ptr<FrameReader> open_memory_frames(const Source& source, double source_fps, double start_s,
                                                std::int64_t height_px, std::int64_t width_px);

}  // namespace ev
