// The straight line from a request to frames: check, read, lay out, encode, solve, decode. The twin of
// editverse_rt/pipeline.py. No arithmetic on pixels or latents happens here: graphs do it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "bundle.hpp"
#include "checked.hpp"
#include "families/base.hpp"
#include "inputs.hpp"
#include "laid_out.hpp"
#include "lifetime.hpp"
#include "runner.hpp"
#include "stages.hpp"
#include "text.hpp"
#include "windows.hpp"

namespace ev {

/// A solver step that is done. step, window: counted from 0. num_windows: 0 where it is not known.
struct FinishedStep {
  std::int64_t step = 0;
  std::int64_t num_inference_steps = 0;
  double timestep = 0;
  std::int64_t window = 0;
  std::int64_t num_windows = 0;
};

/// The frames that a window of a request adds to its result, uint8 [T, H, W, 3]. begin: the number in the result of the
/// first. window, num_windows: as of FinishedStep.
struct FinishedWindow {
  std::int64_t window = 0;
  std::int64_t num_windows = 0;
  std::int64_t begin = 0;
  Tensor frames;
};

/// Called after a solver step or a window; returns whether to go on.
using StepCallback = std::function<bool(const FinishedStep&)>;
using WindowCallback = std::function<bool(const FinishedWindow&)>;

/// What a request comes to, before any graph of the model runs. laid_out: of its first window.
struct DescribedRequest {
  LaidOutRequest laid_out;
  std::int64_t num_tokens = 0;
  std::int64_t num_frames = 0;  // of the whole result; 0 where the video does not say
  std::optional<std::int64_t> num_windows;
};

/// frames: uint8 [T, H, W, 3] at fps; without data where they were given to a callback. notices: lines for the user,
/// about what was cut or rounded. times_s: when each frame begins, from 0 on, and when the last ends, in seconds;
/// nothing where frames are evenly spaced.
struct Result {
  Tensor frames;
  double fps = 0;
  std::vector<std::string> notices;
  std::vector<double> times_s;
};

/// A bundle, opened on a backend. One request at a time: others wait.
class Pipeline {
 public:
  /// release_graphs: see ev_options. Throws EV_ERROR_BUNDLE, EV_ERROR_BACKEND.
  Pipeline(const std::string& folder, const BackendOptions& options, bool release_graphs = false);

  /// Throws EV_ERROR_REQUEST, EV_ERROR_MEDIA, and EV_ERROR_BACKEND where the number of steps needs a graph that fails.
  DescribedRequest describe(const Request& request);

  /// Throws EV_ERROR_REQUEST, EV_ERROR_MEDIA, EV_ERROR_BACKEND, and EV_ERROR_CANCELLED when stopped. Both callbacks may
  /// be empty. on_window: takes the frames of each window; those of windows that are done are not kept then.
  Result run(const Request& request, const StepCallback& on_step, const WindowCallback& on_window = {});

  /// Stops the request that runs now, if one does. Any thread.
  void cancel();

  /// Stops the request that runs now, and those that wait for their turn. Any thread.
  void refuse_requests();

  /// Whether this thread runs a request on the pipeline: it is called from the request's callback.
  bool runs_in_this_thread() const { return holder_.load() == std::this_thread::get_id(); }

  /// JSON: bundle, path, format_version, backend, backend_version, passed_over.
  const std::string& info() const { return info_; }

 private:
  class Turn;

  Graphs graphs();
  /// Throws EV_ERROR_CANCELLED if the pipeline was closed or the process is ending.
  void check_open() const;
  /// Throws EV_ERROR_CANCELLED if the request was stopped.
  void check_cancelled() const;
  CheckedRequest check(const Request& request, const Graphs& graphs) const;
  /// Encodes, solves and decodes one window: all of its frames. before: the last frames of the result so far; no data
  /// for none.
  Tensor edit(const Graphs& graphs, const CheckedRequest& checked, Footage footage, const std::vector<Tensor>& texts,
              const Tensor& before, const std::function<void(std::int64_t, double)>& on_step_end) const;

  bool release_graphs_;
  Bundle bundle_;
  const Family& family_;
  Tokenizer tokenizer_;
  Selection selection_;
  std::string info_;

  std::mutex turn_;                      // held while a request runs
  std::atomic<std::thread::id> holder_;  // by which thread
  std::mutex state_;                     // guards what stands below
  bool running_ = false;
  std::atomic<bool> cancelled_{false};
  std::atomic<bool> closed_{false};
  StopAtExit stop_at_exit_{[this] { cancel(); }};
};

}  // namespace ev
