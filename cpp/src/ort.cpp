#include "ort.hpp"

#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <array>
#include <map>

#include "error.hpp"

namespace ev {

namespace {

// The graphs whose kernels give the same bytes on any number of threads; see backends/ort.py. The others take one.
constexpr std::array<const char*, 2> kThreadedGraphs = {"text_encoder", "transformer"};
constexpr const char* kSoname = "libonnxruntime.so.1";
// Of the functions used here none is newer; a newer library offers all older interfaces.
constexpr std::uint32_t kApiVersion = std::min(ORT_API_VERSION, 17);
constexpr const char* kFixProvider = "install the GPU's driver, CUDA and cuDNN as onnxruntime needs them, or use ort-cpu";

template <typename T>
using Handle = std::unique_ptr<T, void (*)(T*)>;

struct Library {
  const OrtApi* api;
  std::string version;
};

/// The interface of ONNX Runtime: of the library at `path`, or of one that the process has already, or of the one
/// that the loader finds. It stays loaded: its threads and statics do not survive being unloaded.
Library load_library(const std::string& path) {
  using GetApiBase = const OrtApiBase* (*)();
  void* symbol = path.empty() ? dlsym(RTLD_DEFAULT, "OrtGetApiBase") : nullptr;
  if (symbol == nullptr) {
    void* library = dlopen(path.empty() ? kSoname : path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* why = dlerror();
      fail(EV_ERROR_BACKEND, "ONNX Runtime cannot be loaded (", why == nullptr ? "no reason given" : why,
           "); install it, or give the path of its library in ev_options.onnxruntime");
    }
    symbol = dlsym(library, "OrtGetApiBase");
    if (symbol == nullptr) {
      fail(EV_ERROR_BACKEND, path.empty() ? kSoname : path, " is not ONNX Runtime: it has no OrtGetApiBase");
    }
  }
  const OrtApiBase* base = reinterpret_cast<GetApiBase>(symbol)();
  const OrtApi* api = base->GetApi(kApiVersion);
  if (api == nullptr) {
    fail(EV_ERROR_BACKEND, "ONNX Runtime ", base->GetVersionString(), " is too old; 1.23 or newer is expected");
  }
  return {api, base->GetVersionString()};
}

/// The first line of a status, which is freed; "" where it says that all is well.
std::string take_status(const OrtApi* api, OrtStatus* status) {
  if (status == nullptr) return "";
  const Handle<OrtStatus> owned(status, api->ReleaseStatus);
  const std::string text = api->GetErrorMessage(status);
  return text.empty() ? "no reason given" : text.substr(0, text.find('\n'));
}

void check(const OrtApi* api, OrtStatus* status, const char* what) {
  const std::string reason = take_status(api, status);
  if (!reason.empty()) fail(EV_ERROR_BACKEND, "onnxruntime failed in ", what, ": ", reason);
}

ONNXTensorElementDataType element_type(const std::string& dtype) {
  if (dtype == "float32") return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  if (dtype == "float16") return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
  if (dtype == "bfloat16") return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
  if (dtype == "int64") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  if (dtype == "int32") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
  if (dtype == "uint8") return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  if (dtype == "bool") return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
  fail(EV_ERROR_BUNDLE, "a graph has a tensor of type ", dtype, "; expected float32, float16, int64 or uint8");
}

std::vector<std::string> list_providers(const OrtApi* api) {
  char** names = nullptr;
  int count = 0;
  check(api, api->GetAvailableProviders(&names, &count), "GetAvailableProviders");
  const std::vector<std::string> providers(names, names + count);
  (void)take_status(api, api->ReleaseAvailableProviders(names, count));
  return providers;
}

Handle<OrtEnv> make_env(const OrtApi* api) {
  OrtEnv* env = nullptr;
  // What ONNX Runtime has to say reaches the caller as errors; on stderr it would only be noise.
  check(api, api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "editverse_rt", &env), "CreateEnv");
  return {env, api->ReleaseEnv};
}

/// num_threads 0: one for each physical core.
Handle<OrtSessionOptions> make_session_options(const OrtApi* api, const std::string& provider,
                                               std::int32_t num_threads) {
  OrtSessionOptions* created = nullptr;
  check(api, api->CreateSessionOptions(&created), "CreateSessionOptions");
  Handle<OrtSessionOptions> options(created, api->ReleaseSessionOptions);
  check(api, api->SetIntraOpNumThreads(created, num_threads), "SetIntraOpNumThreads");
  check(api, api->SetInterOpNumThreads(created, 1), "SetInterOpNumThreads");
  check(api, api->SetSessionExecutionMode(created, ORT_SEQUENTIAL), "SetSessionExecutionMode");
  check(api, api->SetSessionGraphOptimizationLevel(created, ORT_ENABLE_ALL), "SetSessionGraphOptimizationLevel");
  check(api, api->SetDeterministicCompute(created, true), "SetDeterministicCompute");
  check(api, api->SetSessionLogSeverityLevel(created, ORT_LOGGING_LEVEL_FATAL), "SetSessionLogSeverityLevel");
  // Memory goes back to the system between two nodes: less of it at the peak, and no slower here. (Prepacked weights
  // stay, because a product without them rounds in another way.)
  check(api, api->DisableCpuMemArena(created), "DisableCpuMemArena");
  check(api, api->DisableMemPattern(created), "DisableMemPattern");
  if (provider == "CUDAExecutionProvider") {
    OrtCUDAProviderOptionsV2* created_cuda = nullptr;
    check(api, api->CreateCUDAProviderOptions(&created_cuda), "CreateCUDAProviderOptions");
    const Handle<OrtCUDAProviderOptionsV2> cuda(created_cuda, api->ReleaseCUDAProviderOptions);
    const std::string reason =
        take_status(api, api->SessionOptionsAppendExecutionProvider_CUDA_V2(created, created_cuda));
    if (!reason.empty()) fail(EV_ERROR_BACKEND, provider, " could not be used: ", reason, "; ", kFixProvider);
  }
  return options;
}

/// Whether a session of one Identity node (opset 13) runs on the provider: being built with one says nothing about
/// the driver and the libraries that it loads.
std::optional<std::string> find_start_problem(const OrtApi* api, const std::string& provider) {
  const std::string tensor("\x12\x0a\x0a\x08\x08\x01\x12\x04\x0a\x02\x08\x01", 12);
  const std::string node("\x0a\x10\x0a\x01x\x12\x01y\"\x08Identity", 18);
  const std::string graph = node + std::string("\x12\x01gZ\x0f\x0a\x01x", 8) + tensor +
                            std::string("b\x0f\x0a\x01y", 5) + tensor;
  const std::string model = std::string("\x08\x08:", 3) + static_cast<char>(graph.size()) + graph +
                            std::string("B\x04\x0a\x00\x10\x0d", 6);
  try {
    const auto env = make_env(api);
    const auto options = make_session_options(api, provider, 1);
    OrtSession* session = nullptr;
    check(api, api->CreateSessionFromArray(env.get(), model.data(), model.size(), options.get(), &session),
          "CreateSessionFromArray");
    api->ReleaseSession(session);
  } catch (const Error& error) {
    return error.what();
  }
  return std::nullopt;
}

class OrtRunner final : public Runner {
 public:
  OrtRunner(const Bundle& bundle, std::string provider, const BackendOptions& options)
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
  }

