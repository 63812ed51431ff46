#include "ort.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "engine.hpp"
#include "ort_library.hpp"
#include "ort_probes.hpp"

namespace ev {

namespace {

using namespace ort;

// The graphs whose kernels give the same bytes on any number of threads; see backends/ort.py. The others take one.
constexpr std::array<const char*, 3> kThreadedGraphs = {"text_encoder", "transformer", "transformer_2"};
// So do these where convolutions of pictures have a blocked layout, on x86-64, if they were exported frame by frame.
constexpr std::array<const char*, 4> kFrameByFrameGraphs = {"vae_encoder_first", "vae_encoder_next",
                                                            "vae_decoder_first", "vae_decoder_next"};
#if defined(__x86_64__) || defined(_M_X64)
constexpr bool kHasBlockedLayout = true;
#else
constexpr bool kHasBlockedLayout = false;
#endif

// What ONNX Runtime says of an operator that it does not have; see backends/ort.py.
constexpr std::array<const char*, 8> kUnknownOperator = {"NOT_IMPLEMENTED",
                                                         "not a registered function/op",
                                                         "No Op registered",
                                                         "Could not find an implementation",
                                                         "No opset import for domain",
                                                         "Unrecognized",
                                                         "till opset",
                                                         "is under development"};

bool lacks_operator(const std::string& reason) {
  return std::any_of(kUnknownOperator.begin(), kUnknownOperator.end(),
                     [&](const char* part) { return reason.find(part) != std::string::npos; });
}

template <std::size_t count>
bool is_one_of(const std::array<const char*, count>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// Runs a bundle's ONNX files; a session is created when its graph is first run. Results stay in the host's memory.
class OrtRunner : public Runner {
 public:
  OrtRunner(const Bundle& bundle, Provider provider, const BackendOptions& options)
      : bundle_(bundle),
        provider_(std::move(provider)),
        num_threads_(options.num_threads),
        library_(load_library(options.onnxruntime)),
        api_(library_.api),
        env_(make_env(api_)),
        memory_(nullptr, api_->ReleaseMemoryInfo),
        run_options_(nullptr, api_->ReleaseRunOptions) {
    OrtMemoryInfo* memory = nullptr;
    check(api_, api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory), "CreateCpuMemoryInfo");
    memory_.reset(memory);
    OrtRunOptions* run_options = nullptr;
    check(api_, api_->CreateRunOptions(&run_options), "CreateRunOptions");
    run_options_.reset(run_options);
    if (provider_.name == kCpu) arena_.emplace(api_, env_.get());
    exact_integers_ = saturates_integers(api_, env_.get());
  }

  void run(const std::string& graph, const NamedTensors& inputs, NamedTensors& outputs) override {
    OrtSession* session = find_session(graph);
    std::vector<std::shared_ptr<OrtValue>> made;
    const std::string reason = execute(session, inputs, outputs, made);
    if (!reason.empty()) {
      throw Error(EV_ERROR_BACKEND, "backend.run")
          .found("onnxruntime failed in graph \"", graph, "\" with ", describe(inputs), ": ", reason)
          .hint("try a smaller size or fewer frames if memory ran out, else export the bundle again");
    }
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i].second.data == nullptr) adopt(made[i], outputs[i].second);
    }
  }

  void release(const std::string& graph) override {
    if (sessions_.erase(graph) == 0) return;
    if (arena_) free_idle_memory(api_, env_.get());
#if defined(__GLIBC__)
    malloc_trim(0);  // what loading the graph left over as well
#endif
  }

  void stop_runs() override { (void)take_status(api_, api_->RunOptionsSetTerminate(run_options_.get())); }
  void allow_runs() override { (void)take_status(api_, api_->RunOptionsUnsetTerminate(run_options_.get())); }

 protected:
  /// Runs a session. made: for each output without data, what it became. Returns why it failed, "" if it did not.
  virtual std::string execute(OrtSession* session, const NamedTensors& inputs, const NamedTensors& outputs,
                              std::vector<std::shared_ptr<OrtValue>>& made) {
    std::vector<Handle<OrtValue>> values;
    std::vector<const char*> input_names, output_names;
    std::vector<const OrtValue*> given;
    std::vector<OrtValue*> taken;
    for (const auto& [name, tensor] : inputs) {
      values.push_back(wrap(tensor, memory_.get()));
      input_names.push_back(name.c_str());
      given.push_back(values.back().get());
    }
    for (const auto& [name, tensor] : outputs) {
      output_names.push_back(name.c_str());
      if (tensor.data != nullptr) values.push_back(wrap(tensor, memory_.get()));
      taken.push_back(tensor.data == nullptr ? nullptr : values.back().get());
    }
    const std::string reason =
        take_status(api_, api_->Run(session, run_options_.get(), input_names.data(), given.data(), given.size(),
                                    output_names.data(), output_names.size(), taken.data()));
    made.resize(outputs.size());
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i].second.data == nullptr && taken[i] != nullptr) made[i].reset(taken[i], api_->ReleaseValue);
    }
    return reason;
  }

  /// A tensor as ONNX Runtime's own, over the same memory. The tensor must outlive it.
  Handle<OrtValue> wrap(const Tensor& tensor, const OrtMemoryInfo* memory) const {
    OrtValue* value = nullptr;
    const std::size_t num_bytes = static_cast<std::size_t>(tensor.num_elements()) * dtype_bytes(tensor.dtype);
    check(api_,
          api_->CreateTensorWithDataAsOrtValue(memory, tensor.data, num_bytes, tensor.shape.data(), tensor.shape.size(),
                                               element_type(tensor.dtype), &value),
          "CreateTensorWithDataAsOrtValue");
    return {value, api_->ReleaseValue};
  }

  virtual void adopt(const std::shared_ptr<OrtValue>& owner, Tensor& tensor) const {
    OrtValue* const value = owner.get();
    OrtTensorTypeAndShapeInfo* created = nullptr;
    check(api_, api_->GetTensorTypeAndShape(value, &created), "GetTensorTypeAndShape");
    const Handle<OrtTensorTypeAndShapeInfo> info(created, api_->ReleaseTensorTypeAndShapeInfo);
    std::size_t rank = 0;
    check(api_, api_->GetDimensionsCount(created, &rank), "GetDimensionsCount");
    tensor.shape.assign(rank, 0);
    check(api_, api_->GetDimensions(created, tensor.shape.data(), rank), "GetDimensions");
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    check(api_, api_->GetTensorElementType(created, &type), "GetTensorElementType");
    if (type != element_type(tensor.dtype)) {
      throw Error(EV_ERROR_BACKEND, "backend.outputs")
          .found("a graph gave a result of another type")
          .expected(tensor.dtype)
          .hint("export the bundle again");
    }
    check(api_, api_->GetTensorMutableData(value, &tensor.data), "GetTensorMutableData");
    tensor.owner = owner;
  }

  const OrtApi* api() const { return api_; }
  const OrtMemoryInfo* host_memory() const { return memory_.get(); }
  const OrtRunOptions* run_options() const { return run_options_.get(); }

 private:
  OrtSession* find_session(const std::string& graph) {
    const auto found = sessions_.find(graph);
    if (found != sessions_.end()) return found->second.get();
    const auto options =
        make_session_options(api_, provider_, takes_threads(graph) ? num_threads_ : 1, exact_integers_);
    const std::string path = bundle_.graph_path(graph).string();
    OrtSession* session = nullptr;
    const std::string reason =
        take_status(api_, api_->CreateSession(env_.get(), path.c_str(), options.get(), &session));
    if (!reason.empty()) {
      if (lacks_operator(reason)) {
        throw Error(EV_ERROR_BACKEND, "backend.load")
            .found("graph \"", graph, "\" needs an operator that onnxruntime ", library_.version,
                   " does not have: ", reason)
            .hint("install a newer onnxruntime, or export with the attention inline");
      }
      throw Error(EV_ERROR_BACKEND, "backend.load")
          .found("onnxruntime ", library_.version, " cannot load graph \"", graph, "\" (", path, "): ", reason)
          .hint("export the bundle again");
    }
    return sessions_.emplace(graph, Handle<OrtSession>(session, api_->ReleaseSession)).first->second.get();
  }

  /// Whether the graph gives the same bytes on any number of threads.
  bool takes_threads(const std::string& graph) const {
    if (kHasBlockedLayout && is_one_of(kFrameByFrameGraphs, graph)) {
      // Before, such convolutions depend on how they are split across threads; see backends/ort.py.
      return bundle_.spec.capabilities.convolutions == "frames" && is_version_from(library_.version, 1, 25);
    }
    return is_one_of(kThreadedGraphs, graph);
  }

  static std::string describe(const NamedTensors& tensors) {
    std::string text;
    for (const auto& [name, tensor] : tensors) {
      text += (text.empty() ? "" : ", ") + name + " [";
      for (std::size_t i = 0; i < tensor.shape.size(); ++i) text += join_text(i == 0 ? "" : ", ", tensor.shape[i]);
      text += ']';
    }
    return text;
  }

  const Bundle& bundle_;
  Provider provider_;
  std::int32_t num_threads_;
  Library library_;
  const OrtApi* api_;
  Handle<OrtEnv> env_;
  bool exact_integers_ = false;
  std::optional<SharedArena> arena_;
  Handle<OrtMemoryInfo> memory_;
  Handle<OrtRunOptions> run_options_;
  std::map<std::string, Handle<OrtSession>> sessions_;
};

