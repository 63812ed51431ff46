// What the files share that call ONNX Runtime: its library, its errors, sessions' options. ort_library.cpp and ort.cpp
// are the only files that include its header, by this one.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "error.hpp"

namespace ev::ort {

constexpr const char* kCpu = "CPUExecutionProvider";
constexpr const char* kCuda = "CUDAExecutionProvider";
constexpr const char* kFixProvider =
    "install the GPU's driver, CUDA and cuDNN as onnxruntime needs them, or use ort-cpu";

template <typename T>
using Handle = std::unique_ptr<T, void (*)(T*)>;

struct Library {
  const OrtApi* api;
  std::string version;
};

/// An execution provider, and the number of the GPU that it uses.
struct Provider {
  std::string name;
  int device = 0;
};

/// The interface of ONNX Runtime: of the library at `path`, or of one that the process has already, or of the one
/// that the loader finds. It stays loaded: its threads and statics do not survive being unloaded.
Library load_library(const std::string& path);

/// Whether a version such as "1.32.0" is this one or a newer one. It is read without the application's locale.
bool is_version_from(const std::string& version, int major, int minor);

/// The first line of a status, which is freed; "" where it says that all is well.
std::string take_status(const OrtApi* api, OrtStatus* status);

/// Throws EV_ERROR_BACKEND unless the status, which is freed, says that all is well.
void check(const OrtApi* api, OrtStatus* status, const char* what);

ONNXTensorElementDataType element_type(const std::string& dtype);

std::vector<std::string> list_providers(const OrtApi* api);

/// The process's environment of ONNX Runtime, made if there is none. Sets ORT_DISABLE_TELEMETRY=1 in the process's
/// environment first, unless the variable is there already, whatever its value.
Handle<OrtEnv> make_env(const OrtApi* api);

/// The one arena that sessions on the CPU take their memory from, for as long as one of these lives; see
/// backends/ort.py. The environment, of which the process has one, must outlive it.
class SharedArena {
 public:
  SharedArena(const OrtApi* api, OrtEnv* env);
  ~SharedArena();
  SharedArena(const SharedArena&) = delete;
  SharedArena& operator=(const SharedArena&) = delete;

 private:
  const OrtApi* api_;
  OrtEnv* env_;
  Handle<OrtMemoryInfo> memory_;
};

/// The options of the CUDA provider by ONNX Runtime's names; see OrtCudaOptions in backends/ort_cuda.py.
std::vector<std::pair<std::string, std::string>> cuda_provider_options(int device);

/// num_threads 0: one for each physical core. exact_integers: see saturates_integers in ort_probes.hpp.
Handle<OrtSessionOptions> make_session_options(const OrtApi* api, const Provider& provider, std::int32_t num_threads,
                                               bool exact_integers);

}  // namespace ev::ort
