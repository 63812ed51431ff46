// The backends that run plans on an NVIDIA GPU. The twin of editverse_rt/backends/trt.py. Without EDITVERSE_TENSORRT
// trt_absent.cpp stands in.
#pragma once

#include <memory>
#include <string>

#include "runner.hpp"

namespace ev {

/// Opens the plans of a bundle that fit the GPU. name: "tensorrt" or "tensorrt-rtx". The runner is there unless the
/// availability has a reason: no driver, no GPU, no library, no plan for this GPU, none that was verified on it.
Opened open_trt(const std::string& name, const Bundle& bundle, const BackendOptions& options);

}  // namespace ev
