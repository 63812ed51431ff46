// TensorRT and TensorRT for RTX as a runner of plans sees them: load a plan, run it. Both have the same classes in C++,
// whose layout belongs to a version, so each is compiled with the headers of its own: trt_tensorrt.cpp and trt_rtx.cpp
// are the only files that include them.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include "cuda.hpp"

namespace ev {

/// One state in which a plan runs. Calls follow the order below. Every method throws EV_ERROR_BACKEND where TensorRT
/// refuses, with what it said.
class TrtContext {
 public:
  virtual ~TrtContext() = default;

  virtual void set_profile(std::size_t profile, void* stream) = 0;
  virtual void set_input_shape(const std::string& name, const Shape& shape) = 0;
  virtual void set_address(const std::string& name, DeviceAddress address) = 0;
  /// Bytes that the plan needs while it runs, at the shapes that were set.
  virtual std::size_t count_scratch_bytes() = 0;
  virtual void lend_scratch(DeviceAddress address, std::size_t num_bytes) = 0;
  /// Asks for the work, which is done in the stream's order.
  virtual void enqueue(void* stream) = 0;
};

/// A plan that was loaded.
class TrtPlan {
 public:
  virtual ~TrtPlan() = default;

  /// Must not outlive the plan. Throws EV_ERROR_BACKEND.
  virtual std::unique_ptr<TrtContext> make_context() = 0;
};

/// Whether a plan that was built for it streams its weights, and how many bytes of them may lie on the GPU (nothing:
/// what TensorRT says that fits).
struct WeightStreaming {
  bool is_on = false;
  std::optional<std::int64_t> budget_bytes;
};

class TrtLibrary {
 public:
  virtual ~TrtLibrary() = default;

  /// "10.14.1.48"
  virtual const std::string& version() const = 0;

  /// Throws EV_ERROR_BACKEND where there is no plugin in that library.
  virtual void load_plugin(const std::string& path) = 0;

  /// The bytes may go when this returns. Throws EV_ERROR_BACKEND with what TensorRT says. Must not outlive the library.
  virtual std::unique_ptr<TrtPlan> load_plan(const void* bytes, std::size_t num_bytes,
                                             const WeightStreaming& streaming) = 0;
};

/// Loads the library at a path, or for "" as the system has it. Throws EV_ERROR_BACKEND where there is none, or it is
/// of another version than the headers that this was compiled with.
std::unique_ptr<TrtLibrary> open_tensorrt(const std::string& path);
std::unique_ptr<TrtLibrary> open_tensorrt_rtx(const std::string& path);

}  // namespace ev
