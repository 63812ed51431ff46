// The straight line from a request to frames: check, read, lay out, encode, solve, decode. The twin of
// editverse_rt/pipeline.py. No arithmetic on pixels or latents happens here: graphs do it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
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

namespace ev {

/// Called after a solver step with (step, num_inference_steps, timestep); returns whether to go on.
using StepCallback = std::function<bool(std::int64_t, std::int64_t, double)>;

/// What a request comes to, before any graph of the model runs.
struct DescribedRequest {
  LaidOutRequest laid_out;
  std::int64_t num_tokens = 0;
};

/// frames: uint8 [T, H, W, 3] at fps. notices: lines for the user, about what was cut or rounded. times_s: when each
/// frame begins, from 0 on, and when the last ends, in seconds; nothing where frames are evenly spaced.
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

  /// Throws EV_ERROR_REQUEST, EV_ERROR_MEDIA, EV_ERROR_BACKEND, and EV_ERROR_CANCELLED when stopped. callback: may be
  /// empty.
  Result run(const Request& request, const StepCallback& callback);

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
