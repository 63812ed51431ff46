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

// Of one graph, the shapes that are kept as CUDA graphs: with and without the text, and another request's.
constexpr std::size_t kMostRecorded = 4;

std::unique_ptr<TrtLibrary> open_library(const std::string& name, const std::string& path) {
#if EDITVERSE_HAS_TENSORRT
  if (name == "tensorrt") return open_tensorrt(path);
#endif
#if EDITVERSE_HAS_TENSORRT_RTX
  if (name == "tensorrt-rtx") return open_tensorrt_rtx(path);
#endif
  throw Error(EV_ERROR_BACKEND, "backend.library")
      .found("this library was built without the headers of ", name)
      .hint("build it with -D", name == "tensorrt" ? "TENSORRT" : "TENSORRT_RTX", "_INCLUDE_DIR=FOLDER");
}

/// A context set to one call's shapes and buffers, and the CUDA graph of it once it is recorded. scratch: the memory
/// that the context was last run with, null before it ran; it is recorded with no other.
struct Call {
  Shapes shapes;
  std::unique_ptr<TrtContext> context;
  NamedTensors buffers;
  std::shared_ptr<void> scratch;
  std::unique_ptr<CudaGraph> graph;
};

/// A plan that was loaded, with the context that takes any shape, its profile, and the calls that are recorded, the
/// latest last.
struct Loaded {
  std::unique_ptr<TrtPlan> plan;
  std::unique_ptr<TrtContext> context;
  std::size_t profile = SIZE_MAX;
  std::vector<Call> recorded;
};

