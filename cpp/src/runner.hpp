// What a backend is: it opens a bundle's graphs and runs them. The twin of editverse_rt/backends/base.py.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bundle.hpp"
#include "tensor.hpp"

namespace ev {

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

/// Runs the graphs of one bundle, one at a time; a graph is loaded when it is first run.
class Runner {
 public:
  virtual ~Runner() = default;

  /// Runs one graph. outputs: the wanted ones by name; those with data are written in place and must come out in
  /// their shape, the others are allocated, where the runner keeps its tensors. Throws EV_ERROR_BACKEND if the graph
  /// cannot be loaded or run.
  virtual void run(const std::string& graph, const NamedTensors& inputs, NamedTensors& outputs) = 0;

  /// A tensor that many runs take, where the runner keeps its tensors; itself if it is there.
  virtual Tensor hold(const Tensor& tensor) { return tensor; }

  /// Gives back what a graph holds, if it is loaded; it is loaded again when it is next run.
  virtual void release(const std::string& graph) = 0;

  /// Waits until what was run is computed.
  virtual void wait() {}

  /// Makes the run that is under way, in another thread, end as soon as it can with an error, and those that follow
  /// fail, until allow_runs is called.
  virtual void stop_runs() = 0;
  virtual void allow_runs() = 0;
};

/// Whether a backend can be used. reason: nothing if it can, else why not and what to do.
struct Availability {
  std::string name;
  std::optional<std::string> reason;
  std::string version;
};

/// A backend that was tried. runner: there unless the state has a reason.
struct Opened {
  Availability state;
  std::unique_ptr<Runner> runner;
};

/// The chosen backend, and why each one that is preferred over it was passed over.
struct Selection {
  Availability chosen;
  std::vector<Availability> passed_over;
  std::unique_ptr<Runner> runner;
};

/// What a caller decides about the GPU; see ev_options.
struct GpuOptions {
  std::optional<int> device;
  bool cuda_graphs = false;
  std::optional<std::int64_t> weight_budget_bytes;
  std::string plugin;  // "": none

  int index() const { return device.value_or(0); }
};

struct BackendOptions {
  std::string name = "auto";
  std::string onnxruntime;  // path of its shared library, "" to look for it
  std::string tensorrt;     // likewise
  bool allow_unverified = false;
  std::int32_t num_threads = 0;  // 0: one for each physical core
  GpuOptions gpu;
};

/// Opens the backend that was named, or for "auto" the first that is here. Throws EV_ERROR_BACKEND with reasons: an
/// unknown name, a named backend that is not available (there is no falling back from a named one), or none at all.
/// The bundle must outlive the runner.
Selection select_backend(const BackendOptions& options, const Bundle& bundle);

}  // namespace ev
