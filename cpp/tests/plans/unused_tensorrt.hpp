// What of TensorRT 10.14's interfaces the library does not call: every function ends the program by its name. The
// lists follow NvInferImpl.h, whose classes are abstract.
#pragma once

#include <NvInferRuntime.h>

#include <cstdio>
#include <cstdlib>

[[noreturn]] inline void unexpected(const char* call) {
  std::fprintf(stderr, "the stub of TensorRT was asked for %s\n", call);
  std::abort();
}

class UnusedRuntime : public nvinfer1::apiv::VRuntime {
 public:
  nvinfer1::ICudaEngine* deserializeCudaEngine(nvinfer1::IStreamReader&) noexcept override {
    unexpected("deserializeCudaEngine");
  }
  void setDLACore(std::int32_t) noexcept override { unexpected("setDLACore"); }
  std::int32_t getDLACore() const noexcept override { unexpected("getDLACore"); }
  std::int32_t getNbDLACores() const noexcept override { unexpected("getNbDLACores"); }
  void setGpuAllocator(nvinfer1::IGpuAllocator*) noexcept override { unexpected("setGpuAllocator"); }
  void setErrorRecorder(nvinfer1::IErrorRecorder*) noexcept override { unexpected("setErrorRecorder"); }
  nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { unexpected("getErrorRecorder"); }
  nvinfer1::ILogger* getLogger() const noexcept override { unexpected("getLogger"); }
  bool setMaxThreads(std::int32_t) noexcept override { unexpected("setMaxThreads"); }
  std::int32_t getMaxThreads() const noexcept override { unexpected("getMaxThreads"); }
  void setTemporaryDirectory(char const*) noexcept override { unexpected("setTemporaryDirectory"); }
  char const* getTemporaryDirectory() const noexcept override { unexpected("getTemporaryDirectory"); }
  void setTempfileControlFlags(nvinfer1::TempfileControlFlags) noexcept override {
    unexpected("setTempfileControlFlags");
  }
  nvinfer1::TempfileControlFlags getTempfileControlFlags() const noexcept override {
    unexpected("getTempfileControlFlags");
  }
  void setPluginRegistryParent(nvinfer1::IPluginRegistry*) noexcept override { unexpected("setPluginRegistryParent"); }
  nvinfer1::IRuntime* loadRuntime(char const*) noexcept override { unexpected("loadRuntime"); }
  void setEngineHostCodeAllowed(bool) noexcept override { unexpected("setEngineHostCodeAllowed"); }
  bool getEngineHostCodeAllowed() const noexcept override { unexpected("getEngineHostCodeAllowed"); }
  nvinfer1::ICudaEngine* deserializeCudaEngineV2(nvinfer1::IStreamReaderV2&) noexcept override {
    unexpected("deserializeCudaEngineV2");
  }
};

