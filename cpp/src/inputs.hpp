// The videos and images of a request: what each is, how much of it is read, and what follows from it. The twin of
// editverse_rt/request/inputs.py.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "clip.hpp"
#include "media.hpp"
#include "sequence.hpp"
#include "spec.hpp"

namespace ev {

/// An input as the caller gave it: a path, or frames in memory (whose strides are set). data may be NULL where
/// nothing but its size is asked for.
struct Source {
  std::string name;
  std::string path;
  const std::uint8_t* data = nullptr;
  std::size_t num_bytes = 0;
  std::int64_t num_frames = 0;
  std::int64_t width_px = 0;
  std::int64_t height_px = 0;
  std::size_t row_stride_bytes = 0;
  std::size_t frame_stride_bytes = 0;

  bool is_path() const { return !path.empty(); }
};

/// What the caller wants of the result, where it does not follow from the inputs.
struct Wanted {
  std::optional<Size> size;
  std::optional<std::int64_t> num_frames;
  std::optional<double> fps;
  double start_s = 0;
};

/// The inputs of one request. The sources must outlive it.
class Inputs {
 public:
  /// Throws EV_ERROR_MEDIA for a source that cannot be read or is of another kind than its name says, and
  /// EV_ERROR_REQUEST for what does not fit the bundle.
  Inputs(const std::vector<Source>& sources, const Geometry& geometry, const Wanted& wanted);

  /// The frames uint8 [1 + r k, H, W, 3] of each input by name; adds what the user should know to notices. Settles
  /// num_frames and fps. Frames of the right size and without gaps are views of the caller's memory.
  /// check_stopped: called for each frame that is decoded; what it throws ends the reading.
  std::map<std::string, Tensor> read(std::vector<std::string>& notices, const std::function<void()>& check_stopped);

  /// What `read` would give, as far as it is known without decoding.
  std::map<std::string, std::vector<std::int64_t>> shapes();

  const Size& size() const { return size_; }
  std::int64_t num_frames() const { return num_frames_; }
  double fps() const { return fps_; }

 private:
  Clip read_source(const std::string& name, std::int64_t num_frames, std::optional<double> fps, double start_s,
                   const std::function<void()>& check_stopped) const;
  Clip take_frames(const Source& source, std::int64_t num_frames, double start_s) const;
  std::optional<double> rate_for(const std::string& name) const;
  std::string describe_cut(const std::string& name, std::int64_t kept, double fps) const;
  std::string length_rule() const;

  const Geometry& geometry_;
  Wanted wanted_;
  std::map<std::string, const Source*> sources_;
  std::map<std::string, std::shared_ptr<const InputFile>> files_;
  std::map<std::string, MediaInfo> media_;
  std::map<std::string, Size> sizes_;
  std::vector<std::string> names_;  // main first
  std::optional<std::string> main_;
  bool has_video_ = false;
  Size size_;
  std::int64_t num_frames_ = 0;
  double fps_ = 0;
};

}  // namespace ev
