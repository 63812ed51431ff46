// ONNX Runtime on the CPU and on CUDA. ort.cpp is the only file that includes ONNX Runtime. The twin of
// editverse_rt/backends/ort.py.
#pragma once

#include <memory>
#include <string>

#include "runner.hpp"

namespace ev {

/// Whether ONNX Runtime can be loaded and offers an execution provider. library: see BackendOptions::onnxruntime.
Availability probe_ort(const std::string& name, const std::string& provider, const std::string& library);

std::unique_ptr<Runner> open_ort_runner(const Bundle& bundle, const std::string& provider,
                                        const BackendOptions& options);

}  // namespace ev
