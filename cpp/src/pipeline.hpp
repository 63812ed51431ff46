// The straight line from a request to frames: plan, read, encode, solve, decode. The twin of editverse_rt/pipeline.py.
// No arithmetic on pixels or latents happens here: graphs do it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "bundle.hpp"
#include "inputs.hpp"
#include "lifetime.hpp"
#include "runner.hpp"
#include "sequence.hpp"
#include "text.hpp"

namespace ev {

/// Called after a solver step with (step, num_inference_steps, timestep); returns whether to go on.
using StepCallback = std::function<bool(std::int64_t, std::int64_t, double)>;

struct Request {
  std::string prompt;
  std::vector<Source> sources;
  Wanted wanted;
  std::optional<std::string> schedule;
  std::optional<std::int64_t> num_inference_steps;
  std::optional<double> guidance_scale;
  std::int64_t seed = 0;
  StepCallback callback;
};

/// What a request came to, before any graph ran.
struct Plan {
  std::vector<Segment> segments;
  std::vector<std::int64_t> ids;
  std::map<std::string, std::vector<std::int64_t>> sources;  // [T, H, W, 3] of each input
  std::int64_t num_frames = 0;
  Size size;
  double fps = 0;
  Schedule schedule;
  Grid target;
  Layout layout;
  Layout layout_uncond;
};

/// frames: uint8 [T, H, W, 3] at fps. notices: lines for the user, about what was cut or rounded.
struct Result {
  Tensor frames;
  double fps = 0;
  std::vector<std::string> notices;
};

/// A bundle, opened on a backend. One request at a time: others wait.
class Pipeline {
 public:
  /// release_graphs: see ev_options. Throws EV_ERROR_BUNDLE, EV_ERROR_BACKEND.
  Pipeline(const std::string& folder, const BackendOptions& options, bool release_graphs = false);

  Plan plan(const Request& request);

  /// Throws EV_ERROR_REQUEST, EV_ERROR_MEDIA, EV_ERROR_BACKEND, and EV_ERROR_CANCELLED when stopped.
  Result run(const Request& request);

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
  struct Prepared;

  Prepared prepare(const Request& request);
  Plan lay_out_request(Prepared& prepared, const std::map<std::string, std::vector<std::int64_t>>& shapes) const;
  Grid grid(const std::vector<std::int64_t>& shape) const;
  void run_graph(const std::string& graph, const NamedTensors& inputs, NamedTensors& outputs);
  /// After a graph's last run in a request.
  void release(const std::string& graph);
  /// Throws EV_ERROR_CANCELLED if the pipeline was closed or the process is ending.
  void check_open() const;
  /// Throws EV_ERROR_CANCELLED if the request was stopped.
  void check_cancelled() const;

  Tensor encode_text(const Plan& plan);
  Tensor encode_clips(const Plan& plan, const std::map<std::string, Tensor>& clips);
  Tensor draw_noise(const Plan& plan, std::int64_t seed);
  Tensor solve(const Plan& plan, const Tensor& text, const Tensor& clean, const Tensor& noise,
               const StepCallback& callback);
  NamedTensors hold_context(const Layout& layout, const Tensor& text, const Tensor& clean);
  Tensor evaluate(NamedTensors inputs, const Tensor& noisy, double timestep);
  Tensor decode_patches(const Plan& plan, const Tensor& patches);
  NamedTensors cache_outputs(const std::string& graph) const;

  bool release_graphs_;
  Bundle bundle_;
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
