#include "trt.hpp"

#include <algorithm>
#include <atomic>

#include "cuda.hpp"
#include "engine.hpp"
#include "error.hpp"
#include "ort.hpp"
#include "trt_library.hpp"

namespace ev {

namespace {

// It needs 64-bit shifts, which TensorRT does not have; it is drawn once a request, on the CPU.
constexpr const char* kHostGraph = "noise";

std::unique_ptr<TrtLibrary> open_library(const std::string& name, const std::string& path) {
#if EDITVERSE_HAS_TENSORRT
  if (name == "tensorrt") return open_tensorrt(path);
#endif
#if EDITVERSE_HAS_TENSORRT_RTX
  if (name == "tensorrt-rtx") return open_tensorrt_rtx(path);
#endif
  fail(EV_ERROR_BACKEND, "this library was built without the headers of ", name, "; build it with -D",
       name == "tensorrt" ? "TENSORRT" : "TENSORRT_RTX", "_INCLUDE_DIR=FOLDER");
}

/// A plan that was loaded, and the profile that it is set to.
struct Loaded {
  std::unique_ptr<TrtPlan> plan;
  std::size_t profile = SIZE_MAX;
};

/// All plans share one buffer for what they hold while they run: they run one after another.
class TrtRunner final : public Runner {
 public:
  TrtRunner(const Bundle& bundle, std::shared_ptr<Cuda> cuda, std::unique_ptr<TrtLibrary> library, ChosenPlans chosen,
            std::unique_ptr<Runner> host)
      : bundle_(bundle),
        cuda_(std::move(cuda)),
        pool_(std::make_shared<DevicePool>(cuda_)),
        library_(std::move(library)),
        chosen_(std::move(chosen)),
        host_(std::move(host)) {}

  ~TrtRunner() override {
    try {
      const Cuda::Current current(*cuda_);
      cuda_->synchronize();
      loaded_.clear();
    } catch (const Error&) {
      // A GPU that failed; what is left goes with its context.
    }
  }

  void run(const std::string& graph, const NamedTensors& inputs, NamedTensors& outputs) override {
    if (graph == kHostGraph) return host_->run(graph, inputs, outputs);
    if (stopped_) fail(EV_ERROR_BACKEND, "graph \"", graph, "\" was stopped");
    const Cuda::Current current(*cuda_);
    const GraphSpec& spec = *bundle_.spec.find_graph(graph);
    Shapes shapes;
    for (const auto& [name, tensor] : inputs) shapes[name] = tensor.shape;
    const Shapes results = output_shapes(spec, shapes);
    Loaded& loaded = load(graph);
    try {
      set_shapes(loaded, chosen_.plans.at(graph), shapes);
      // Held until the work is asked for: the stream's order protects their buffers from there on.
      NamedTensors held;
      for (const TensorSpec& tensor : spec.inputs) {
        held.emplace_back(tensor.name, place(find_tensor(inputs, tensor.name)));
      }
      for (const TensorSpec& tensor : spec.outputs) {
        held.emplace_back(tensor.name, make_device_tensor(tensor.dtype, results.at(tensor.name)));
      }
      for (const auto& [name, tensor] : held) loaded.plan->set_address(name, address_of(tensor));
      lend_scratch(*loaded.plan);
      loaded.plan->enqueue(cuda_->stream());
      for (auto& [name, tensor] : outputs) take_output(find_tensor(held, name), tensor);
    } catch (const Error& error) {
      fail(error.code(), "graph \"", graph, "\": ", error.what());
    }
  }

  void stop_runs() override {
    stopped_ = true;
    host_->stop_runs();
  }

  void allow_runs() override {
    stopped_ = false;
    host_->allow_runs();
  }

  Tensor hold(const Tensor& tensor) override {
    const Cuda::Current current(*cuda_);
    return place(tensor);
  }

  Tensor to_host(const Tensor& tensor) override {
    if (!tensor.on_device) return tensor;
    const Cuda::Current current(*cuda_);
    Tensor host = make_unset_tensor(tensor.dtype, tensor.shape);
    download(tensor, host);
    return host;
  }

  void wait() override {
    const Cuda::Current current(*cuda_);
    cuda_->synchronize();
  }

 private:
  static DeviceAddress address_of(const Tensor& tensor) { return reinterpret_cast<DeviceAddress>(tensor.data); }

  static std::size_t num_bytes_of(const Tensor& tensor) {
    return static_cast<std::size_t>(tensor.num_elements()) * dtype_bytes(tensor.dtype);
  }

  static const Tensor& find_tensor(const NamedTensors& tensors, const std::string& name) {
    const auto is_named = [&](const auto& entry) { return entry.first == name; };
    const auto found = std::find_if(tensors.begin(), tensors.end(), is_named);
    if (found == tensors.end()) fail(EV_ERROR_BACKEND, "it has no tensor ", name, "; ", "export the bundle again");
    return found->second;
  }

