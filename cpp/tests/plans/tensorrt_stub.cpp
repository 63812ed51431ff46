// Plays TensorRT to the library, as libnvinfer.so: a "plan" names an ONNX file, which ONNX Runtime runs on the memory
// that the stub of CUDA gave. So a request comes out as on the CPU, byte for byte, if and only if every buffer, shape
// and address was right. A plan is a line: stub ONNX_FILE SCRATCH_BYTES NUM_PROFILES [refuse-to-run|stream]
#include <cuda.h>
#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "unused_tensorrt.hpp"

namespace {

using nvinfer1::Dims;

struct Counts {
  long plans = 0, loads = 0, contexts = 0, runs = 0, profiles = 0, budgets = 0, plugins = 0;
  long budget_bytes = -1;
};
Counts counts;

void want(bool holds, const char* what) {
  if (!holds) unexpected(what);
}

template <typename Function>
Function find(const char* library, const char* name) {
  void* const found = dlsym(dlopen(library, RTLD_NOW | RTLD_LOCAL), name);
  want(found != nullptr, name);
  return reinterpret_cast<Function>(found);
}

std::size_t bytes_at(void* address) {
  static const auto ask = find<std::size_t (*)(CUdeviceptr)>("libcuda.so.1", "stub_bytes_at");
  return ask(reinterpret_cast<CUdeviceptr>(address));
}

/// Keeps work for the graph that is being recorded; false if none is.
bool record(const std::function<void()>& work) {
  static const auto ask = find<bool (*)(const std::function<void()>*)>("libcuda.so.1", "stub_record");
  return ask(&work);
}

bool is_ready(cudaStream_t stream) {
  static const auto ask = find<bool (*)(cudaStream_t)>("libcuda.so.1", "stub_is_ready");
  return ask(stream);
}

/// ONNX Runtime, on one thread.
struct Ort {
  const OrtApi* api = find<const OrtApiBase* (*)()>("libonnxruntime.so.1", "OrtGetApiBase")()->GetApi(17);
  OrtEnv* env = nullptr;
  OrtMemoryInfo* memory = nullptr;
  OrtAllocator* allocator = nullptr;

  Ort() {
    check(api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "stub", &env));
    check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    check(api->GetAllocatorWithDefaultOptions(&allocator));
  }

  void check(OrtStatus* status) const {
    if (status != nullptr) unexpected(api->GetErrorMessage(status));
  }

  static const Ort& get() {
    static const Ort instance;
    return instance;
  }
};

/// An input or output of a graph. shape: -1 where an axis is dynamic.
struct Port {
  std::string name;
  ONNXTensorElementDataType type;
  std::vector<std::int64_t> shape;
};

struct Graph {
  OrtSession* session = nullptr;
  std::vector<Port> inputs, outputs;

  explicit Graph(const std::string& file) {
    const Ort& ort = Ort::get();
    OrtSessionOptions* options = nullptr;
    ort.check(ort.api->CreateSessionOptions(&options));
    ort.check(ort.api->SetIntraOpNumThreads(options, 1));
    ort.check(ort.api->SetDeterministicCompute(options, true));
    ort.check(ort.api->CreateSession(ort.env, file.c_str(), options, &session));
    ort.api->ReleaseSessionOptions(options);
    std::size_t num_inputs = 0, num_outputs = 0;
    ort.check(ort.api->SessionGetInputCount(session, &num_inputs));
    ort.check(ort.api->SessionGetOutputCount(session, &num_outputs));
    for (std::size_t i = 0; i < num_inputs; ++i) {
      inputs.push_back(read_port(i, ort.api->SessionGetInputName, ort.api->SessionGetInputTypeInfo));
    }
    for (std::size_t i = 0; i < num_outputs; ++i) {
      outputs.push_back(read_port(i, ort.api->SessionGetOutputName, ort.api->SessionGetOutputTypeInfo));
    }
  }
  ~Graph() { Ort::get().api->ReleaseSession(session); }