/// The same with results that stay on the provider's device, by IO binding: what one graph gave goes into the next
/// without a copy. Tensors of the host are copied in by ONNX Runtime; outputs with data are copied out into it. Graphs
/// that every backend runs on the CPU run there.
class BoundOrtRunner final : public OrtRunner {
 public:
  BoundOrtRunner(const Bundle& bundle, const Provider& provider, const BackendOptions& options)
      : OrtRunner(bundle, provider, options),
        host_(bundle, Provider{kCpu}, options),
        device_memory_(nullptr, api()->ReleaseMemoryInfo) {
    // The CPU is here for the tests of the binding.
    const char* const name = provider.name == kCuda ? "Cuda" : "Cpu";
    OrtMemoryInfo* memory = nullptr;
    check(api(), api()->CreateMemoryInfo(name, OrtDeviceAllocator, provider.device, OrtMemTypeDefault, &memory),
          "CreateMemoryInfo");
    device_memory_.reset(memory);
  }

  void run(const std::string& graph, const NamedTensors& inputs, NamedTensors& outputs) override {
    is_host_graph(graph) ? host_.run(graph, inputs, outputs) : OrtRunner::run(graph, inputs, outputs);
  }

  void release(const std::string& graph) override {
    is_host_graph(graph) ? host_.release(graph) : OrtRunner::release(graph);
  }

