#include "windows.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "error.hpp"
#include "frame_reader.hpp"
#include "memory_frames.hpp"
#include "scenes.hpp"

namespace ev {

namespace {

/// Frames as a clip uint8 [count, H, W, 3] of a length that the VAE takes; the last one is repeated.
Tensor stack_padded(const std::vector<Tensor>& frames, std::int64_t count, const Geometry& geometry) {
  const std::int64_t padded = geometry.pad_frames(count);
  const std::vector<std::int64_t>& shape = frames.front().shape;
  Tensor clip = make_unset_tensor("uint8", {padded, shape[0], shape[1], shape[2]});
  const auto num_bytes = static_cast<std::size_t>(frames.front().num_elements());
  for (std::int64_t i = 0; i < padded; ++i) {
    const Tensor& frame = frames[static_cast<std::size_t>(std::min(i, count - 1))];
    std::memcpy(slice_rows(clip, i, 1).data, frame.data, num_bytes);
  }
  return clip;
}

template <typename T>
void drop_front(std::vector<T>& items, std::int64_t count) {
  items.erase(items.begin(), items.begin() + static_cast<std::ptrdiff_t>(count));
}

/// The videos of a request, read in step; pending frames are read and not yet dropped. The first video is the main one.
class Videos {
 public:
  Videos(const ExaminedInputs& examined, const std::function<void()>& check_stopped) : left_(*examined.total_frames) {
    for (const std::string& name : examined.names) {
      if (input_kind(name) == "video") videos_.push_back(open(examined, name, check_stopped));
    }
  }

  /// Reads until so many frames are pending, or the main video ends. Throws EV_ERROR_MEDIA.
  void fill(std::int64_t num_frames) {
    if (is_broken_) return;
    Video& main = videos_.front();
    const std::vector<Tensor> added = main.reader->take(std::min(left_, num_frames - num_pending()));
    left_ -= static_cast<std::int64_t>(added.size());
    if (left_ == 0) has_more_ = main.reader->has_more();
    if (!added.empty()) end_s_ = main.reader->end_s();
    for (const Tensor& frame : added) {
      const bool is_first = main.pending.empty();
      differences_.push_back(is_first ? std::nullopt : std::optional(frame_difference(frame, main.pending.back())));
      main.pending.push_back(frame);
    }
    const std::vector<double>& times_s = main.reader->times_s();
    std::vector<double> moments_s;
    for (; num_moments_ < times_s.size(); ++num_moments_) moments_s.push_back(times_s[num_moments_] - times_s.front());
    for (std::size_t i = 1; i < videos_.size(); ++i) {
      if (videos_[i].follows) videos_[i].reader->add_moments(moments_s);
      follow(videos_[i], added.size());
    }
  }

  /// A video broke off: what all videos have is what there is.
  void end_here() {
    is_broken_ = true;
    std::size_t count = differences_.size();
    for (const Video& video : videos_) count = std::min(count, video.pending.size());
    for (Video& video : videos_) video.pending.resize(count);
    differences_.resize(count);
  }

  /// How many of the pending frames belong to one scene and fit into a window. shared: of those at the front, how many
  /// belong to the window before.
  std::int64_t scene_length(std::int64_t shared, std::int64_t most) const {
    const std::int64_t count = std::min(num_pending(), most);
    for (std::int64_t i = std::max<std::int64_t>(1, shared); i < count; ++i) {
      const std::int64_t num_values = videos_.front().pending.front().num_elements();
      if (is_scene_cut(differences_, static_cast<std::size_t>(i), num_values)) return i;
    }
    return count;
  }

  /// The first frames of each video as clips.
  std::map<std::string, Tensor> clips(std::int64_t count, const Geometry& geometry) const {
    std::map<std::string, Tensor> made;
    for (const Video& video : videos_) made[video.name] = stack_padded(video.pending, count, geometry);
    return made;
  }

  /// Forgets frames at the front.
  void drop(std::int64_t num_frames) {
    for (Video& video : videos_) drop_front(video.pending, num_frames);
    drop_front(differences_, num_frames);
  }

  /// When the last frame of the main video that was taken ends; where none was, when it ended.
  double end_s() const { return videos_.front().reader->end_s(); }

  std::int64_t num_pending() const { return static_cast<std::int64_t>(videos_.front().pending.size()); }