  template <typename Name, typename Info>
  Port read_port(std::size_t index, Name get_name, Info get_info) const {
    const Ort& ort = Ort::get();
    Port port;
    char* name = nullptr;
    ort.check(get_name(session, index, ort.allocator, &name));
    port.name = name;
    ort.allocator->Free(ort.allocator, name);
    OrtTypeInfo* info = nullptr;
    const OrtTensorTypeAndShapeInfo* tensor = nullptr;
    std::size_t rank = 0;
    ort.check(get_info(session, index, &info));
    ort.check(ort.api->CastTypeInfoToTensorInfo(info, &tensor));
    ort.check(ort.api->GetTensorElementType(tensor, &port.type));
    ort.check(ort.api->GetDimensionsCount(tensor, &rank));
    port.shape.resize(rank);
    ort.check(ort.api->GetDimensions(tensor, port.shape.data(), rank));
    ort.api->ReleaseTypeInfo(info);
    return port;
  }
};

struct Facts {
  std::string file, flag;
  std::size_t scratch_bytes = 0;
  int num_profiles = 0;
};

std::size_t element_bytes(ONNXTensorElementDataType type) {
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) return 8;
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8) return 1;
  want(type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, "another type than float32, int64 and uint8");
  return 4;
}

class Context final : public nvinfer1::IExecutionContext, public UnusedExecutionContext {
 public:
  Context(std::shared_ptr<Graph> graph, Facts facts, nvinfer1::ILogger* logger)
      : graph_(std::move(graph)), facts_(std::move(facts)), logger_(logger) {
    mImpl = this;
    ++counts.contexts;
  }
  ~Context() noexcept override { --counts.contexts; }

  nvinfer1::IExecutionContext* getPImpl() noexcept override { return this; }

  bool setOptimizationProfileAsync(std::int32_t profile, cudaStream_t stream) noexcept override {
    want(is_ready(stream) && profile >= 0 && profile < facts_.num_profiles, "a profile that is not there");
    ++counts.profiles;
    is_settled_ = false;
    shapes_.clear();  // as TensorRT does
    profile_is_set_ = true;
    return true;
  }

  bool setInputShape(const char* name, const Dims& dims) noexcept override {
    want(profile_is_set_, "a shape before a profile");
    is_settled_ = false;
    shapes_[name].assign(dims.d, dims.d + dims.nbDims);
    return true;
  }

  bool setTensorAddress(const char* name, void* address) noexcept override {
    want(bytes_at(address) > 0, "an address that is no buffer's");
    addresses_[name] = address;
    is_settled_ = false;
    return true;
  }

  std::size_t updateDeviceMemorySizeForShapes() noexcept override {
    is_settled_ = false;
    return facts_.scratch_bytes;
  }

  void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept override {
    want(bytes_at(memory) == static_cast<std::size_t>(size), "scratch of another size than was said");
    scratch_ = memory;
    is_settled_ = false;
  }

  bool enqueueV3(cudaStream_t stream) noexcept override {
    want(is_ready(stream), "a run without a context");
    want(facts_.scratch_bytes == 0 || bytes_at(scratch_) >= facts_.scratch_bytes, "a run without its scratch");
    if (facts_.flag == "refuse-to-run") {
      logger_->log(nvinfer1::ILogger::Severity::kERROR, "the stub refuses\nand has more to say");
      return false;
    }
    // A graph works with what it saw when it was recorded.
    const auto work = [graph = graph_, facts = facts_, shapes = shapes_, addresses = addresses_, scratch = scratch_] {
      std::memset(scratch, 0xee, facts.scratch_bytes);
      ++counts.runs;
      compute(*graph, shapes, addresses);
    };
    if (record(work)) {
      want(is_settled_, "a recording after something was set, without a run between");
    } else {
      is_settled_ = true;
      work();
    }
    return true;
  }

