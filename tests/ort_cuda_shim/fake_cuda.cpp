// A CUDA runtime that computes nothing, for ONNX Runtime's CUDA provider on a machine without a GPU: memory is the
// host's, copies are real, kernels are counted and not run. check_placement.py adds a function that returns 0 for each
// that the provider wants and that is not here.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>

namespace {

long launches = 0;

// What <<<...>>> puts away for the launch that follows.
struct Configuration {
  dim3 grid, block;
  size_t shared_bytes = 0;
  void* stream = nullptr;
};
Configuration configuration;

cudaError_t give(void** address, size_t num_bytes) {
  *address = std::aligned_alloc(256, (num_bytes + 511) / 256 * 256);
  return *address == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

constexpr size_t kMemoryBytes = size_t{80} << 30;

}  // namespace

extern "C" {

long fake_cuda_launches() { return launches; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* facts, int) {
  std::memset(facts, 0, sizeof *facts);
  std::strcpy(facts->name, "a GPU that computes nothing");
  facts->major = 9;
  facts->multiProcessorCount = 132;
  facts->warpSize = 32;
  facts->maxThreadsPerBlock = 1024;
  facts->maxThreadsPerMultiProcessor = 2048;
  facts->regsPerBlock = 65536;
  facts->sharedMemPerBlock = 48 << 10;
  facts->sharedMemPerBlockOptin = 227 << 10;
  facts->sharedMemPerMultiprocessor = 228 << 10;
  facts->totalGlobalMem = kMemoryBytes;
  facts->maxThreadsDim[0] = facts->maxThreadsDim[1] = 1024;
  facts->maxThreadsDim[2] = 64;
  facts->maxGridSize[0] = 2147483647;
  facts->maxGridSize[1] = facts->maxGridSize[2] = 65535;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor   ? 9
           : attribute == cudaDevAttrComputeCapabilityMinor ? 0
           : attribute == cudaDevAttrMultiProcessorCount    ? 132
           : attribute == cudaDevAttrMemoryPoolsSupported   ? 1
                                                            : 1024;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  *free_bytes = *total_bytes = kMemoryBytes;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** address, size_t num_bytes) { return give(address, num_bytes); }
cudaError_t cudaMallocHost(void** address, size_t num_bytes) { return give(address, num_bytes); }
cudaError_t cudaHostAlloc(void** address, size_t num_bytes, unsigned int) { return give(address, num_bytes); }
cudaError_t cudaMallocFromPoolAsync(void** address, size_t num_bytes, cudaMemPool_t, cudaStream_t) {
  return give(address, num_bytes);
}

cudaError_t cudaFree(void* address) {
  std::free(address);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* address) { return cudaFree(address); }
cudaError_t cudaFreeAsync(void* address, cudaStream_t) { return cudaFree(address); }

cudaError_t cudaMemcpy(void* to, const void* from, size_t num_bytes, cudaMemcpyKind) {
  std::memmove(to, from, num_bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t num_bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, num_bytes, kind);
}

cudaError_t cudaMemset(void* to, int value, size_t num_bytes) {
  std::memset(to, value, num_bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t num_bytes, cudaStream_t) {
  return cudaMemset(to, value, num_bytes);
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* facts, const void*) {
  std::memset(facts, 0, sizeof *facts);
  facts->type = cudaMemoryTypeDevice;
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* facts, const void*) {
  std::memset(facts, 0, sizeof *facts);
  facts->maxThreadsPerBlock = 1024;
  facts->binaryVersion = facts->ptxVersion = 90;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* count, const void*, int, size_t, unsigned int) {
  *count = 2;
  return cudaSuccess;
}

const char* cudaGetErrorName(cudaError_t) { return "an error of the fake"; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the fake"; }
const char* cudnnGetErrorString(int) { return "an error of the fake"; }
const char* cublasGetStatusName(int) { return "an error of the fake"; }
const char* cublasGetStatusString(int) { return "an error of the fake"; }
size_t cudnnGetVersion() { return 91900; }

cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) {
  ++launches;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) {
  ++launches;
  return cudaSuccess;
}

cudaError_t cudaLaunchCooperativeKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) {
  ++launches;
  return cudaSuccess;
}

// What nvcc's code calls of itself: kernels are registered when the library is loaded.
void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char*, char*, const char*, int, void*, void*, dim3*, dim3*, int*) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

unsigned int __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, void* stream) {
  configuration = {grid, block, shared_bytes, stream};
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared_bytes = configuration.shared_bytes;
  *static_cast<void**>(stream) = configuration.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(void** kernel, const void* function) {
  *kernel = const_cast<void*>(function);
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(void*, dim3, dim3, void**, size_t, cudaStream_t) {
  ++launches;
  return cudaSuccess;
}

}  // extern "C"
