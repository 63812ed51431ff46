// The videos and images of a request: what each is, how much of it is read, and what follows from it. The twin of
// editverse_rt/request/inputs.py. examine_inputs looks at the inputs and decides; read_inputs decodes.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "clip.hpp"
#include "error.hpp"
#include "media.hpp"
#include "request.hpp"
#include "sequence.hpp"
#include "spec.hpp"

namespace ev {

/// The inputs of one request before any frame is decoded. names: main first. files: those that are files, opened
/// once, so that what is decided here holds for what is read. media: what each says of itself. size: of the result.
/// sizes: what each input is resized to. num_frames: the most frames that the result may have, or a window of it.
/// total_frames: of a request that is done window by window the most frames of the whole, else nothing. fps: the
/// result's rate where no video sets it. The geometry and the request must outlive it.
struct ExaminedInputs {
  const Geometry* geometry;
  const Request* request;
  std::vector<std::string> names;
  std::map<std::string, const Source*> sources;
  std::map<std::string, std::shared_ptr<const InputFile>> files;
  std::map<std::string, MediaInfo> media;
  Size size;
  std::map<std::string, Size> sizes;
  std::int64_t num_frames = 0;
  double fps = 0;
  std::optional<std::int64_t> total_frames;

  /// The input that the result follows: the video of the lowest number, else the image; nothing without inputs.
  std::optional<std::string> main() const;
  bool has_video() const;

  /// The rate to sample a video at, nothing for frame by frame. result_fps: of the result, once main was read. Videos
  /// of main's own rate go frame by frame, as main does: on a variable frame rate, sampling by time would pair other
  /// frames of a mask with those of its video.
  std::optional<double> rate_for(const std::string& name, double result_fps) const;
};

/// The frames of a request's inputs, as the model sees them. clips: uint8 [1 + r k, H, W, 3] by name; those of the
/// right size and without gaps are views of the caller's memory. num_frames, fps: of the result. notices: lines for the
/// user, about what was cut. times_s: see Result.
struct Footage {
  std::map<std::string, Tensor> clips;
  std::int64_t num_frames = 0;
  double fps = 0;
  std::vector<std::string> notices;
  std::vector<double> times_s;
};

/// Looks at the inputs, and decides sizes and lengths. conditioning: the bundle's; outside of an interleaved sequence
/// every input has the size of the result, a reference picture the largest of its own shape inside it, and a picture
/// does not say how long the result is. Throws EV_ERROR_MEDIA for a source that cannot be read or is of another kind
/// than its name says, and EV_ERROR_REQUEST for what does not fit the bundle.
ExaminedInputs examine_inputs(const Request& request, const Geometry& geometry, const std::string& conditioning);

/// Decodes the frames of each input. check_stopped: called for each frame that is decoded; what it throws ends the
/// reading. Throws EV_ERROR_MEDIA.
Footage read_inputs(const ExaminedInputs& examined, const std::function<void()>& check_stopped);

/// The one frame of an image, uint8 [1, H, W, 3]; lines about it are added to notices. Throws EV_ERROR_MEDIA.
Tensor read_picture(const ExaminedInputs& examined, const std::string& name, std::vector<std::string>& notices,
                    const std::function<void()>& check_stopped);

/// Frames of the whole result, by what the main video says of itself; nothing where it does not say.
std::optional<std::int64_t> expect_num_frames(const ExaminedInputs& examined);

/// Frames of one video of a request that is done window by window; nothing where the video does not say.
std::optional<std::int64_t> expect_length(const ExaminedInputs& examined, const std::string& name);

/// In how many windows the request is done, by what its video says of itself and if it has one scene.
std::optional<std::int64_t> expect_num_windows(const ExaminedInputs& examined);

/// What read_inputs would give, or the first window, as far as it is known without decoding: clips have a shape and no
/// data.
Footage expect_footage(const ExaminedInputs& examined);

}  // namespace ev