 private:
  using Addresses = std::map<std::string, void*>;
  using Shapes = std::map<std::string, std::vector<std::int64_t>>;

  static void compute(const Graph& graph, const Shapes& shapes, const Addresses& addresses) {
    const Ort& ort = Ort::get();
    std::vector<const char*> input_names, output_names;
    std::vector<OrtValue*> given, made(graph.outputs.size());
    for (const Port& port : graph.inputs) {
      const auto set = shapes.find(port.name);
      const std::vector<std::int64_t>& shape = set == shapes.end() ? port.shape : set->second;
      std::size_t num_bytes = element_bytes(port.type);
      for (const std::int64_t size : shape) {
        want(size >= 0, "a run before all shapes are set");
        num_bytes *= static_cast<std::size_t>(size);
      }
      void* const address = addresses.at(port.name);
      want(num_bytes <= bytes_at(address), "an input that is larger than its buffer, or was freed");
      input_names.push_back(port.name.c_str());
      given.push_back(nullptr);
      ort.check(ort.api->CreateTensorWithDataAsOrtValue(ort.memory, address, num_bytes, shape.data(), shape.size(),
                                                        port.type, &given.back()));
    }
    for (const Port& port : graph.outputs) output_names.push_back(port.name.c_str());
    ort.check(ort.api->Run(graph.session, nullptr, input_names.data(), given.data(), given.size(), output_names.data(),
                           output_names.size(), made.data()));
    for (std::size_t i = 0; i < made.size(); ++i) {
      OrtTensorTypeAndShapeInfo* info = nullptr;
      std::size_t count = 0;
      void* data = nullptr;
      ort.check(ort.api->GetTensorTypeAndShape(made[i], &info));
      ort.check(ort.api->GetTensorShapeElementCount(info, &count));
      ort.check(ort.api->GetTensorMutableData(made[i], &data));
      ort.api->ReleaseTensorTypeAndShapeInfo(info);
      const std::size_t num_bytes = count * element_bytes(graph.outputs[i].type);
      void* const address = addresses.at(graph.outputs[i].name);
      want(num_bytes <= bytes_at(address), "an output that is larger than its buffer, or was freed");
      std::memcpy(address, data, num_bytes);
      ort.api->ReleaseValue(made[i]);
    }
    for (OrtValue* value : given) ort.api->ReleaseValue(value);
  }

  std::shared_ptr<Graph> graph_;
  Facts facts_;
  nvinfer1::ILogger* logger_;
  Shapes shapes_;
  Addresses addresses_;
  void* scratch_ = nullptr;
  bool profile_is_set_ = false;
  bool is_settled_ = false;  // it ran since something was last set
};

class Engine final : public nvinfer1::ICudaEngine, public UnusedCudaEngine {
 public:
  Engine(Facts facts, nvinfer1::ILogger* logger)
      : graph_(std::make_shared<Graph>(facts.file)), facts_(std::move(facts)), logger_(logger) {
    mImpl = this;
    ++counts.plans;
    ++counts.loads;
  }
  ~Engine() noexcept override { --counts.plans; }

  nvinfer1::ICudaEngine* getPImpl() noexcept override { return this; }

  nvinfer1::IExecutionContext* createExecutionContext(
      nvinfer1::ExecutionContextAllocationStrategy strategy) noexcept override {
    want(strategy == nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED, "memory of its own");
    return new Context(graph_, facts_, logger_);
  }

  std::int64_t getStreamableWeightsSize() const noexcept override { return 5000; }
  std::int64_t getWeightStreamingAutomaticBudget() const noexcept override { return 4321; }

  bool setWeightStreamingBudgetV2(std::int64_t budget) noexcept override {
    counts.budget_bytes = static_cast<long>(budget);
    ++counts.budgets;
    return facts_.flag == "stream";
  }

 private:
  std::shared_ptr<Graph> graph_;
  Facts facts_;
  nvinfer1::ILogger* logger_;
};

