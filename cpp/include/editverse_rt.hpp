// editverse_rt.hpp: the C interface of editverse_rt.h for C++17 and later: objects that free themselves, exceptions,
// std::span where the standard library has it. Header-only: it adds nothing to the binary interface.
//
//     editverse::Pipeline pipeline("bundles/nano");
//     editverse::Request request("<video1> Make it night");
//     request.add_path("video1", "in.mp4");
//     editverse::Result result = pipeline.run(request);
//     editverse::Frames frames = result.frames();
//
// Every function throws an Error on failure, of the class that its code names; what() is one line. Threads, lifetimes
// and ownership are those of editverse_rt.h; a moved-from object may be destroyed or assigned to, nothing else.
#ifndef EDITVERSE_RT_HPP
#define EDITVERSE_RT_HPP

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>
#if __has_include(<version>)
#include <version>
#endif
#ifdef __cpp_lib_span
#include <span>
#endif

#include "editverse_rt.h"

namespace editverse {

/// Base of all errors, and the error for a code that this header does not know.
class Error : public std::runtime_error {
 public:
  Error(int code, const std::string& text, const std::string& json = "")
      : std::runtime_error(text), code_(code), json_(std::make_shared<const std::string>(json)) {}
  int code() const noexcept { return code_; }

  /// The error as data: the JSON object of ev_last_error_json.
  const std::string& json() const noexcept { return *json_; }

 private:
  int code_;
  std::shared_ptr<const std::string> json_;  // shared, so that copying an exception cannot throw
};

class BundleError : public Error {
  using Error::Error;
};
class MediaError : public Error {
  using Error::Error;
};
class RequestError : public Error {
  using Error::Error;
};
class BackendError : public Error {
  using Error::Error;
};
class RequestCancelled : public Error {
  using Error::Error;
};
class ArgumentError : public Error {
  using Error::Error;
};

namespace detail {

/// Throws what a code stands for, with the text of the thread's last failure; std::bad_alloc for EV_ERROR_MEMORY.
inline void check(int code) {
  const auto text = [] { return std::string(ev_last_error()); };
  const auto json = [] { return std::string(ev_last_error_json()); };
  switch (code) {
    case EV_OK: return;
    case EV_ERROR_BUNDLE: throw BundleError(code, text(), json());
    case EV_ERROR_MEDIA: throw MediaError(code, text(), json());
    case EV_ERROR_REQUEST: throw RequestError(code, text(), json());
    case EV_ERROR_BACKEND: throw BackendError(code, text(), json());
    case EV_ERROR_CANCELLED: throw RequestCancelled(code, text(), json());
    case EV_ERROR_ARGUMENT: throw ArgumentError(code, text(), json());
    case EV_ERROR_MEMORY: throw std::bad_alloc();
    default: throw Error(code, text(), json());
  }
}

}  // namespace detail

/// How a bundle is opened; see ev_options.
struct Options {
  std::string bundle;
  std::string backend = "auto";
  std::string onnxruntime = {};         // "": looked for
  std::optional<int> num_threads = {};  // nothing: one for each physical core
  bool allow_unverified = false;        // of TensorRT plans
  std::string tensorrt = {};            // "": looked for
  bool release_graphs = false;          // after their last run in a request
  std::optional<int> device = {};       // nothing: the first GPU
  bool cuda_graphs = false;
  std::optional<std::int64_t> weight_budget_bytes = {};  // nothing: what fits
  std::string plugin = {};                               // "": none
};

/// Length and size of a clip.
struct ClipSize {
  int num_frames;
  int width_px;
  int height_px;
};

/// Frames in memory, 8-bit RGB. A view: what it shows must outlive it.
struct Frames {
  const std::uint8_t* data = nullptr;
  std::size_t num_bytes = 0;
  int num_frames = 1;
  int width_px = 0;
  int height_px = 0;
  std::size_t row_stride_bytes = 0;    // 0: rows follow one another
  std::size_t frame_stride_bytes = 0;  // 0: frames follow one another
  double fps = 0;                      // of a result
  const double* times_s = nullptr;     // of a result, num_frames + 1, where frames are not evenly spaced

#ifdef __cpp_lib_span
  std::span<const std::uint8_t> bytes() const { return {data, num_bytes}; }
#endif
};

/// A solver step that is done.
struct Step {
  int step;                 // counted from 0
  int num_inference_steps;  // of each window
  double timestep;          // from 0 (noise) to 1 (data)
  int window;               // counted from 0
  int num_windows;          // 0 where it is not known
};

/// The frames that a window of a request adds to its result; see ev_window. frames: for the call only.
struct Window {
  int window;          // counted from 0
  int num_windows;     // 0 where it is not known
  std::int64_t begin;  // the number in the result of the first frame
  Frames frames;       // without a rate
};

/// What to make; see ev_request. What is left empty follows from the bundle and the inputs.
struct Request {
  explicit Request(std::string instruction) : prompt(std::move(instruction)) {}

