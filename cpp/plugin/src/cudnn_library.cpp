#include "cudnn_library.h"

#include <cudnn.h>
#include <dlfcn.h>

#include <string>

#include "rope_options.h"

namespace ev::plugin {

namespace {

constexpr const char* kLibrary = "libcudnn.so.9";

// Never closed: cuDNN keeps state of the CUDA driver, which outlives the plugin.
void* library() {
  static void* const handle = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  return handle;
}

template <typename Function>
Function* symbol(const char* name) {
  return library() == nullptr ? nullptr : reinterpret_cast<Function*>(dlsym(library(), name));
}

}  // namespace

void load_cudnn() {
  if (library() == nullptr) {
    throw PluginError(std::string("no ") + kLibrary +
                      " was found; expected cuDNN 9 for CUDA's major version; install nvidia-cudnn-cu13 and "
                      "put the folder of its libraries on LD_LIBRARY_PATH");
  }
  if (symbol<decltype(cudnnBackendExecute)>("cudnnBackendExecute") == nullptr) {
    throw PluginError(std::string(kLibrary) + " has no cudnnBackendExecute; expected cuDNN 9; reinstall it");
  }
}

}  // namespace ev::plugin

// What stands here has to be all that attention.cpp and the frontend's headers call: what is missing is an
// undefined symbol when the library is linked.
#define EDITVERSE_PASS_ON(name, parameters, arguments)                              \
  cudnnStatus_t name parameters {                                                   \
    static auto* const function = ev::plugin::symbol<decltype(name)>(#name);        \
    return function == nullptr ? CUDNN_STATUS_NOT_INITIALIZED : function arguments; \
  }

extern "C" {

EDITVERSE_PASS_ON(cudnnCreate, (cudnnHandle_t * handle), (handle))
EDITVERSE_PASS_ON(cudnnDestroy, (cudnnHandle_t handle), (handle))
EDITVERSE_PASS_ON(cudnnSetStream, (cudnnHandle_t handle, cudaStream_t stream), (handle, stream))
EDITVERSE_PASS_ON(cudnnGetStream, (cudnnHandle_t handle, cudaStream_t* stream), (handle, stream))
EDITVERSE_PASS_ON(cudnnBackendCreateDescriptor,
                  (cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t* descriptor), (type, descriptor))
EDITVERSE_PASS_ON(cudnnBackendDestroyDescriptor, (cudnnBackendDescriptor_t descriptor), (descriptor))
EDITVERSE_PASS_ON(cudnnBackendFinalize, (cudnnBackendDescriptor_t descriptor), (descriptor))
EDITVERSE_PASS_ON(cudnnBackendSetAttribute,
                  (cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                   cudnnBackendAttributeType_t type, std::int64_t count, const void* values),
                  (descriptor, name, type, count, values))
EDITVERSE_PASS_ON(cudnnBackendGetAttribute,
                  (const cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                   cudnnBackendAttributeType_t type, std::int64_t requested, std::int64_t* count, void* values),
                  (descriptor, name, type, requested, count, values))
EDITVERSE_PASS_ON(cudnnBackendExecute,
                  (cudnnHandle_t handle, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t pack),
                  (handle, plan, pack))

// Named by functions of the frontend's headers that the plugin never calls.
EDITVERSE_PASS_ON(cudnnCreateFilterDescriptor, (cudnnFilterDescriptor_t * descriptor), (descriptor))
EDITVERSE_PASS_ON(cudnnDestroyFilterDescriptor, (cudnnFilterDescriptor_t descriptor), (descriptor))
EDITVERSE_PASS_ON(cudnnSetFilterNdDescriptor,
                  (cudnnFilterDescriptor_t descriptor, cudnnDataType_t type, cudnnTensorFormat_t format, int rank,
                   const int lengths[]),
                  (descriptor, type, format, rank, lengths))
EDITVERSE_PASS_ON(cudnnReorderFilterAndBias,
                  (cudnnHandle_t handle, const cudnnFilterDescriptor_t descriptor, cudnnReorderType_t type,
                   const void* filter, void* reordered_filter, int reorder_bias, const void* bias,
                   void* reordered_bias),
                  (handle, descriptor, type, filter, reordered_filter, reorder_bias, bias, reordered_bias))

size_t cudnnGetVersion(void) {
  static auto* const function = ev::plugin::symbol<decltype(cudnnGetVersion)>("cudnnGetVersion");
  return function == nullptr ? 0 : function();
}

const char* cudnnGetErrorString(cudnnStatus_t status) {
  static auto* const function = ev::plugin::symbol<decltype(cudnnGetErrorString)>("cudnnGetErrorString");
  return function == nullptr ? "cuDNN is not loaded" : function(status);
}

void cudnnGetLastErrorString(char* message, size_t capacity) {
  static auto* const function = ev::plugin::symbol<decltype(cudnnGetLastErrorString)>("cudnnGetLastErrorString");
  if (function != nullptr) {
    function(message, capacity);
  } else if (capacity > 0) {
    message[0] = '\0';
  }
}

}  // extern "C"