  void stop_runs() override {
    OrtRunner::stop_runs();
    host_.stop_runs();
  }

  void allow_runs() override {
    OrtRunner::allow_runs();
    host_.allow_runs();
  }

 protected:
  std::string execute(OrtSession* session, const NamedTensors& inputs, const NamedTensors& outputs,
                      std::vector<std::shared_ptr<OrtValue>>& made) override {
    OrtIoBinding* created = nullptr;
    check(api(), api()->CreateIoBinding(session, &created), "CreateIoBinding");
    const Handle<OrtIoBinding> binding(created, api()->ReleaseIoBinding);
    std::vector<Handle<OrtValue>> values;
    for (const auto& [name, tensor] : inputs) {
      values.push_back(wrap(tensor, tensor.on_device ? device_memory_.get() : host_memory()));
      check(api(), api()->BindInput(created, name.c_str(), values.back().get()), "BindInput");
    }
    for (const auto& [name, tensor] : outputs) {
      if (tensor.data == nullptr) {
        check(api(), api()->BindOutputToDevice(created, name.c_str(), device_memory_.get()), "BindOutputToDevice");
      } else {
        values.push_back(wrap(tensor, host_memory()));
        check(api(), api()->BindOutput(created, name.c_str(), values.back().get()), "BindOutput");
      }
    }
    // Each session has a stream of its own, so a result is complete before another session takes it.
    check(api(), api()->SynchronizeBoundInputs(created), "SynchronizeBoundInputs");
    std::string reason = take_status(api(), api()->RunWithBinding(session, run_options(), created));
    if (!reason.empty()) return reason;
    check(api(), api()->SynchronizeBoundOutputs(created), "SynchronizeBoundOutputs");
    take_bound_outputs(created, made);
    return "";
  }

  void adopt(const std::shared_ptr<OrtValue>& owner, Tensor& tensor) const override {
    OrtRunner::adopt(owner, tensor);
    tensor.on_device = true;
  }

 private:
  /// In the order in which they were bound.
  void take_bound_outputs(OrtIoBinding* binding, std::vector<std::shared_ptr<OrtValue>>& made) const {
    OrtAllocator* allocator = nullptr;
    check(api(), api()->GetAllocatorWithDefaultOptions(&allocator), "GetAllocatorWithDefaultOptions");
    OrtValue** values = nullptr;
    std::size_t count = 0;
    check(api(), api()->GetBoundOutputValues(binding, allocator, &values, &count), "GetBoundOutputValues");
    for (std::size_t i = 0; i < count; ++i) made.emplace_back(values[i], api()->ReleaseValue);
    if (values != nullptr) allocator->Free(allocator, static_cast<void*>(values));
  }

  OrtRunner host_;
  Handle<OrtMemoryInfo> device_memory_;
};

}  // namespace

Availability probe_ort(const std::string& name, const std::string& provider, const BackendOptions& options) {
  try {
    const Library loaded = load_library(options.onnxruntime);
    const std::vector<std::string> providers = list_providers(loaded.api);
    if (std::find(providers.begin(), providers.end(), provider) == providers.end()) {
      return {name, join_text("onnxruntime ", loaded.version, " here has no ", provider, "; use a build that has"),
              loaded.version};
    }
    if (provider == kCpu) return {name, std::nullopt, loaded.version};
    const auto problem = find_start_problem(loaded.api, {provider, options.gpu.index()});
    if (!problem) return {name, std::nullopt, loaded.version};
    return {
        name,
        join_text("onnxruntime ", loaded.version, " cannot start ", provider, " here (", *problem, "); ", kFixProvider),
        loaded.version};
  } catch (const Error& error) {
    return {name, error.what(), ""};
  }
}

std::unique_ptr<Runner> open_ort_runner(const Bundle& bundle, const std::string& provider,
                                        const BackendOptions& options) {
  // On the CPU there is nothing to save by binding.
  if (provider == kCpu) return std::make_unique<OrtRunner>(bundle, Provider{provider}, options);
  return open_bound_ort_runner(bundle, provider, options);
}

std::unique_ptr<Runner> open_bound_ort_runner(const Bundle& bundle, const std::string& provider,
                                              const BackendOptions& options) {
  const int device = provider == kCpu ? 0 : options.gpu.index();
  return std::make_unique<BoundOrtRunner>(bundle, Provider{provider, device}, options);
}

}  // namespace ev