class PluginCreator final : public nvinfer1::IPluginCreatorInterface {
 public:
  nvinfer1::InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN CREATOR_V3ONE", 1, 0}; }
  nvinfer1::APILanguage getAPILanguage() const noexcept override { return nvinfer1::APILanguage::kCPP; }
};

/// Takes a library whose name says that it is a plugin, once in the process, as TensorRT does.
class PluginRegistry final : public UnusedPluginRegistry {
 public:
  explicit PluginRegistry(nvinfer1::ILogger* logger) : logger_(logger) {}

  nvinfer1::IPluginCreatorInterface* getCreator(char const* name, char const* version,
                                                char const* space) noexcept override {
    want(std::string(name) + version + space == "RopeAttention1editverse", "another plugin");
    static PluginCreator creator;
    if (counts.plugins > 0) return &creator;
    logger_->log(nvinfer1::ILogger::Severity::kERROR, "the stub has no such creator");
    return nullptr;
  }

  PluginLibraryHandle loadLibrary(char const* path) noexcept override {
    if (std::string(path).find("plugin") != std::string::npos && counts.plugins == 0) {
      ++counts.plugins;
      return this;
    }
    logger_->log(nvinfer1::ILogger::Severity::kERROR, "no plugin creator in it");
    return nullptr;
  }

 private:
  nvinfer1::ILogger* logger_;
};

class Runtime final : public nvinfer1::IRuntime, public UnusedRuntime {
 public:
  explicit Runtime(nvinfer1::ILogger* logger) : logger_(logger), plugins_(logger) { mImpl = this; }

  nvinfer1::IPluginRegistry& getPluginRegistry() noexcept override { return plugins_; }

  nvinfer1::IRuntime* getPImpl() noexcept override { return this; }

  using UnusedRuntime::deserializeCudaEngine;
  nvinfer1::ICudaEngine* deserializeCudaEngine(const void* blob, std::size_t num_bytes) noexcept override {
    std::istringstream line(std::string(static_cast<const char*>(blob), num_bytes));
    std::string magic;
    Facts facts;
    line >> magic >> facts.file >> facts.scratch_bytes >> facts.num_profiles >> facts.flag;
    if (magic == "stub") return new Engine(facts, logger_);
    logger_->log(nvinfer1::ILogger::Severity::kWARNING, "a warning is no reason");
    logger_->log(nvinfer1::ILogger::Severity::kERROR, "the magic tag does not match");
    return nullptr;
  }

 private:
  nvinfer1::ILogger* logger_;
  PluginRegistry plugins_;
};

}  // namespace

extern "C" {

void* createInferRuntime_INTERNAL(void* logger, std::int32_t version) noexcept {
  want(version == NV_TENSORRT_VERSION, "another version");
  return static_cast<nvinfer1::IRuntime*>(new Runtime(static_cast<nvinfer1::ILogger*>(logger)));
}

std::int32_t getInferLibMajorVersion() noexcept { return NV_TENSORRT_MAJOR; }
std::int32_t getInferLibMinorVersion() noexcept { return NV_TENSORRT_MINOR; }
std::int32_t getInferLibPatchVersion() noexcept { return NV_TENSORRT_PATCH; }
std::int32_t getInferLibBuildVersion() noexcept { return NV_TENSORRT_BUILD; }

void stub_counts(char* text, std::size_t num_bytes) {
  std::snprintf(
      text, num_bytes,
      "{\"plans\": %ld, \"loads\": %ld, \"contexts\": %ld, \"runs\": %ld, \"profiles\": %ld, \"budgets\": %ld, "
      "\"budget_bytes\": %ld, \"plugins\": %ld}",
      counts.plans, counts.loads, counts.contexts, counts.runs, counts.profiles, counts.budgets, counts.budget_bytes,
      counts.plugins);
}

}  // extern "C"