  Loaded& load(const std::string& graph) {
    const auto found = loaded_.find(graph);
    if (found != loaded_.end()) return found->second;
    const PlanSpec& plan = chosen_.plans.at(graph);
    const MappedFile bytes = map_plan_file(chosen_.engines, plan);
    try {
      return loaded_[graph] = {library_->load_plan(bytes.data(), bytes.size(), plan.weight_streaming), SIZE_MAX};
    } catch (const Error& error) {
      loaded_.erase(graph);
      fail(EV_ERROR_BACKEND, (chosen_.engines.folder / plan.file).string(), " cannot be read by ",
           chosen_.engines.backend, " ", library_->version(), ": ", error.what(), "; build the engines again");
    }
  }

  void set_shapes(Loaded& loaded, const PlanSpec& plan, const Shapes& shapes) {
    const std::size_t profile = choose_profile(plan, shapes);
    if (loaded.profile != profile) {
      loaded.profile = SIZE_MAX;
      loaded.plan->set_profile(profile, cuda_->stream());
      loaded.profile = profile;
    }
    for (const auto& [name, range] : plan.profiles[profile].shapes) loaded.plan->set_input_shape(name, shapes.at(name));
  }

  Tensor make_device_tensor(const std::string& dtype, const Shape& shape) {
    Tensor tensor{dtype, shape};
    tensor.owner = pool_->take(count_bytes({"", dtype, {}}, shape));
    tensor.data = tensor.owner.get();
    tensor.on_device = true;
    return tensor;
  }

  /// The tensor on the GPU; itself if it is there.
  Tensor place(const Tensor& tensor) {
    if (tensor.on_device) return tensor;
    Tensor placed = make_device_tensor(tensor.dtype, tensor.shape);
    if (const std::size_t num_bytes = num_bytes_of(tensor)) {
      cuda_->upload(address_of(placed), tensor.data, num_bytes);
    }
    return placed;
  }

  void lend_scratch(TrtPlan& plan) {
    const std::size_t needed = plan.count_scratch_bytes();
    if (needed > scratch_bytes_) {
      scratch_ = nullptr;
      scratch_bytes_ = 0;
      scratch_ = pool_->take(needed);
      scratch_bytes_ = needed;
    }
    if (needed != 0) plan.lend_scratch(reinterpret_cast<DeviceAddress>(scratch_.get()), scratch_bytes_);
  }

  void download(const Tensor& tensor, Tensor& host) const {
    if (const std::size_t num_bytes = num_bytes_of(tensor)) {
      cuda_->download(host.data, address_of(tensor), num_bytes);
    }
  }

  /// wanted: the caller's memory, which is filled, or nothing, which the result becomes where it is.
  void take_output(const Tensor& made, Tensor& wanted) const {
    if (wanted.data == nullptr) {
      wanted = made;
    } else if (wanted.shape != made.shape || wanted.dtype != made.dtype || wanted.on_device) {
      fail(EV_ERROR_BACKEND, "a result has another shape or type than was asked for; export the bundle again");
    } else {
      download(made, wanted);
    }
  }

  const Bundle& bundle_;
  // In this order: what stands below goes first.
  std::shared_ptr<Cuda> cuda_;
  std::shared_ptr<DevicePool> pool_;
  std::unique_ptr<TrtLibrary> library_;
  ChosenPlans chosen_;
  std::unique_ptr<Runner> host_;
  std::shared_ptr<void> scratch_;
  std::size_t scratch_bytes_ = 0;
  std::map<std::string, Loaded> loaded_;
  std::atomic<bool> stopped_{false};
};

}  // namespace

Opened open_trt(const std::string& name, const Bundle& bundle, const BackendOptions& options) {
  std::string version;
  try {
    // In this order: no library of hundreds of megabytes is loaded where there is no GPU for it.
    auto cuda = std::make_shared<Cuda>();
    auto library = open_library(name, options.tensorrt);
    version = library->version();
    std::vector<std::string> graphs;
    for (const GraphSpec& graph : bundle.spec.graphs) {
      if (graph.name != kHostGraph) graphs.push_back(graph.name);
    }
    ChosenPlans chosen = choose_plans(bundle, graphs, name, version, cuda->gpu());
    for (const auto& [graph, plan] : chosen.plans) {
      if (plan.needs_plugin) {
        fail(EV_ERROR_BACKEND, "its plan of ", graph, " was built with the RopeAttention plugin, which this library ",
             "does not load; build the engines again without it");
      }
    }
    if (!options.allow_unverified && !is_verified(chosen.engines, cuda->gpu().name)) {
      fail(EV_ERROR_BACKEND, "its plans were never verified on ", cuda->gpu().name, "; run `editverse-rt verify ",
           bundle.root.string(), " --backend ", name, "` once, or set ev_options.allow_unverified");
    }
    auto host = open_ort_runner(bundle, "CPUExecutionProvider", options);
    auto runner = std::make_unique<TrtRunner>(bundle, std::move(cuda), std::move(library), std::move(chosen),
                                              std::move(host));
    return {{name, std::nullopt, version}, std::move(runner)};
  } catch (const Error& error) {
    return {{name, error.what(), version}, nullptr};
  }
}

}  // namespace ev
