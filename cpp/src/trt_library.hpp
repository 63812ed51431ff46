// TensorRT and TensorRT for RTX as a runner of plans sees them: load a plan, run it. Both have the same classes in C++,
// whose layout belongs to a version, so each is compiled with the headers of its own: trt_tensorrt.cpp and trt_rtx.cpp
// are the only files that include them. Never run on a GPU: none was at hand.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "cuda.hpp"

namespace ev {

/// A plan that was loaded, with its only context. Calls follow the order below. Every method throws EV_ERROR_BACKEND
/// where TensorRT refuses, with what it said.
class TrtPlan {
 public:
  virtual ~TrtPlan() = default;

  virtual void set_profile(std::size_t profile, void* stream) = 0;
  virtual void set_input_shape(const std::string& name, const Shape& shape) = 0;
  virtual void set_address(const std::string& name, DeviceAddress address) = 0;
  /// Bytes that the plan needs while it runs, at the shapes that were set.
  virtual std::size_t count_scratch_bytes() = 0;
  virtual void lend_scratch(DeviceAddress address, std::size_t num_bytes) = 0;
  /// Asks for the work, which is done in the stream's order.
  virtual void enqueue(void* stream) = 0;
};

class TrtLibrary {
 public:
  virtual ~TrtLibrary() = default;

  /// "10.14.1.48"
  virtual const std::string& version() const = 0;

  /// stream_weights: keep on the GPU what fits there of a plan that was built for it. The bytes may go when this
  /// returns. Throws EV_ERROR_BACKEND with what TensorRT says. Must not outlive the library.
  virtual std::unique_ptr<TrtPlan> load_plan(const void* bytes, std::size_t num_bytes, bool stream_weights) = 0;
};

/// Loads the library at a path, or for "" as the system has it. Throws EV_ERROR_BACKEND where there is none, or it is
/// of another version than the headers that this was compiled with.
std::unique_ptr<TrtLibrary> open_tensorrt(const std::string& path);
std::unique_ptr<TrtLibrary> open_tensorrt_rtx(const std::string& path);

}  // namespace ev
