// The few calls of CUDA's driver that a runner of plans makes. cuda.cpp is the only file that includes its header; the
// driver is loaded when it is first asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "engine.hpp"

namespace ev {

/// An address in the memory of the GPU.
using DeviceAddress = std::uint64_t;

/// What was put on a stream, recorded, to be launched as one.
class CudaGraph {
 public:
  virtual ~CudaGraph() = default;
};

/// One GPU, with one stream, in whose order all work is done. Every method but `gpu` and `stream` throws
/// EV_ERROR_BACKEND where a call fails, and wants a `Current` in its thread.
class Cuda {
 public:
  /// index: the GPU's number. Throws EV_ERROR_BACKEND where the driver or the GPU is missing.
  explicit Cuda(int index);
  ~Cuda();
  Cuda(const Cuda&) = delete;
  Cuda& operator=(const Cuda&) = delete;

  /// Makes the GPU the one of the calling thread, and gives the thread back what it had before.
  class Current {
   public:
    explicit Current(const Cuda& cuda);
    ~Current();
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

   private:
    const Cuda& cuda_;
  };

  const Gpu& gpu() const { return gpu_; }
  void* stream() const;

  /// Aligned to 256 bytes.
  DeviceAddress allocate(std::size_t num_bytes) const;
  void free(DeviceAddress address) const noexcept;
  /// From the host's memory, which is free to change when this returns.
  void upload(DeviceAddress address, const void* host, std::size_t num_bytes) const;
  void download(void* host, DeviceAddress address, std::size_t num_bytes) const;
  /// From one buffer of the GPU to another, in the stream's order.
  void copy(DeviceAddress to, DeviceAddress from, std::size_t num_bytes) const;
  void synchronize() const;

  /// Records what `launch` puts on the stream; it is not run. Must not outlive this.
  std::unique_ptr<CudaGraph> record(const std::function<void()>& launch) const;
  void replay(const CudaGraph& graph) const;

 private:
  struct Driver;
  class Recorded;

  std::unique_ptr<Driver> driver_;
  Gpu gpu_;
};

/// Device buffers. One that was given back serves the next of its size, in the stream's order. Idle buffers hold at
/// most twice the bytes that were ever in use at once; those that are idle longest are freed first. The twin of Pool in
/// editverse_rt/backends/cuda.py.
class DevicePool : public std::enable_shared_from_this<DevicePool> {
 public:
  explicit DevicePool(std::shared_ptr<Cuda> cuda) : cuda_(std::move(cuda)) {}
  ~DevicePool();
  DevicePool(const DevicePool&) = delete;
  DevicePool& operator=(const DevicePool&) = delete;

  /// A buffer that goes back to the pool when nobody holds it. Its address is the pointer; it is no memory of the
  /// host. Where memory has run out, idle buffers are freed first.
  std::shared_ptr<void> take(std::size_t num_bytes);

 private:
  struct Buffer {
    DeviceAddress address = 0;
    std::size_t num_bytes = 0;
  };

  DeviceAddress find_or_allocate(std::size_t num_bytes);
  /// Frees the buffers that are idle longest, until the rest has at most so many bytes.
  void free_idle(std::size_t most_bytes) noexcept;

  std::shared_ptr<Cuda> cuda_;
  std::vector<Buffer> idle_;  // the latest last
  std::size_t num_made_ = 0, idle_bytes_ = 0, used_bytes_ = 0, most_used_bytes_ = 0;
};

}  // namespace ev
