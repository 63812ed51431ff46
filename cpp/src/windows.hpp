// A request longer than the bundle's clips, as windows: consecutive frames that are read and edited one after another.
// The twin of editverse_rt/request/windows.py. Memory does not grow with the length of the video.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "inputs.hpp"

namespace ev {

/// Consecutive frames of a long request. index: counted from 0. begin: the number of its first frame in the result.
/// num_shared: how many frames at its front belong to the window before as well. num_frames: of the result, the shared
/// ones among them. footage: the clips as the model sees them; where a scene ends, its last frame is repeated up to a
/// length that the VAE takes.
struct Window {
  std::int64_t index = 0;
  std::int64_t begin = 0;
  std::int64_t num_shared = 0;
  std::int64_t num_frames = 0;
  Footage footage;
};

/// What the whole of a request is, known after its last window; see Footage.
struct WholeFootage {
  std::int64_t num_frames = 0;
  double fps = 0;
  std::vector<double> times_s;
  std::vector<std::string> notices;
};

/// The windows of a request, in order.
class Windows {
 public:
  virtual ~Windows() = default;
  /// The next window, nothing after the last. Throws EV_ERROR_MEDIA.
  virtual std::optional<Window> next() = 0;
  const WholeFootage& whole() const { return whole_; }

 protected:
  WholeFootage whole_;
};

/// Reads the inputs while the windows are asked for. examined must outlive it. check_stopped: called before each frame
/// of a file is decoded; what it throws ends the reading.
std::unique_ptr<Windows> read_windows(const ExaminedInputs& examined, std::function<void()> check_stopped);

}  // namespace ev