  /// name: "video1", "image1" ... Frames are a view: the pixels must outlive the calls that take the request.
  Request& add_frames(std::string name, const Frames& frames) {
    inputs.push_back({std::move(name), "", frames});
    return *this;
  }

#ifdef __cpp_lib_span
  /// size: frames without gaps between rows or frames.
  Request& add_frames(std::string name, std::span<const std::uint8_t> bytes, const ClipSize& size) {
    return add_frames(std::move(name),
                      Frames{bytes.data(), bytes.size(), size.num_frames, size.width_px, size.height_px});
  }
#endif

  /// A file; needs a library that was built with FFmpeg (ev_has_media).
  Request& add_path(std::string name, std::string path) {
    inputs.push_back({std::move(name), std::move(path), {}});
    return *this;
  }

  struct Input {
    std::string name;
    std::string path;
    Frames frames;
  };

  std::string prompt;
  std::vector<Input> inputs;
  std::optional<std::string> schedule;
  std::optional<int> num_inference_steps;
  std::optional<double> guidance_scale;
  std::int64_t seed = 0;
  std::optional<std::pair<int, int>> size_px;  // width, height
  std::optional<int> num_frames;
  std::optional<double> fps;
  double start_s = 0;

  /// Called after each step in the thread of run(); returns whether to go on. What it throws, run() throws.
  std::function<bool(const Step&)> on_step;

  std::optional<std::string> negative_prompt;  // for a bundle whose guidance takes one
  std::optional<double> strength;              // for a bundle that begins with a noised source

  /// "whole" edits a video of any length window by window, "cut" what one window holds.
  std::optional<std::string> length;

  /// Called after each window with its frames, which the result then lacks; as on_step.
  std::function<bool(const Window&)> on_window;
};

/// Refuses the name of a file that Result::save could not write, before anything is computed; see ev_check_target.
inline void check_target(const std::string& path, double fps = EV_DEFAULT) {
  detail::check(ev_check_target(path.c_str(), fps));
}

/// What a request comes to, before anything is computed; see ev_request_info. inputs: in the order of the request.
struct RequestInfo {
  ClipSize result;
  double fps;
  int num_inference_steps;
  int num_tokens;
  std::int64_t sequence_length;
  std::vector<ClipSize> inputs;
  int num_windows;  // 0 where it is not known
};

/// What a request gave. Does not depend on the pipeline. Move-only.
class Result {
 public:
  /// Takes ownership.
  explicit Result(ev_result* result) : result_(result) {}

  /// A view of the frames, valid as long as this result.
  Frames frames() const {
    ev_frames frames;
    ev_frames_init(&frames, sizeof frames);
    detail::check(ev_result_frames(result_.get(), &frames));
    return {frames.data, frames.num_bytes, frames.size.num_frames, frames.size.width_px, frames.size.height_px, 0,
            0,           frames.fps,       frames.times_s};
  }

  /// Writes the frames to a file, as the path's suffix says; see ev_result_save.
  void save(const std::string& path) const { detail::check(ev_result_save(result_.get(), path.c_str())); }

  /// Lines for the user, about what was cut or rounded.
  std::vector<std::string> notices() const {
    std::vector<std::string> lines;
    while (const char* line = ev_result_notice(result_.get(), lines.size())) lines.emplace_back(line);
    return lines;
  }

  ev_result* get() const noexcept { return result_.get(); }

 private:
  struct Free {
    void operator()(ev_result* result) const noexcept { ev_result_free(&result); }
  };
  std::unique_ptr<ev_result, Free> result_;
};

/// A bundle, opened on a backend. Move-only.
class Pipeline {
 public:
  /// folder: of a bundle.
  explicit Pipeline(const std::string& folder) : Pipeline(Options{folder}) {}

  explicit Pipeline(const Options& options) {
    ev_options given;
    ev_options_init(&given, sizeof given);
    given.bundle = options.bundle.c_str();
    given.backend = options.backend.c_str();
    given.onnxruntime = options.onnxruntime.empty() ? nullptr : options.onnxruntime.c_str();
    given.num_threads = options.num_threads.value_or(EV_DEFAULT);
    given.allow_unverified = options.allow_unverified ? 1 : 0;
    given.tensorrt = options.tensorrt.empty() ? nullptr : options.tensorrt.c_str();
    given.release_graphs = options.release_graphs ? 1 : 0;
    given.device = options.device.value_or(EV_DEFAULT);
    given.cuda_graphs = options.cuda_graphs ? 1 : 0;
    given.weight_budget_bytes = options.weight_budget_bytes.value_or(EV_DEFAULT);
    given.plugin = options.plugin.empty() ? nullptr : options.plugin.c_str();
    ev_pipeline* pipeline = nullptr;
    detail::check(ev_open(&pipeline, &given));
    pipeline_.reset(pipeline);
  }

