// Plays CUDA's driver to the library, as libcuda.so.1: one GPU, whose memory is the host's. What a real driver would
// answer with an error, or not notice, ends the program: reads and writes beyond a buffer, freed buffers, calls
// without a current context.
#include <cuda.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <vector>

namespace {

struct Gpu {
  std::mutex mutex;
  std::map<CUdeviceptr, std::size_t> buffers;
  std::size_t num_bytes = 0, most_bytes = 0;
  int retained = 0, streams = 0, graphs = 0, device = -1;
  long allocations = 0, uploads = 0, downloads = 0, copies = 0, launches = 0;
  bool is_recording = false;
  std::vector<std::function<void()>> recorded;
};

Gpu& gpu() {
  static Gpu instance;
  return instance;
}

/// What a graph of the stub holds.
using Work = std::vector<std::function<void()>>;

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

/// Keeps work for the graph that is being recorded; false if none is.
extern "C" bool stub_record(const std::function<void()>* work) {
  if (gpu().is_recording) gpu().recorded.push_back(*work);
  return gpu().is_recording;
}

extern "C" void stub_report(char* text, std::size_t num_bytes) {
  const Gpu& it = gpu();
  std::snprintf(text, num_bytes,
                "{\"buffers\": %zu, \"most_bytes\": %zu, \"retained\": %d, \"streams\": %d, \"graphs\": %d, "
                "\"device\": %d, \"current\": %d, \"allocations\": %ld, \"uploads\": %ld, \"downloads\": %ld, "
                "\"copies\": %ld, \"launches\": %ld}",
                it.buffers.size(), it.most_bytes, it.retained, it.streams, it.graphs, it.device, current,
                it.allocations, it.uploads, it.downloads, it.copies, it.launches);
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
  want(index >= 0 && index < static_cast<int>(setting("STUB_GPUS", 1)), "a GPU that is not there");
  *device = index;
  gpu().device = index;
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
  want(stub_is_ready(stream) && !gpu().is_recording, "no context is current, or a wait while recording");
  return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr* address, std::size_t num_bytes) {
  want(current > 0 && num_bytes > 0 && !gpu().is_recording, "no context is current, or nothing to allocate");
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

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, std::size_t num_bytes, CUstream stream) {
  want(stub_is_ready(stream) && !gpu().is_recording, "a copy while recording");
  want(num_bytes <= stub_bytes_at(to) && num_bytes <= stub_bytes_at(from), "a copy beyond a buffer");
  std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), num_bytes);
  ++gpu().copies;
  return CUDA_SUCCESS;
}

CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode) {
  want(stub_is_ready(stream) && !gpu().is_recording, "a recording within another");
  gpu().is_recording = true;
  return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
  want(stub_is_ready(stream) && gpu().is_recording, "no recording to end");
  gpu().is_recording = false;
  *graph = reinterpret_cast<CUgraph>(new Work(std::move(gpu().recorded)));
  gpu().recorded.clear();
  ++gpu().graphs;
  return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long) {
  *executable = reinterpret_cast<CUgraphExec>(new Work(*reinterpret_cast<Work*>(graph)));
  ++gpu().graphs;
  return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph graph) {
  delete reinterpret_cast<Work*>(graph);
  --gpu().graphs;
  return CUDA_SUCCESS;
}

CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
  want(stub_is_ready(stream) && !gpu().is_recording, "a launch while recording");
  ++gpu().launches;
  for (const auto& work : *reinterpret_cast<Work*>(executable)) work();
  return CUDA_SUCCESS;
}

CUresult cuGraphExecDestroy(CUgraphExec executable) {
  delete reinterpret_cast<Work*>(executable);
  --gpu().graphs;
  return CUDA_SUCCESS;
}

}  // extern "C"
