#include "cuda.hpp"

#include <cuda.h>
#include <dlfcn.h>

#include <algorithm>
#include <iterator>

#include "error.hpp"

namespace ev {

namespace {

constexpr const char* kLibrary = "libcuda.so.1";
constexpr const char* kCheck = "check the driver and the GPU with nvidia-smi";
// Idle buffers may hold so many times the bytes that were ever in use at once: the stages of a request have buffers of
// different sizes, which the next request finds again.
constexpr std::size_t kIdleShare = 2;

}  // namespace

// The names with a suffix are those that cuda.h gives to programs of today by macros.
struct Cuda::Driver {
  decltype(&::cuInit) init = nullptr;
  decltype(&::cuGetErrorName) get_error_name = nullptr;
  decltype(&::cuDeviceGetCount) get_count = nullptr;
  decltype(&::cuDeviceGet) get_device = nullptr;
  decltype(&::cuDeviceGetName) get_name = nullptr;
  decltype(&::cuDeviceGetAttribute) get_attribute = nullptr;
  decltype(&::cuDevicePrimaryCtxRetain) retain = nullptr;
  decltype(&::cuDevicePrimaryCtxRelease) release = nullptr;
  decltype(&::cuCtxPushCurrent) push = nullptr;
  decltype(&::cuCtxPopCurrent) pop = nullptr;
  decltype(&::cuStreamCreate) create_stream = nullptr;
  decltype(&::cuStreamDestroy) destroy_stream = nullptr;
  decltype(&::cuStreamSynchronize) synchronize = nullptr;
  decltype(&::cuMemAlloc) allocate = nullptr;
  decltype(&::cuMemFree) free = nullptr;
  decltype(&::cuMemcpyHtoDAsync) upload = nullptr;
  decltype(&::cuMemcpyDtoHAsync) download = nullptr;
  decltype(&::cuMemcpyDtoDAsync) copy = nullptr;
  decltype(&::cuStreamBeginCapture) begin_capture = nullptr;
  decltype(&::cuStreamEndCapture) end_capture = nullptr;
  decltype(&::cuGraphInstantiateWithFlags) instantiate = nullptr;
  decltype(&::cuGraphDestroy) destroy_graph = nullptr;
  decltype(&::cuGraphLaunch) launch_graph = nullptr;
  decltype(&::cuGraphExecDestroy) destroy_executable = nullptr;

  CUdevice device = 0;
  CUcontext context = nullptr;
  CUstream stream = nullptr;

  Driver() {
    void* const library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* why = dlerror();
      throw Error(EV_ERROR_BACKEND, "backend.library")
          .found("CUDA's driver cannot be loaded (", why == nullptr ? "no reason given" : why, ")")
          .hint("install NVIDIA's driver");
    }
    find(library, "cuInit", init);
    find(library, "cuGetErrorName", get_error_name);
    find(library, "cuDeviceGetCount", get_count);
    find(library, "cuDeviceGet", get_device);
    find(library, "cuDeviceGetName", get_name);
    find(library, "cuDeviceGetAttribute", get_attribute);
    find(library, "cuDevicePrimaryCtxRetain", retain);
    find(library, "cuDevicePrimaryCtxRelease_v2", release);
    find(library, "cuCtxPushCurrent_v2", push);
    find(library, "cuCtxPopCurrent_v2", pop);
    find(library, "cuStreamCreate", create_stream);
    find(library, "cuStreamDestroy_v2", destroy_stream);
    find(library, "cuStreamSynchronize", synchronize);
    find(library, "cuMemAlloc_v2", allocate);
    find(library, "cuMemFree_v2", free);
    find(library, "cuMemcpyHtoDAsync_v2", upload);
    find(library, "cuMemcpyDtoHAsync_v2", download);
    find(library, "cuMemcpyDtoDAsync_v2", copy);
    find(library, "cuStreamBeginCapture_v2", begin_capture);
    find(library, "cuStreamEndCapture", end_capture);
    find(library, "cuGraphInstantiateWithFlags", instantiate);
    find(library, "cuGraphDestroy", destroy_graph);
    find(library, "cuGraphLaunch", launch_graph);
    find(library, "cuGraphExecDestroy", destroy_executable);
  }

