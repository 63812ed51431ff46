#include "ort_library.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <map>
#include <mutex>
#include <system_error>
#include <tuple>

#include "lifetime.hpp"

namespace ev::ort {

namespace {

constexpr const char* kSoname = "libonnxruntime.so.1";
// Of the functions used here none is newer; a newer library offers all older interfaces.
constexpr std::uint32_t kApiVersion = std::min(ORT_API_VERSION, 17);

/// How many users each environment's shared arena has.
struct ArenaUsers {
  std::mutex mutex;
  std::map<const OrtEnv*, int> counts;
};

ArenaUsers& arena_users() {
  static auto* const users = new ArenaUsers;  // a pipeline may be static, too, and end later
  return *users;
}

Handle<OrtMemoryInfo> make_arena_info(const OrtApi* api) {
  OrtMemoryInfo* memory = nullptr;
  check(api, api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory), "CreateCpuMemoryInfo");
  return {memory, api->ReleaseMemoryInfo};
}

}  // namespace

Library load_library(const std::string& path) {
  using GetApiBase = const OrtApiBase* (*)();
  void* symbol = path.empty() ? dlsym(RTLD_DEFAULT, "OrtGetApiBase") : nullptr;
  if (symbol == nullptr) {
    void* library = dlopen(path.empty() ? kSoname : path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* why = dlerror();
      throw Error(EV_ERROR_BACKEND, "backend.library", "onnxruntime")
          .found("ONNX Runtime cannot be loaded (", why == nullptr ? "no reason given" : why, ")")
          .hint("install it, or give the path of its library in ev_options.onnxruntime");
    }
    symbol = dlsym(library, "OrtGetApiBase");
    if (symbol == nullptr) {
      throw Error(EV_ERROR_BACKEND, "backend.library", "onnxruntime")
          .found(path.empty() ? kSoname : path, " is not ONNX Runtime: it has no OrtGetApiBase")
          .hint("give the path of its library in ev_options.onnxruntime");
    }
  }
  wait_for_calls_at_exit();
  const OrtApiBase* base = reinterpret_cast<GetApiBase>(symbol)();
  const OrtApi* api = base->GetApi(kApiVersion);
  if (api == nullptr) {
    throw Error(EV_ERROR_BACKEND, "backend.library", "onnxruntime")
        .found("ONNX Runtime ", base->GetVersionString(), " is too old")
        .expected("1.23 or newer");
  }
  return {api, base->GetVersionString()};
}

bool is_version_from(const std::string& version, int major, int minor) {
  int found_major = 0, found_minor = 0;
  const char* const end = version.data() + version.size();
  const auto [dot, error] = std::from_chars(version.data(), end, found_major);
  if (error != std::errc()) return false;
  if (dot != end) std::from_chars(dot + 1, end, found_minor);
  return std::tie(found_major, found_minor) >= std::tie(major, minor);
}

std::string take_status(const OrtApi* api, OrtStatus* status) {
  if (status == nullptr) return "";
  const Handle<OrtStatus> owned(status, api->ReleaseStatus);
  const std::string text = api->GetErrorMessage(status);
  return text.empty() ? "no reason given" : text.substr(0, text.find('\n'));
}

void check(const OrtApi* api, OrtStatus* status, const char* what) {
  const std::string reason = take_status(api, status);
  if (reason.empty()) return;
  throw Error(EV_ERROR_BACKEND, "backend.run").found("onnxruntime failed in ", what, ": ", reason);
}

ONNXTensorElementDataType element_type(const std::string& dtype) {
  if (dtype == "float32") return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  if (dtype == "float64") return ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE;
  if (dtype == "float16") return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
  if (dtype == "bfloat16") return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
  if (dtype == "int64") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  if (dtype == "int32") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
  if (dtype == "uint8") return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  if (dtype == "bool") return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
  throw Error(EV_ERROR_BUNDLE, "bundle.field")
      .found("a graph has a tensor of type ", dtype)
      .expected("float32, float64, float16, bfloat16, int64, int32, uint8 or bool");
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
  // ONNX Runtime 1.29 and newer read it when the environment is created, and without it write a device id below the
  // user's cache folder and look for a host to send events to. DisableTelemetryEvents comes too late for the former.
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  OrtEnv* env = nullptr;
  // What ONNX Runtime has to say reaches the caller as errors; on stderr it would only be noise.
  check(api, api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "editverse_rt", &env), "CreateEnv");
  wait_for_calls_at_exit();
  return {env, api->ReleaseEnv};
}

