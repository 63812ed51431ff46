// TensorRT and TensorRT for RTX. Not written yet: trt_absent.cpp stands in.
#pragma once

#include <memory>
#include <string>

#include "runner.hpp"

namespace ev {

/// Whether the plans of a bundle can be run here. name: "tensorrt" or "tensorrt-rtx".
Availability probe_trt(const std::string& name, const Bundle& bundle);

std::unique_ptr<Runner> open_trt_runner(const std::string& name, const Bundle& bundle,
                                        const BackendOptions& options);

}  // namespace ev
