#include "ort_library.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <mutex>

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
  static ArenaUsers* const users = new ArenaUsers;  // a pipeline may be static, too, and end later
  return *users;
}

/// An ONNX file (opset 13) of one Identity node, from x to y, float32 [1].
std::string identity_model() {
  const std::string tensor("\x12\x0a\x0a\x08\x08\x01\x12\x04\x0a\x02\x08\x01", 12);
  const std::string node("\x0a\x10\x0a\x01x\x12\x01y\"\x08Identity", 18);
  const std::string graph =
      node + std::string("\x12\x01gZ\x0f\x0a\x01x", 8) + tensor + std::string("b\x0f\x0a\x01y", 5) + tensor;
  return std::string("\x08\x08:", 3) + static_cast<char>(graph.size()) + graph +
         std::string("B\x04\x0a\x00\x10\x0d", 6);
}

Handle<OrtMemoryInfo> make_arena_info(const OrtApi* api) {
  OrtMemoryInfo* memory = nullptr;
  check(api, api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory), "CreateCpuMemoryInfo");
  return {memory, api->ReleaseMemoryInfo};
}

Handle<OrtSession> make_identity_session(const OrtApi* api, OrtEnv* env, const Provider& provider) {
  const std::string model = identity_model();
  const auto options = make_session_options(api, provider, 1);
  OrtSession* session = nullptr;
  check(api, api->CreateSessionFromArray(env, model.data(), model.size(), options.get(), &session),
        "CreateSessionFromArray");
  return {session, api->ReleaseSession};
}

}  // namespace

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

Handle<OrtSessionOptions> make_session_options(const OrtApi* api, const Provider& provider, std::int32_t num_threads) {
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
    const std::string device = std::to_string(provider.device);
    const char *const key = "device_id", *const value = device.c_str();
    check(api, api->UpdateCUDAProviderOptions(created_cuda, &key, &value, 1), "UpdateCUDAProviderOptions");
    const std::string reason =
        take_status(api, api->SessionOptionsAppendExecutionProvider_CUDA_V2(created, created_cuda));
    if (!reason.empty()) fail(EV_ERROR_BACKEND, provider.name, " could not be used: ", reason, "; ", kFixProvider);
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

void SharedArena::free_idle() const {
  // ONNX Runtime does so after a run that asks for it, of any session of the arena.
  const auto session = make_identity_session(api_, env_, {kCpu});
  OrtRunOptions* created = nullptr;
  check(api_, api_->CreateRunOptions(&created), "CreateRunOptions");
  const Handle<OrtRunOptions> options(created, api_->ReleaseRunOptions);
  check(api_, api_->AddRunConfigEntry(created, "memory.enable_memory_arena_shrinkage", "cpu:0"), "AddRunConfigEntry");
  float value = 0;
  const std::int64_t shape = 1;
  OrtValue *given = nullptr, *made = nullptr;
  check(api_,
        api_->CreateTensorWithDataAsOrtValue(memory_.get(), &value, sizeof value, &shape, 1,
                                             ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &given),
        "CreateTensorWithDataAsOrtValue");
  const Handle<OrtValue> input(given, api_->ReleaseValue);
  const char *const from = "x", *const to = "y";
  check(api_, api_->Run(session.get(), created, &from, &given, 1, &to, 1, &made), "Run");
  api_->ReleaseValue(made);
}

std::optional<std::string> find_start_problem(const OrtApi* api, const Provider& provider) {
  try {
    const auto env = make_env(api);
    make_identity_session(api, env.get(), provider);
  } catch (const Error& error) {
    return error.what();
  }
  return std::nullopt;
}

}  // namespace ev::ort