  /// What the whole of the videos says, after their last frame.
  void finish(const ExaminedInputs& examined, WholeFootage& whole) const {
    const Video& main = videos_.front();
    whole.fps = main.reader->fps();
    if (!examined.request->fps) {
      const auto begin = main.reader->times_s().begin();
      whole.times_s = uneven_times_s({begin, begin + static_cast<std::ptrdiff_t>(whole.num_frames)}, end_s_);
    }
    for (const Video& video : videos_) {
      for (const std::string& line : video.reader->notices()) {
        whole.notices.push_back(join_text(video.name, ": ", line));
      }
      if (video.reader->num_damaged() > 0) {
        whole.notices.push_back(join_text(video.name, ": ", video.reader->num_damaged(),
                                          " packets or frames are damaged; some were skipped"));
      }
    }
    const std::optional<std::int64_t> asked = examined.request->num_frames;
    if (asked && whole.num_frames < *asked) {
      whole.notices.push_back(
          join_text(main.name, ": ends after ", whole.num_frames, " frames; num_frames is ", *asked));
    }
    for (const auto& [name, count] : held_from_) {
      whole.notices.push_back(join_text(name, ": ends after ", count, " frames; its last one was held to the end"));
    }
    const bool is_all = examined.request->start_s == 0 && !has_more_ && !is_broken_;
    if (is_all && examined.media.at(main.name).has_audio) {
      whole.notices.push_back(join_text(main.name, ": its audio was left out: this library writes none"));
    }
  }

 private:
  struct Video {
    std::string name;
    std::unique_ptr<FrameReader> reader;
    bool follows;  // it is sampled at the times of the main video's frames
    std::vector<Tensor> pending;
  };

  static Video open(const ExaminedInputs& examined, const std::string& name,
                    const std::function<void()>& check_stopped) {
    const auto [height, width] = examined.sizes.at(name);
    const Request& request = *examined.request;
    const Source& source = *examined.sources.at(name);
    if (!source.is_path()) {
      const double source_fps = examined.media.at(name).fps.value_or(1.0);
      return {name, open_memory_frames(source, source_fps, request.start_s, height, width), false, {}};
    }
    const double main_fps = examined.media.at(examined.names.front()).fps.value_or(examined.fps);
    const std::optional<double> rate = examined.rate_for(name, main_fps);
    auto reader = open_frames(*examined.files.at(name), request.start_s, rate, height, width, check_stopped);
    return {name, std::move(reader), rate && !request.fps, {}};
  }

  /// As many frames of another video; its last one is held where it ends first.
  void follow(Video& video, std::size_t count) {
    std::vector<Tensor> frames = video.reader->take(static_cast<std::int64_t>(count));
    if (frames.size() < count) {
      if (frames.empty() && video.pending.empty()) {
        throw Error(EV_ERROR_MEDIA, "media.undecodable").found(video.name, ": found no frame").expected("at least one");
      }
      const auto is_this = [&](const auto& held) { return held.first == video.name; };
      if (std::none_of(held_from_.begin(), held_from_.end(), is_this)) {
        held_from_.emplace_back(video.name, video.reader->times_s().size());
      }
      const Tensor last = frames.empty() ? video.pending.back() : frames.back();
      frames.resize(count, last);
    }
    video.pending.insert(video.pending.end(), frames.begin(), frames.end());
  }

  std::vector<Video> videos_;
  std::int64_t left_;                                     // frames of the main video that may still be taken
  std::vector<std::optional<std::int64_t>> differences_;  // of the main video's pending frames
  std::size_t num_moments_ = 0;
  std::vector<std::pair<std::string, std::size_t>> held_from_;
  double end_s_ = 0;
  bool has_more_ = false;
  bool is_broken_ = false;
};

/// A request that one window holds.
class OneWindow final : public Windows {
 public:
  OneWindow(const ExaminedInputs& examined, std::function<void()> check_stopped)
      : examined_(examined), check_stopped_(std::move(check_stopped)) {}

  std::optional<Window> next() override {
    if (is_read_) return std::nullopt;
    is_read_ = true;
    Footage footage = read_inputs(examined_, check_stopped_);
    whole_ = {footage.num_frames, footage.fps, footage.times_s, footage.notices};
    return Window{0, 0, 0, footage.num_frames, std::move(footage)};
  }