class UnusedCudaEngine : public nvinfer1::apiv::VCudaEngine {
 public:
  using Dims = nvinfer1::Dims;
  std::int32_t getNbLayers() const noexcept override { unexpected("getNbLayers"); }
  nvinfer1::IHostMemory* serialize() const noexcept override { unexpected("serialize"); }
  nvinfer1::IExecutionContext* createExecutionContextWithoutDeviceMemory() noexcept override {
    unexpected("createExecutionContextWithoutDeviceMemory");
  }
  std::size_t getDeviceMemorySize() const noexcept override { unexpected("getDeviceMemorySize"); }
  bool isRefittable() const noexcept override { unexpected("isRefittable"); }
  char const* getName() const noexcept override { unexpected("getName"); }
  std::int32_t getNbOptimizationProfiles() const noexcept override { unexpected("getNbOptimizationProfiles"); }
  std::int32_t const* getProfileTensorValues(char const*, std::int32_t,
                                             nvinfer1::OptProfileSelector) const noexcept override {
    unexpected("getProfileTensorValues");
  }
  nvinfer1::EngineCapability getEngineCapability() const noexcept override { unexpected("getEngineCapability"); }
  void setErrorRecorder(nvinfer1::IErrorRecorder*) noexcept override { unexpected("setErrorRecorder"); }
  nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { unexpected("getErrorRecorder"); }
  bool hasImplicitBatchDimension() const noexcept override { unexpected("hasImplicitBatchDimension"); }
  nvinfer1::TacticSources getTacticSources() const noexcept override { unexpected("getTacticSources"); }
  nvinfer1::ProfilingVerbosity getProfilingVerbosity() const noexcept override { unexpected("getProfilingVerbosity"); }
  nvinfer1::IEngineInspector* createEngineInspector() const noexcept override { unexpected("createEngineInspector"); }
  Dims getTensorShape(char const*) const noexcept override { unexpected("getTensorShape"); }
  nvinfer1::DataType getTensorDataType(char const*) const noexcept override { unexpected("getTensorDataType"); }
  nvinfer1::TensorLocation getTensorLocation(char const*) const noexcept override { unexpected("getTensorLocation"); }
  bool isShapeInferenceIO(char const*) const noexcept override { unexpected("isShapeInferenceIO"); }
  nvinfer1::TensorIOMode getTensorIOMode(char const*) const noexcept override { unexpected("getTensorIOMode"); }
  std::int32_t getTensorBytesPerComponent(char const*) const noexcept override {
    unexpected("getTensorBytesPerComponent");
  }
  std::int32_t getTensorComponentsPerElement(char const*) const noexcept override {
    unexpected("getTensorComponentsPerElement");
  }
  nvinfer1::TensorFormat getTensorFormat(char const*) const noexcept override { unexpected("getTensorFormat"); }
  char const* getTensorFormatDesc(char const*) const noexcept override { unexpected("getTensorFormatDesc"); }
  std::int32_t getTensorVectorizedDim(char const*) const noexcept override { unexpected("getTensorVectorizedDim"); }
  Dims getProfileShape(char const*, std::int32_t, nvinfer1::OptProfileSelector) const noexcept override {
    unexpected("getProfileShape");
  }
  std::int32_t getNbIOTensors() const noexcept override { unexpected("getNbIOTensors"); }
  char const* getIOTensorName(std::int32_t) const noexcept override { unexpected("getIOTensorName"); }
  nvinfer1::HardwareCompatibilityLevel getHardwareCompatibilityLevel() const noexcept override {
    unexpected("getHardwareCompatibilityLevel");
  }
  std::int32_t getNbAuxStreams() const noexcept override { unexpected("getNbAuxStreams"); }
  std::int32_t getTensorBytesPerComponentV2(char const*, std::int32_t) const noexcept override {
    unexpected("getTensorBytesPerComponentV2");
  }
  std::int32_t getTensorComponentsPerElementV2(char const*, std::int32_t) const noexcept override {
    unexpected("getTensorComponentsPerElementV2");
  }
  nvinfer1::TensorFormat getTensorFormatV2(char const*, std::int32_t) const noexcept override {
    unexpected("getTensorFormatV2");
  }
  char const* getTensorFormatDescV2(char const*, std::int32_t) const noexcept override {
    unexpected("getTensorFormatDescV2");
  }
  std::int32_t getTensorVectorizedDimV2(char const*, std::int32_t) const noexcept override {
    unexpected("getTensorVectorizedDimV2");
  }
  nvinfer1::ISerializationConfig* createSerializationConfig() noexcept override {
    unexpected("createSerializationConfig");
  }
  nvinfer1::IHostMemory* serializeWithConfig(nvinfer1::ISerializationConfig&) const noexcept override {
    unexpected("serializeWithConfig");
  }
  std::size_t getDeviceMemorySizeForProfile(std::int32_t) const noexcept override {
    unexpected("getDeviceMemorySizeForProfile");
  }
  nvinfer1::IRefitter* createRefitter(nvinfer1::ILogger&) noexcept override { unexpected("createRefitter"); }
  bool setWeightStreamingBudget(std::int64_t) noexcept override { unexpected("setWeightStreamingBudget"); }
  std::int64_t getWeightStreamingBudget() const noexcept override { unexpected("getWeightStreamingBudget"); }
  std::int64_t getMinimumWeightStreamingBudget() const noexcept override {
    unexpected("getMinimumWeightStreamingBudget");
  }
  bool isDebugTensor(char const*) const noexcept override { unexpected("isDebugTensor"); }
  std::int64_t getWeightStreamingBudgetV2() const noexcept override { unexpected("getWeightStreamingBudgetV2"); }
  std::int64_t getWeightStreamingScratchMemorySize() const noexcept override {
    unexpected("getWeightStreamingScratchMemorySize");
  }
  std::int64_t getDeviceMemorySizeV2() const noexcept override { unexpected("getDeviceMemorySizeV2"); }
  std::int64_t getDeviceMemorySizeForProfileV2(std::int32_t) const noexcept override {
    unexpected("getDeviceMemorySizeForProfileV2");
  }
  std::int64_t const* getProfileTensorValuesV2(char const*, std::int32_t,
                                               nvinfer1::OptProfileSelector) const noexcept override {
    unexpected("getProfileTensorValuesV2");
  }
  nvinfer1::IExecutionContext* createExecutionContextWithRuntimeConfig(nvinfer1::IRuntimeConfig*) noexcept override {
    unexpected("createExecutionContextWithRuntimeConfig");
  }
  nvinfer1::IRuntimeConfig* createRuntimeConfig() noexcept override { unexpected("createRuntimeConfig"); }
  std::int64_t getEngineStat(nvinfer1::EngineStat) const noexcept override { unexpected("getEngineStat"); }
};

