// The answer of a build without TensorRT, which so far every build is.
#include "error.hpp"
#include "trt.hpp"

namespace ev {

Availability probe_trt(const std::string& name, const Bundle&) {
  return {name, "this version of the library runs no TensorRT plans; use ort-cuda or ort-cpu", ""};
}

std::unique_ptr<Runner> open_trt_runner(const std::string& name, const Bundle& bundle, const BackendOptions&) {
  fail(EV_ERROR_BACKEND, *probe_trt(name, bundle).reason);
}

}  // namespace ev
