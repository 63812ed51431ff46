// Plays CUDA's driver to the library, as libcuda.so.1: one GPU, whose memory is the host's. What a real driver would
// answer with an error, or not notice, ends the program: reads and writes beyond a buffer, freed buffers, calls
// without a current context.
#include <cuda.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace {

struct Gpu {
  std::mutex mutex;
  std::map<CUdeviceptr, std::size_t> buffers;
  std::size_t num_bytes = 0, most_bytes = 0;
  int retained = 0, streams = 0;
  long allocations = 0, uploads = 0, downloads = 0;
};

Gpu& gpu() {
  static Gpu instance;
  return instance;
}

thread_local int current = 0;
CUcontext const kContext = reinterpret_cast<CUcontext>(0x1000);
CUstream const kStream = reinterpret_cast<CUstream>(0x2000);

[[noreturn]] void give_up(const char* what) {
  std::fprintf(stderr, "the stub of CUDA: %s\n", what);
  std::abort();
}

void want(bool holds, const char* what) {
  if (!holds) give_up(what);
}

std::size_t setting(const char* name, std::size_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::strtoull(value, nullptr, 10);
}

}  // namespace

// What the stub of TensorRT and the test ask.
extern "C" std::size_t stub_bytes_at(CUdeviceptr address) {
  const std::lock_guard lock(gpu().mutex);
  const auto found = gpu().buffers.find(address);
  return found == gpu().buffers.end() ? 0 : found->second;
}

extern "C" bool stub_is_ready(CUstream stream) { return current > 0 && stream == kStream; }

extern "C" void stub_report(char* text, std::size_t num_bytes) {
  const Gpu& it = gpu();
  std::snprintf(text, num_bytes,
                "{\"buffers\": %zu, \"most_bytes\": %zu, \"retained\": %d, \"streams\": %d, \"current\": %d, "
                "\"allocations\": %ld, \"uploads\": %ld, \"downloads\": %ld}",
                it.buffers.size(), it.most_bytes, it.retained, it.streams, current, it.allocations, it.uploads,
                it.downloads);
}

// Under the names of today: cuda.h gives some of them a suffix by macros.
extern "C" {

CUresult cuInit(unsigned int) { return static_cast<CUresult>(setting("STUB_INIT", CUDA_SUCCESS)); }

CUresult cuGetErrorName(CUresult error, const char** name) {
  *name = error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OF_THE_STUB";
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* count) {
  *count = static_cast<int>(setting("STUB_GPUS", 1));
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int index) {
  want(index == 0, "another GPU than the first");
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char* name, int num_bytes, CUdevice) {
  std::snprintf(name, static_cast<std::size_t>(num_bytes), "A GPU of the test");
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
  *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? 8 : 9;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
  ++gpu().retained;
  *context = kContext;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice) {
  want(--gpu().retained >= 0, "a context was released twice");
  return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext context) {
  want(context == kContext && gpu().retained > 0, "a context that is not there");
  ++current;
  return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext* context) {
  want(--current >= 0, "nothing to pop");
  *context = kContext;
  return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream* stream, unsigned int) {
  want(current > 0, "no context is current");
  ++gpu().streams;
  *stream = kStream;
  return CUDA_SUCCESS;
}

CUresult cuStreamDestroy(CUstream stream) {
  want(current > 0 && stream == kStream, "no context is current");
  --gpu().streams;
  return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream) {
  want(stub_is_ready(stream), "no context is current");
  return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr* address, std::size_t num_bytes) {
  want(current > 0 && num_bytes > 0, "no context is current, or nothing to allocate");
  Gpu& it = gpu();
  const std::lock_guard lock(it.mutex);
  if (it.num_bytes + num_bytes > setting("STUB_MEMORY", SIZE_MAX)) return CUDA_ERROR_OUT_OF_MEMORY;
  void* const memory = std::aligned_alloc(256, (num_bytes + 255) / 256 * 256);
  std::memset(memory, 0xcd, num_bytes);
  *address = reinterpret_cast<CUdeviceptr>(memory);
  it.buffers[*address] = num_bytes;
  it.num_bytes += num_bytes;
  it.most_bytes = it.num_bytes > it.most_bytes ? it.num_bytes : it.most_bytes;
  ++it.allocations;
  return CUDA_SUCCESS;
}

CUresult cuMemFree(CUdeviceptr address) {
  const std::size_t num_bytes = stub_bytes_at(address);
  want(current > 0 && num_bytes > 0, "a buffer that is not there was freed, or no context is current");
  const std::lock_guard lock(gpu().mutex);
  gpu().buffers.erase(address);
  gpu().num_bytes -= num_bytes;
  std::free(reinterpret_cast<void*>(address));
  return CUDA_SUCCESS;
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr address, const void* host, std::size_t num_bytes, CUstream stream) {
  want(stub_is_ready(stream) && num_bytes <= stub_bytes_at(address), "a copy beyond a buffer");
  std::memcpy(reinterpret_cast<void*>(address), host, num_bytes);
  ++gpu().uploads;
  return CUDA_SUCCESS;
}

CUresult cuMemcpyDtoHAsync(void* host, CUdeviceptr address, std::size_t num_bytes, CUstream stream) {
  want(stub_is_ready(stream) && num_bytes <= stub_bytes_at(address), "a copy beyond a buffer");
  std::memcpy(host, reinterpret_cast<const void*>(address), num_bytes);
  ++gpu().downloads;
  return CUDA_SUCCESS;
}

}  // extern "C"