class UnusedExecutionContext : public nvinfer1::apiv::VExecutionContext {
 public:
  using Dims = nvinfer1::Dims;
  void setDebugSync(bool) noexcept override { unexpected("setDebugSync"); }
  bool getDebugSync() const noexcept override { unexpected("getDebugSync"); }
  void setProfiler(nvinfer1::IProfiler*) noexcept override { unexpected("setProfiler"); }
  nvinfer1::IProfiler* getProfiler() const noexcept override { unexpected("getProfiler"); }
  nvinfer1::ICudaEngine const& getEngine() const noexcept override { unexpected("getEngine"); }
  void setName(char const*) noexcept override { unexpected("setName"); }
  char const* getName() const noexcept override { unexpected("getName"); }
  void setDeviceMemory(void*) noexcept override { unexpected("setDeviceMemory"); }
  std::int32_t getOptimizationProfile() const noexcept override { unexpected("getOptimizationProfile"); }
  bool allInputDimensionsSpecified() const noexcept override { unexpected("allInputDimensionsSpecified"); }
  bool allInputShapesSpecified() const noexcept override { unexpected("allInputShapesSpecified"); }
  void setErrorRecorder(nvinfer1::IErrorRecorder*) noexcept override { unexpected("setErrorRecorder"); }
  nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { unexpected("getErrorRecorder"); }
  bool executeV2(void* const*) noexcept override { unexpected("executeV2"); }
  void setEnqueueEmitsProfile(bool) noexcept override { unexpected("setEnqueueEmitsProfile"); }
  bool getEnqueueEmitsProfile() const noexcept override { unexpected("getEnqueueEmitsProfile"); }
  bool reportToProfiler() const noexcept override { unexpected("reportToProfiler"); }
  Dims getTensorShape(char const*) const noexcept override { unexpected("getTensorShape"); }
  Dims getTensorStrides(char const*) const noexcept override { unexpected("getTensorStrides"); }
  void const* getTensorAddress(char const*) const noexcept override { unexpected("getTensorAddress"); }
  bool setInputTensorAddress(char const*, void const*) noexcept override { unexpected("setInputTensorAddress"); }
  bool setOutputTensorAddress(char const*, void*) noexcept override { unexpected("setOutputTensorAddress"); }
  std::int32_t inferShapes(std::int32_t, char const**) noexcept override { unexpected("inferShapes"); }
  bool setInputConsumedEvent(cudaEvent_t) noexcept override { unexpected("setInputConsumedEvent"); }
  cudaEvent_t getInputConsumedEvent() const noexcept override { unexpected("getInputConsumedEvent"); }
  void* getOutputTensorAddress(char const*) const noexcept override { unexpected("getOutputTensorAddress"); }
  bool setOutputAllocator(char const*, nvinfer1::IOutputAllocator*) noexcept override {
    unexpected("setOutputAllocator");
  }
  nvinfer1::IOutputAllocator* getOutputAllocator(char const*) noexcept override { unexpected("getOutputAllocator"); }
  std::int64_t getMaxOutputSize(char const*) const noexcept override { unexpected("getMaxOutputSize"); }
  bool setTemporaryStorageAllocator(nvinfer1::IGpuAllocator*) noexcept override {
    unexpected("setTemporaryStorageAllocator");
  }
  nvinfer1::IGpuAllocator* getTemporaryStorageAllocator() const noexcept override {
    unexpected("getTemporaryStorageAllocator");
  }
  void setPersistentCacheLimit(std::size_t) noexcept override { unexpected("setPersistentCacheLimit"); }
  std::size_t getPersistentCacheLimit() const noexcept override { unexpected("getPersistentCacheLimit"); }
  bool setNvtxVerbosity(nvinfer1::ProfilingVerbosity) noexcept override { unexpected("setNvtxVerbosity"); }
  nvinfer1::ProfilingVerbosity getNvtxVerbosity() const noexcept override { unexpected("getNvtxVerbosity"); }
  void setAuxStreams(cudaStream_t*, std::int32_t) noexcept override { unexpected("setAuxStreams"); }
  bool setDebugListener(nvinfer1::IDebugListener*) noexcept override { unexpected("setDebugListener"); }
  nvinfer1::IDebugListener* getDebugListener() noexcept override { unexpected("getDebugListener"); }
  bool setTensorDebugState(char const*, bool) noexcept override { unexpected("setTensorDebugState"); }
  bool getDebugState(char const*) const noexcept override { unexpected("getDebugState"); }
  bool setAllTensorsDebugState(bool) noexcept override { unexpected("setAllTensorsDebugState"); }
  nvinfer1::IRuntimeConfig* getRuntimeConfig() const noexcept override { unexpected("getRuntimeConfig"); }
  bool setUnfusedTensorsDebugState(bool) noexcept override { unexpected("setUnfusedTensorsDebugState"); }
  bool getUnfusedTensorsDebugState() const noexcept override { unexpected("getUnfusedTensorsDebugState"); }
};