 private:
  const ExaminedInputs& examined_;
  std::function<void()> check_stopped_;
  bool is_read_ = false;
};

/// What the windows of a longer request share.
class LongWindows : public Windows {
 public:
  LongWindows(const ExaminedInputs& examined, std::function<void()> check_stopped)
      : examined_(examined), check_stopped_(std::move(check_stopped)) {
    whole_.fps = examined.fps;
  }

  std::optional<Window> next() override {
    if (is_done_) return std::nullopt;
    if (index_ == 0) read_pictures();
    return next_window();
  }

 protected:
  virtual std::optional<Window> next_window() = 0;

  const Geometry& geometry() const { return *examined_.geometry; }
  const ExaminedInputs& examined() const { return examined_; }
  const std::function<void()>& check_stopped() const { return check_stopped_; }
  std::int64_t index() const { return index_; }
  void end() { is_done_ = true; }

  Window make_window(std::int64_t begin, std::int64_t shared, std::int64_t num_frames,
                     std::map<std::string, Tensor> clips) {
    clips.insert(pictures_.begin(), pictures_.end());
    whole_.num_frames = begin + num_frames;
    return {
        index_++, begin, shared, num_frames, {std::move(clips), geometry().pad_frames(num_frames), whole_.fps, {}, {}}};
  }

 private:
  void read_pictures() {
    for (const std::string& name : examined_.names) {
      if (input_kind(name) != "image") continue;
      pictures_[name] = read_picture(examined_, name, whole_.notices, check_stopped_);
    }
  }

  const ExaminedInputs& examined_;
  std::function<void()> check_stopped_;
  std::map<std::string, Tensor> pictures_;
  std::int64_t index_ = 0;
  bool is_done_ = false;
};

/// Windows of a result that follows no video.
class WindowsOfNothing final : public LongWindows {
 public:
  using LongWindows::LongWindows;

 private:
  std::optional<Window> next_window() override {
    const std::int64_t total = *examined().total_frames;
    const std::int64_t shared = index() == 0 ? 0 : geometry().shared_frames;
    const std::int64_t begin = whole_.num_frames - shared;
    const std::int64_t num_frames = std::min(geometry().max_frames, total - begin);
    if (begin + num_frames == total) end();
    return make_window(begin, shared, num_frames, {});
  }
};

/// Windows that follow a video.
class WindowsOfVideos final : public LongWindows {
 public:
  using LongWindows::LongWindows;

 private:
  std::optional<Window> next_window() override {
    if (!videos_) videos_.emplace(examined(), check_stopped());
    videos_->drop(num_done_);
    while (true) {
      fill(geometry().max_frames + 1);
      const std::int64_t length = videos_->scene_length(shared_, geometry().max_frames);
      if (length > shared_) return window_of(length);
      // A scene begins with the first new frame, or there is none.
      begin_ += shared_;
      shared_ = 0;
      videos_->drop(length);
      if (videos_->num_pending() == 0) break;
    }
    end();
    if (index() == 0) throw start_error(examined().names.front(), examined().request->start_s, videos_->end_s());
    videos_->finish(examined(), whole_);
    videos_.reset();
    return std::nullopt;
  }

  Window window_of(std::int64_t length) {
    Window window = make_window(begin_, shared_, length, videos_->clips(length, geometry()));
    // Of a scene that is shorter than what windows share, all of it.
    shared_ = std::min(geometry().shared_frames, length);
    begin_ = whole_.num_frames - shared_;
    num_done_ = length - shared_;
    return window;
  }

  /// Reads on; a video that breaks off after its first window ends there, and the user is told.
  void fill(std::int64_t num_frames) {
    try {
      videos_->fill(num_frames);
    } catch (const Error& error) {
      if (error.code() != EV_ERROR_MEDIA || index() == 0) throw;
      videos_->end_here();
      whole_.notices.push_back(join_text(error.what(), "; the result ends where the video does"));
    }
  }

  std::optional<Videos> videos_;
  std::int64_t begin_ = 0;
  std::int64_t shared_ = 0;
  std::int64_t num_done_ = 0;  // frames at the front of the pending ones that no further window has
};

}  // namespace

std::unique_ptr<Windows> read_windows(const ExaminedInputs& examined, std::function<void()> check_stopped) {
  if (!examined.total_frames) return std::make_unique<OneWindow>(examined, std::move(check_stopped));
  if (examined.has_video()) return std::make_unique<WindowsOfVideos>(examined, std::move(check_stopped));
  return std::make_unique<WindowsOfNothing>(examined, std::move(check_stopped));
}

}  // namespace ev