std::vector<std::pair<std::string, std::string>> cuda_provider_options(int device) {
  return {{"device_id", std::to_string(device)},
          {"cudnn_conv_algo_search", "HEURISTIC"},
          {"arena_extend_strategy", "kSameAsRequested"},
          {"use_tf32", "0"}};
}

Handle<OrtSessionOptions> make_session_options(const OrtApi* api, const Provider& provider, std::int32_t num_threads,
                                               bool exact_integers) {
  OrtSessionOptions* created = nullptr;
  check(api, api->CreateSessionOptions(&created), "CreateSessionOptions");
  Handle<OrtSessionOptions> options(created, api->ReleaseSessionOptions);
  check(api, api->SetIntraOpNumThreads(created, num_threads), "SetIntraOpNumThreads");
  check(api, api->SetInterOpNumThreads(created, 1), "SetInterOpNumThreads");
  check(api, api->SetSessionExecutionMode(created, ORT_SEQUENTIAL), "SetSessionExecutionMode");
  check(api, api->SetSessionGraphOptimizationLevel(created, ORT_ENABLE_ALL), "SetSessionGraphOptimizationLevel");
  check(api, api->SetDeterministicCompute(created, true), "SetDeterministicCompute");
  check(api, api->SetSessionLogSeverityLevel(created, ORT_LOGGING_LEVEL_FATAL), "SetSessionLogSeverityLevel");
  check(api, api->DisableMemPattern(created), "DisableMemPattern");
  // Each graph has threads of its own, which would spin on for a while after its run, on the cores that the next
  // graph's threads need.
  check(api, api->AddSessionConfigEntry(created, "session.force_spinning_stop", "1"), "AddSessionConfigEntry");
  if (exact_integers) {
    check(api, api->AddSessionConfigEntry(created, "session.x64quantprecision", "1"), "AddSessionConfigEntry");
  }
  if (provider.name == kCpu) {
    // See SharedArena. Weights stay out of it: they would hold its blocks for as long as the session is open.
    check(api, api->AddSessionConfigEntry(created, "session.use_env_allocators", "1"), "AddSessionConfigEntry");
    check(api, api->AddSessionConfigEntry(created, "session.use_device_allocator_for_initializers", "1"),
          "AddSessionConfigEntry");
  }
  if (provider.name == kCuda) {
    OrtCUDAProviderOptionsV2* created_cuda = nullptr;
    check(api, api->CreateCUDAProviderOptions(&created_cuda), "CreateCUDAProviderOptions");
    const Handle<OrtCUDAProviderOptionsV2> cuda(created_cuda, api->ReleaseCUDAProviderOptions);
    const auto given = cuda_provider_options(provider.device);
    std::vector<const char*> names, values;
    for (const auto& [name, value] : given) {
      names.push_back(name.c_str());
      values.push_back(value.c_str());
    }
    check(api, api->UpdateCUDAProviderOptions(created_cuda, names.data(), values.data(), names.size()),
          "UpdateCUDAProviderOptions");
    const std::string reason =
        take_status(api, api->SessionOptionsAppendExecutionProvider_CUDA_V2(created, created_cuda));
    if (!reason.empty()) {
      throw Error(EV_ERROR_BACKEND, "backend.unavailable")
          .found(provider.name, " could not be used: ", reason)
          .hint(kFixProvider);
    }
  }
  return options;
}

SharedArena::SharedArena(const OrtApi* api, OrtEnv* env) : api_(api), env_(env), memory_(make_arena_info(api)) {
  ArenaUsers& users = arena_users();
  const std::lock_guard lock(users.mutex);
  if (users.counts[env] == 0) {
    check(api, api->CreateAndRegisterAllocator(env, memory_.get(), nullptr), "CreateAndRegisterAllocator");
  }
  ++users.counts[env];
}

SharedArena::~SharedArena() {
  ArenaUsers& users = arena_users();
  const std::lock_guard lock(users.mutex);
  if (--users.counts[env_] > 0) return;
  users.counts.erase(env_);
  (void)take_status(api_, api_->UnregisterAllocator(env_, memory_.get()));
}

}  // namespace ev::ort