// Some of its functions are deprecated, and have to be there all the same.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
class UnusedPluginRegistry : public nvinfer1::IPluginRegistry {
 public:
  using Creator = nvinfer1::IPluginCreator;
  using CreatorInterface = nvinfer1::IPluginCreatorInterface;
  bool registerCreator(Creator&, char const*) noexcept override { unexpected("registerCreator"); }
  Creator* const* getPluginCreatorList(std::int32_t*) const noexcept override { unexpected("getPluginCreatorList"); }
  Creator* getPluginCreator(char const*, char const*, char const*) noexcept override { unexpected("getPluginCreator"); }
  void setErrorRecorder(nvinfer1::IErrorRecorder*) noexcept override { unexpected("setErrorRecorder"); }
  nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { unexpected("getErrorRecorder"); }
  bool deregisterCreator(Creator const&) noexcept override { unexpected("deregisterCreator"); }
  bool isParentSearchEnabled() const override { unexpected("isParentSearchEnabled"); }
  void setParentSearchEnabled(bool) override { unexpected("setParentSearchEnabled"); }
  void deregisterLibrary(PluginLibraryHandle) noexcept override { unexpected("deregisterLibrary"); }
  bool registerCreator(CreatorInterface&, char const*) noexcept override { unexpected("registerCreator"); }
  CreatorInterface* const* getAllCreators(std::int32_t*) const noexcept override { unexpected("getAllCreators"); }
  CreatorInterface* getCreator(char const*, char const*, char const*) noexcept override { unexpected("getCreator"); }
  bool deregisterCreator(CreatorInterface const&) noexcept override { unexpected("deregisterCreator"); }
  nvinfer1::IPluginResource* acquirePluginResource(char const*, nvinfer1::IPluginResource*) noexcept override {
    unexpected("acquirePluginResource");
  }
  std::int32_t releasePluginResource(char const*) noexcept override { unexpected("releasePluginResource"); }
  CreatorInterface* const* getAllCreatorsRecursive(std::int32_t*) noexcept override {
    unexpected("getAllCreatorsRecursive");
  }
};
#pragma GCC diagnostic pop