  template <typename Function>
  static void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr) {
      throw Error(EV_ERROR_BACKEND, "backend.library")
          .found(kLibrary, " has no ", name)
          .hint("install a newer driver of NVIDIA's");
    }
  }

  void check(CUresult status, const char* what) const {
    if (status == CUDA_SUCCESS) return;
    const char* name = nullptr;
    if (get_error_name(status, &name) != CUDA_SUCCESS || name == nullptr) name = "an unknown error";
    const auto [code, hint] = explain(status);
    throw Error(EV_ERROR_BACKEND, code).found("CUDA failed to ", what, ": ", name).hint(hint);
  }

  /// The error's code, and what to do; see _FAULTS in backends/cuda.py.
  static std::pair<const char*, const char*> explain(CUresult status) {
    switch (status) {
      case CUDA_ERROR_OUT_OF_MEMORY:
        return {"backend.memory", "ask for fewer frames or a smaller size, or stop what else is on the GPU"};
      case CUDA_ERROR_NO_DEVICE: return {"backend.device", "the driver finds no NVIDIA GPU; nvidia-smi lists them"};
      case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: return {"backend.library", "install NVIDIA's driver, or a newer one"};
      default: return {"backend.cuda", kCheck};
    }
  }
};

class Cuda::Recorded final : public CudaGraph {
 public:
  Recorded(const Driver& driver, CUgraphExec executable) : driver_(driver), executable_(executable) {}
  ~Recorded() override { driver_.destroy_executable(executable_); }
  Recorded(const Recorded&) = delete;
  Recorded& operator=(const Recorded&) = delete;

  CUgraphExec get() const { return executable_; }

 private:
  const Driver& driver_;
  CUgraphExec executable_;
};

Cuda::Cuda(int index) : driver_(std::make_unique<Driver>()) {
  Driver& driver = *driver_;
  driver.check(driver.init(0), "start");
  int count = 0, major = 0, minor = 0;
  driver.check(driver.get_count(&count), "count GPUs");
  if (count < 1) throw Error(EV_ERROR_BACKEND, "backend.device").found("CUDA finds no GPU here").hint(kCheck);
  if (index < 0 || index >= count) {
    throw Error(EV_ERROR_BACKEND, "backend.device", "device")
        .found("GPU ", index, " was asked for, this machine has ", count)
        .hint("choose another");
  }
  gpu_.index = index;
  driver.check(driver.get_device(&driver.device, index), "open the GPU");
  char name[256] = "";
  driver.check(driver.get_name(name, sizeof name - 1, driver.device), "name the GPU");
  for (const auto& [attribute, value] : {std::pair(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &major),
                                         std::pair(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &minor)}) {
    driver.check(driver.get_attribute(value, attribute, driver.device), "describe the GPU");
  }
  gpu_.name = name;
  gpu_.capability = join_text(major, ".", minor);
  // The context that CUDA's runtime uses as well, so that a program's own work on this GPU shares it.
  driver.check(driver.retain(&driver.context, driver.device), "open the GPU");
  try {
    const Current current(*this);
    driver.check(driver.create_stream(&driver.stream, CU_STREAM_NON_BLOCKING), "create a stream");
  } catch (const Error&) {
    driver.release(driver.device);
    throw;
  }
}

Cuda::~Cuda() {
  if (driver_->push(driver_->context) == CUDA_SUCCESS) {
    driver_->destroy_stream(driver_->stream);
    CUcontext popped = nullptr;
    driver_->pop(&popped);
  }
  driver_->release(driver_->device);
}

Cuda::Current::Current(const Cuda& cuda) : cuda_(cuda) {
  cuda.driver_->check(cuda.driver_->push(cuda.driver_->context), "use the GPU in this thread");
}

Cuda::Current::~Current() {
  CUcontext popped = nullptr;
  cuda_.driver_->pop(&popped);
}

void* Cuda::stream() const { return driver_->stream; }

DeviceAddress Cuda::allocate(std::size_t num_bytes) const {
  CUdeviceptr address = 0;
  driver_->check(driver_->allocate(&address, num_bytes), join_text("allocate ", num_bytes, " bytes").c_str());
  return address;
}

