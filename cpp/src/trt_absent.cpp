// The answer of a build without EDITVERSE_TENSORRT.
#include "trt.hpp"

namespace ev {

Opened open_trt(const std::string& name, const Bundle&, const BackendOptions&) {
  return {{name, "this library was built without TensorRT; build it with -DEDITVERSE_TENSORRT=ON", ""}, nullptr};
}

}  // namespace ev
