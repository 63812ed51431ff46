// ONNX Runtime on the CPU and on CUDA. The twin of editverse_rt/backends/ort.py.
#pragma once

#include <memory>
#include <string>

#include "runner.hpp"

namespace ev {

/// Whether ONNX Runtime can be loaded, offers an execution provider, and takes the options.
Availability probe_ort(const std::string& name, const std::string& provider, const BackendOptions& options);

/// A runner of the bundle's ONNX files; on a GPU's provider with results that stay there.
std::unique_ptr<Runner> open_ort_runner(const Bundle& bundle, const std::string& provider,
                                        const BackendOptions& options);

/// One whose results stay on the provider's device, whichever it is.
std::unique_ptr<Runner> open_bound_ort_runner(const Bundle& bundle, const std::string& provider,
                                              const BackendOptions& options);

}  // namespace ev