void Cuda::free(DeviceAddress address) const noexcept { (void)driver_->free(address); }

void Cuda::upload(DeviceAddress address, const void* host, std::size_t num_bytes) const {
  driver_->check(driver_->upload(address, host, num_bytes, driver_->stream), "copy to the GPU");
  synchronize();
}

void Cuda::download(void* host, DeviceAddress address, std::size_t num_bytes) const {
  driver_->check(driver_->download(host, address, num_bytes, driver_->stream), "copy from the GPU");
  synchronize();
}

void Cuda::copy(DeviceAddress to, DeviceAddress from, std::size_t num_bytes) const {
  driver_->check(driver_->copy(to, from, num_bytes, driver_->stream), "copy on the GPU");
}

std::unique_ptr<CudaGraph> Cuda::record(const std::function<void()>& launch) const {
  const Driver& driver = *driver_;
  driver.check(driver.begin_capture(driver.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "record a graph");
  CUgraph graph = nullptr;
  try {
    launch();
  } catch (...) {
    // The stream has to be left as it was; what was recorded is of no use.
    if (driver.end_capture(driver.stream, &graph) == CUDA_SUCCESS) driver.destroy_graph(graph);
    throw;
  }
  driver.check(driver.end_capture(driver.stream, &graph), "record a graph");
  CUgraphExec executable = nullptr;
  const CUresult status = driver.instantiate(&executable, graph, 0);
  driver.destroy_graph(graph);
  driver.check(status, "make a graph");
  return std::make_unique<Recorded>(driver, executable);
}

void Cuda::replay(const CudaGraph& graph) const {
  const CUgraphExec executable = static_cast<const Recorded&>(graph).get();
  driver_->check(driver_->launch_graph(executable, driver_->stream), "launch a graph");
}

void Cuda::synchronize() const { driver_->check(driver_->synchronize(driver_->stream), "run what was asked for"); }

DevicePool::~DevicePool() {
  try {
    const Cuda::Current current(*cuda_);
    free_idle(0);
  } catch (const Error&) {
    // The GPU is gone, and its memory with it.
  }
}

std::shared_ptr<void> DevicePool::take(std::size_t num_bytes) {
  const DeviceAddress address = find_or_allocate(num_bytes);
  used_bytes_ += num_bytes;
  most_used_bytes_ = std::max(most_used_bytes_, used_bytes_);
  const auto give_back = [pool = shared_from_this(), num_bytes](void* buffer) {
    pool->used_bytes_ -= num_bytes;
    pool->idle_bytes_ += num_bytes;
    pool->idle_.push_back({reinterpret_cast<DeviceAddress>(buffer), num_bytes});
  };
  std::shared_ptr<void> taken(reinterpret_cast<void*>(address), give_back);
  if (idle_bytes_ > kIdleShare * most_used_bytes_) {
    cuda_->synchronize();  // the work that read them may still be running
    free_idle(kIdleShare * most_used_bytes_);
  }
  return taken;
}

DeviceAddress DevicePool::find_or_allocate(std::size_t num_bytes) {
  const auto found = std::find_if(idle_.rbegin(), idle_.rend(),
                                  [num_bytes](const Buffer& buffer) { return buffer.num_bytes == num_bytes; });
  if (found != idle_.rend()) {
    const DeviceAddress address = found->address;
    idle_.erase(std::next(found).base());
    idle_bytes_ -= num_bytes;
    return address;
  }
  idle_.reserve(num_made_ + 1);  // so that giving one back asks for no memory
  DeviceAddress address = 0;
  try {
    address = cuda_->allocate(num_bytes);
  } catch (const Error&) {
    cuda_->synchronize();
    free_idle(0);
    address = cuda_->allocate(num_bytes);
  }
  ++num_made_;
  return address;
}

void DevicePool::free_idle(std::size_t most_bytes) noexcept {
  auto next = idle_.begin();
  for (; next != idle_.end() && idle_bytes_ > most_bytes; ++next) {
    cuda_->free(next->address);
    idle_bytes_ -= next->num_bytes;
    --num_made_;
  }
  idle_.erase(idle_.begin(), next);
}

}  // namespace ev
