// Reading and writing of files, and resizing: FFmpeg. Without EDITVERSE_FFMPEG media_absent.cpp stands in. The twin of
// editverse_rt/media/.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "clip.hpp"
#include "frame_reader.hpp"

namespace ev {

/// Whether this build has FFmpeg.
bool has_media();

class InputFile;

/// Opens a file once, so that what probe_file says of it holds for what read_clip reads of it. Throws EV_ERROR_MEDIA if
/// there is none, or if its header says that it is too large.
std::shared_ptr<const InputFile> open_file(const std::string& path);

/// Says what a file holds, after decoding its first frame. Throws EV_ERROR_MEDIA.
MediaInfo probe_file(const InputFile& file);

/// Takes up to num_frames frames of a video from start_s on, or the one of an image, upright and resized. With fps
/// they are chosen by their timestamps, without every frame is taken. moments_s: see TimeSampler. check_stopped: called
/// for each frame that is decoded, if given; what it throws ends the reading. Throws EV_ERROR_MEDIA.
Clip read_clip(const InputFile& file, double start_s, std::int64_t num_frames, std::optional<double> fps,
               std::int64_t height_px, std::int64_t width_px, const std::function<void()>& check_stopped = {},
               const std::vector<double>& moments_s = {});

/// The frames of a video that read_clip would take with no limit, a few at a time. It is decoded from the beginning,
/// whatever start_s is. The file must outlive it. check_stopped: called before each
/// frame is decoded; what it throws ends the reading. Throws EV_ERROR_MEDIA.
std::unique_ptr<FrameReader> open_frames(const InputFile& file, double start_s, std::optional<double> fps,
                                         std::int64_t height_px, std::int64_t width_px,
                                         std::function<void()> check_stopped);

/// A picture in memory: 8-bit RGB, rows row_stride_bytes apart.
struct Picture {
  const std::uint8_t* data;
  std::int64_t height_px;
  std::int64_t width_px;
  std::size_t row_stride_bytes;
};

/// Resizes a picture into `target` [height_px, width_px, 3] without gaps. name: the input, for the error's sake.
/// Throws EV_ERROR_MEDIA.
void resize_picture(const std::string& name, const Picture& source, std::int64_t height_px, std::int64_t width_px,
                    char* target);

/// Refuses a name that could not be written, before anything is computed. fps: the rate that was asked for, nothing for
/// the source's. Throws EV_ERROR_MEDIA. See check_target in targets.py.
void check_target(const std::string& path, std::optional<double> fps);

/// Writes frames uint8 [T, H, W, 3] whole or not at all; the path's suffix says how, see ev_result_save. times_s: T + 1
/// numbers, when each frame begins, from 0 on, and when the last ends; none where they are evenly spaced. Throws
/// EV_ERROR_MEDIA.
void write_clip(const std::string& path, const Tensor& frames, double fps, const std::vector<double>& times_s = {});

}  // namespace ev