  void run(const std::string& graph, const NamedTensors& inputs, NamedTensors& outputs) override {
    OrtSession* session = find_session(graph);
    std::vector<Handle<OrtValue>> values;
    std::vector<const char*> input_names, output_names;
    std::vector<const OrtValue*> given;
    std::vector<OrtValue*> taken;
    for (const auto& [name, tensor] : inputs) {
      values.push_back(wrap(tensor));
      input_names.push_back(name.c_str());
      given.push_back(values.back().get());
    }
    for (const auto& [name, tensor] : outputs) {
      output_names.push_back(name.c_str());
      if (tensor.data != nullptr) values.push_back(wrap(tensor));
      taken.push_back(tensor.data == nullptr ? nullptr : values.back().get());
    }
    const std::string reason =
        take_status(api_, api_->Run(session, run_options_.get(), input_names.data(), given.data(), given.size(),
                                    output_names.data(), output_names.size(), taken.data()));
    std::vector<std::shared_ptr<OrtValue>> made(outputs.size());
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i].second.data == nullptr && taken[i] != nullptr) made[i].reset(taken[i], api_->ReleaseValue);
    }
    if (!reason.empty()) {
      fail(EV_ERROR_BACKEND, "onnxruntime failed in graph \"", graph, "\" with ", describe(inputs), ": ", reason,
           "; try a smaller size or fewer frames if memory ran out, else export the bundle again");
    }
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i].second.data == nullptr) adopt(made[i], outputs[i].second);
    }
  }

  void stop_runs() override { (void)take_status(api_, api_->RunOptionsSetTerminate(run_options_.get())); }
  void allow_runs() override { (void)take_status(api_, api_->RunOptionsUnsetTerminate(run_options_.get())); }

 private:
  OrtSession* find_session(const std::string& graph) {
    const auto found = sessions_.find(graph);
    if (found != sessions_.end()) return found->second.get();
    const bool threaded = std::find(kThreadedGraphs.begin(), kThreadedGraphs.end(), graph) != kThreadedGraphs.end();
    const auto options = make_session_options(api_, provider_, threaded ? num_threads_ : 1);
    const std::string path = bundle_.graph_path(graph).string();
    OrtSession* session = nullptr;
    const std::string reason =
        take_status(api_, api_->CreateSession(env_.get(), path.c_str(), options.get(), &session));
    if (!reason.empty()) {
      fail(EV_ERROR_BACKEND, "onnxruntime ", library_.version, " cannot load graph \"", graph, "\" (", path,
           "): ", reason, "; export the bundle again, or use the version of onnxruntime that it was made for");
    }
    return sessions_.emplace(graph, Handle<OrtSession>(session, api_->ReleaseSession)).first->second.get();
  }

  Handle<OrtValue> wrap(const Tensor& tensor) const {
    OrtValue* value = nullptr;
    const std::size_t num_bytes = static_cast<std::size_t>(tensor.num_elements()) * dtype_bytes(tensor.dtype);
    check(api_,
          api_->CreateTensorWithDataAsOrtValue(memory_.get(), tensor.data, num_bytes, tensor.shape.data(),
                                               tensor.shape.size(), element_type(tensor.dtype), &value),
          "CreateTensorWithDataAsOrtValue");
    return {value, api_->ReleaseValue};
  }

  void adopt(const std::shared_ptr<OrtValue>& owner, Tensor& tensor) const {
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
      fail(EV_ERROR_BACKEND, "a graph gave another type than ", tensor.dtype, "; export the bundle again");
    }
    check(api_, api_->GetTensorMutableData(value, &tensor.data), "GetTensorMutableData");
    tensor.owner = owner;
  }

  static std::string describe(const NamedTensors& tensors) {
    std::string text;
    for (const auto& [name, tensor] : tensors) {
      text += (text.empty() ? "" : ", ") + name + " [";
      for (std::size_t i = 0; i < tensor.shape.size(); ++i) text += join_text(i == 0 ? "" : ", ", tensor.shape[i]);
      text += "]";
    }
    return text;
  }

  const Bundle& bundle_;
  std::string provider_;
  std::int32_t num_threads_;
  Library library_;
  const OrtApi* api_;
  Handle<OrtEnv> env_;
  Handle<OrtMemoryInfo> memory_;
  Handle<OrtRunOptions> run_options_;
  std::map<std::string, Handle<OrtSession>> sessions_;
};

}  // namespace

Availability probe_ort(const std::string& name, const std::string& provider, const std::string& library) {
  try {
    const Library loaded = load_library(library);
    const std::vector<std::string> providers = list_providers(loaded.api);
    if (std::find(providers.begin(), providers.end(), provider) == providers.end()) {
      return {name, join_text("onnxruntime ", loaded.version, " here has no ", provider, "; use a build that has"),
              loaded.version};
    }
    if (provider == "CPUExecutionProvider") return {name, std::nullopt, loaded.version};
    const auto problem = find_start_problem(loaded.api, provider);
    if (!problem) return {name, std::nullopt, loaded.version};
    return {name,
            join_text("onnxruntime ", loaded.version, " cannot start ", provider, " here (", *problem, "); ",
                      kFixProvider),
            loaded.version};
  } catch (const Error& error) {
    return {name, error.what(), ""};
  }
}

std::unique_ptr<Runner> open_ort_runner(const Bundle& bundle, const std::string& provider,
                                        const BackendOptions& options) {
  return std::make_unique<OrtRunner>(bundle, provider, options);
}

}  // namespace ev