/// All plans share one buffer for what they hold while they run: they run one after another.
class TrtRunner final : public Runner {
 public:
  TrtRunner(const Bundle& bundle, std::shared_ptr<Cuda> cuda, std::unique_ptr<TrtLibrary> library, ChosenPlans chosen,
            GpuOptions options, std::unique_ptr<Runner> host)
      : bundle_(bundle),
        options_(std::move(options)),
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
    if (is_host_graph(graph)) return host_->run(graph, inputs, outputs);
    if (stopped_) throw Error(EV_ERROR_BACKEND, "backend.run").found("graph \"", graph, "\" was stopped");
    const Cuda::Current current(*cuda_);
    const GraphSpec& spec = *bundle_.spec.find_graph(graph);
    Shapes shapes;
    for (const auto& [name, tensor] : inputs) shapes[name] = tensor.shape;
    const Shapes results = output_shapes(spec, shapes);
    Loaded& loaded = load(graph);
    try {
      // Held until the work is asked for: the stream's order protects their buffers from there on.
      NamedTensors held;
      for (const TensorSpec& tensor : spec.inputs) {
        held.emplace_back(tensor.name, place(find_tensor(inputs, tensor.name)));
      }
      for (const TensorSpec& tensor : spec.outputs) {
        held.emplace_back(tensor.name, make_device_tensor(tensor.dtype, results.at(tensor.name)));
      }
      const PlanSpec& plan = chosen_.plans.at(graph);
      if (options_.cuda_graphs) {
        run_recorded(loaded, plan, spec, shapes, held);
      } else {
        const std::size_t profile = choose_profile(plan, shapes);
        const auto new_profile = loaded.profile == profile ? std::nullopt : std::optional(profile);
        loaded.profile = SIZE_MAX;  // where a context that failed stands is not known
        set_shapes(*loaded.context, plan, shapes, new_profile, cuda_->stream());
        loaded.profile = profile;
        for (const auto& [name, tensor] : held) loaded.context->set_address(name, address_of(tensor));
        lend_scratch(*loaded.context);
        loaded.context->enqueue(cuda_->stream());
      }
      for (auto& [name, tensor] : outputs) take_output(find_tensor(held, name), tensor);
    } catch (const Error& error) {
      throw error.at(join_text("graph \"", graph, "\": "));
    }
  }

  void release(const std::string& graph) override {
    if (is_host_graph(graph)) return host_->release(graph);
    const Cuda::Current current(*cuda_);
    cuda_->synchronize();
    loaded_.erase(graph);
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
    if (found == tensors.end()) {
      throw Error(EV_ERROR_BACKEND, "backend.inputs").found("it has no tensor ", name).hint("export the bundle again");
    }
    return found->second;
  }

  Loaded& load(const std::string& graph) {
    const auto found = loaded_.find(graph);
    if (found != loaded_.end()) return found->second;
    const PlanSpec& plan = chosen_.plans.at(graph);
    const MappedFile bytes = map_plan_file(chosen_.engines, plan);
    try {
      Loaded loaded;
      loaded.plan =
          library_->load_plan(bytes.data(), bytes.size(), {plan.weight_streaming, options_.weight_budget_bytes});
      loaded.context = loaded.plan->make_context();
      return loaded_.emplace(graph, std::move(loaded)).first->second;
    } catch (const Error& error) {
      throw Error(EV_ERROR_BACKEND, "backend.load")
          .found((chosen_.engines.folder / plan.file).string(), " cannot be read by ", chosen_.engines.backend, " ",
                 library_->version(), ": ", error.what())
          .hint(kBuildAgain);
    }
  }

  static void set_shapes(TrtContext& context, const PlanSpec& plan, const Shapes& shapes,
                         std::optional<std::size_t> new_profile, void* stream) {
    if (new_profile) context.set_profile(*new_profile, stream);
    for (const auto& [name, range] : plan.profiles[0].shapes) context.set_input_shape(name, shapes.at(name));
  }

  /// Runs the call of these shapes in buffers of its own, from its second time on as one CUDA graph. A recorded graph
  /// holds for one state of its context and for the addresses that it saw, so each call has a context, and inputs and
  /// results are copied, on the GPU. What TensorRT settles when shapes or scratch memory are new cannot be recorded:
  /// after that the call runs once by itself, and from then on nothing is set before it is recorded. A call whose first
  /// run failed is not kept.
  void run_recorded(Loaded& loaded, const PlanSpec& plan, const GraphSpec& spec, const Shapes& shapes,
                    const NamedTensors& held) {
    std::vector<Call>& calls = loaded.recorded;
    const auto found = std::find_if(calls.begin(), calls.end(), [&](const Call& c) { return c.shapes == shapes; });
    if (found != calls.end()) {
      run_call(*found, spec.inputs.size(), held);
      std::rotate(found, found + 1, calls.end());
      return;
    }
    Call call{shapes, loaded.plan->make_context(), {}, nullptr, nullptr};
    set_shapes(*call.context, plan, shapes, choose_profile(plan, shapes), cuda_->stream());
    for (const auto& [name, tensor] : held) {
      call.buffers.emplace_back(name, make_device_tensor(tensor.dtype, tensor.shape));
      call.context->set_address(name, address_of(call.buffers.back().second));
    }
    run_call(call, spec.inputs.size(), held);
    if (calls.size() == kMostRecorded) {
      cuda_->synchronize();  // the one that goes may still be running
      calls.erase(calls.begin());
    }
    calls.push_back(std::move(call));
  }

  void run_call(Call& call, std::size_t num_inputs, const NamedTensors& held) {
    for (std::size_t i = 0; i < num_inputs; ++i) copy(call.buffers[i].second, held[i].second);
    const std::shared_ptr<void> scratch = std::exchange(call.scratch, nullptr);  // unless this run succeeds
    if (call.graph == nullptr && scratch != nullptr && scratch == scratch_) {
      call.graph = cuda_->record([&] { call.context->enqueue(cuda_->stream()); });
    }
    if (call.graph != nullptr) {
      cuda_->replay(*call.graph);
    } else {
      lend_scratch(*call.context);
      call.context->enqueue(cuda_->stream());
    }
    call.scratch = scratch_;
    for (std::size_t i = num_inputs; i < held.size(); ++i) copy(held[i].second, call.buffers[i].second);
  }

  void copy(const Tensor& to, const Tensor& from) const {
    if (const std::size_t num_bytes = num_bytes_of(from)) cuda_->copy(address_of(to), address_of(from), num_bytes);
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

  void lend_scratch(TrtContext& context) {
    const std::size_t needed = context.count_scratch_bytes();
    if (scratch_ == nullptr || needed > scratch_bytes_) {
      forget_recorded();  // it works in the buffer that goes
      scratch_ = nullptr;
      scratch_bytes_ = 0;
      scratch_ = pool_->take(std::max<std::size_t>(needed, 1));
      scratch_bytes_ = std::max<std::size_t>(needed, 1);
    }
    if (needed != 0) context.lend_scratch(reinterpret_cast<DeviceAddress>(scratch_.get()), scratch_bytes_);
  }

  void forget_recorded() {
    cuda_->synchronize();
    for (auto& [graph, loaded] : loaded_) {
      for (Call& call : loaded.recorded) {
        call.graph = nullptr;
        call.scratch = nullptr;
      }
    }
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
      throw Error(EV_ERROR_BACKEND, "backend.outputs")
          .found("a result has another shape or type than was asked for")
          .hint("export the bundle again");
    } else {
      download(made, wanted);
    }
  }

  const Bundle& bundle_;
  GpuOptions options_;
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
    auto cuda = std::make_shared<Cuda>(options.gpu.index());
    auto library = open_library(name, options.tensorrt);
    version = library->version();
    std::vector<std::string> graphs;
    for (const GraphSpec& graph : bundle.spec.graphs) {
      if (!is_host_graph(graph.name)) graphs.push_back(graph.name);
    }
    ChosenPlans chosen = choose_plans(bundle, graphs, name, version, cuda->gpu());
    const bool has_budget = options.gpu.weight_budget_bytes.has_value();
    if (const auto reason = refuse_options(chosen.plans, !options.gpu.plugin.empty(), has_budget)) {
      return {{name, reason, version}, nullptr};
    }
    if (!options.allow_unverified && !is_verified(chosen.engines, cuda->gpu().name)) {
      throw Error(EV_ERROR_BACKEND, "backend.unverified")
          .found("its plans were never verified on ", cuda->gpu().name)
          .hint("run `editverse-rt verify ", bundle.root.string(), " --backend ", name,
                "` once, or set ev_options.allow_unverified");
    }
    if (!options.gpu.plugin.empty()) library->load_plugin(options.gpu.plugin);
    auto host = open_ort_runner(bundle, "CPUExecutionProvider", options);
    auto runner = std::make_unique<TrtRunner>(bundle, std::move(cuda), std::move(library), std::move(chosen),
                                              options.gpu, std::move(host));
    return {{name, std::nullopt, version}, std::move(runner)};
  } catch (const Error& error) {
    return {{name, error.what(), version}, nullptr};
  }
}

}  // namespace ev