  RequestInfo describe(const Request& request) {
    const Call call(request, nullptr);
    ev_request_info info;
    ev_request_info_init(&info, sizeof info);
    std::vector<ev_clip_size> sizes(request.inputs.size());
    detail::check(ev_describe_request(pipeline_.get(), &call.request, &info, sizes.data()));
    RequestInfo described{size_of(info.result), info.fps, info.num_inference_steps, info.num_tokens,
                          info.sequence_length, {},       info.num_windows};
    for (const ev_clip_size& size : sizes) described.inputs.push_back(size_of(size));
    return described;
  }

  Result run(const Request& request) {
    Watcher watcher{request, nullptr};
    const Call call(request, &watcher);
    ev_result* result = nullptr;
    const int code = ev_run(pipeline_.get(), &call.request, &result);
    if (watcher.thrown) std::rethrow_exception(watcher.thrown);
    detail::check(code);
    return Result(result);
  }

  /// Stops the request that runs now, if one does. Any thread, while the pipeline exists.
  void cancel() noexcept { ev_cancel(pipeline_.get()); }

  /// JSON: bundle, path, format_version, backend, backend_version, passed_over.
  std::string info() const { return ev_info(pipeline_.get()); }

  ev_pipeline* get() const noexcept { return pipeline_.get(); }

 private:
  struct Close {
    void operator()(ev_pipeline* pipeline) const noexcept { ev_close(&pipeline); }
  };

  /// Keeps what a callback throws, which must not pass through C.
  struct Watcher {
    const Request& request;
    std::exception_ptr thrown;

    static int on_step(void* user_data, const ev_step* step) {
      return static_cast<Watcher*>(user_data)->watch([&](const Request& request) {
        return request.on_step(
            {step->step, step->num_inference_steps, step->timestep, step->window, step->num_windows});
      });
    }

    static int on_window(void* user_data, const ev_window* window) {
      return static_cast<Watcher*>(user_data)->watch([&](const Request& request) {
        return request.on_window(
            {window->window, window->num_windows, window->begin,
             Frames{window->frames, window->num_bytes, window->num_frames, window->width_px, window->height_px}});
      });
    }

    template <typename Callback>
    int watch(const Callback& callback) noexcept {
      try {
        return callback(request) ? 0 : 1;
      } catch (...) {
        thrown = std::current_exception();
        return 1;
      }
    }
  };

  /// A request in the terms of the C interface.
  struct Call {
    Call(const Request& from, Watcher* watcher) : inputs(from.inputs.size()) {
      for (std::size_t i = 0; i < inputs.size(); ++i) {
        const Request::Input& input = from.inputs[i];
        ev_input_init(&inputs[i], sizeof inputs[i]);
        inputs[i].name = input.name.c_str();
        if (!input.path.empty()) {
          inputs[i].path = input.path.c_str();
          continue;
        }
        inputs[i].frames = input.frames.data;
        inputs[i].num_bytes = input.frames.num_bytes;
        inputs[i].num_frames = input.frames.num_frames;
        inputs[i].width_px = input.frames.width_px;
        inputs[i].height_px = input.frames.height_px;
        inputs[i].row_stride_bytes = input.frames.row_stride_bytes;
        inputs[i].frame_stride_bytes = input.frames.frame_stride_bytes;
      }
      ev_request_init(&request, sizeof request);
      request.prompt = from.prompt.c_str();
      request.inputs = inputs.empty() ? nullptr : inputs.data();
      request.num_inputs = inputs.size();
      request.schedule = from.schedule ? from.schedule->c_str() : nullptr;
      request.num_inference_steps = from.num_inference_steps.value_or(EV_DEFAULT);
      request.guidance_scale = from.guidance_scale.value_or(EV_DEFAULT);
      request.seed = from.seed;
      if (from.size_px) std::tie(request.width_px, request.height_px) = *from.size_px;
      request.num_frames = from.num_frames.value_or(EV_DEFAULT);
      request.fps = from.fps.value_or(EV_DEFAULT);
      request.start_s = from.start_s;
      request.strength = from.strength.value_or(EV_DEFAULT);
      request.negative_prompt = from.negative_prompt ? from.negative_prompt->c_str() : nullptr;
      request.length = from.length ? from.length->c_str() : nullptr;
      request.user_data = watcher;
      if (watcher != nullptr && from.on_step) request.callback = Watcher::on_step;
      if (watcher != nullptr && from.on_window) request.window_callback = Watcher::on_window;
    }

    std::vector<ev_input> inputs;
    ev_request request;
  };

  static ClipSize size_of(const ev_clip_size& size) { return {size.num_frames, size.width_px, size.height_px}; }

  std::unique_ptr<ev_pipeline, Close> pipeline_;
};

}  // namespace editverse

#endif  // EDITVERSE_RT_HPP
