// The table of backends, and the choice among them. The twin of editverse_rt/backends/__init__.py.
#include <algorithm>
#include <functional>

#include "error.hpp"
#include "ort.hpp"
#include "runner.hpp"
#include "trt.hpp"

namespace ev {

namespace {

struct Backend {
  const char* name;
  std::function<Opened()> open;
};

Backend ort_backend(const char* name, const char* provider, const BackendOptions& options, const Bundle& bundle) {
  return {name, [=, &options, &bundle]() -> Opened {
            Availability state = probe_ort(name, provider, options);
            if (state.reason) return {std::move(state), nullptr};
            return {std::move(state), open_ort_runner(bundle, provider, options)};
          }};
}

Backend trt_backend(const char* name, const BackendOptions& options, const Bundle& bundle) {
  return {name, [=, &options, &bundle] { return open_trt(name, bundle, options); }};
}

}  // namespace

std::optional<std::string> refuse_gpu_options(const std::string& backend, const GpuOptions& gpu,
                                              const std::vector<std::string>& taken) {
  const std::pair<const char*, bool> given[] = {
      {"device", gpu.device.has_value()},
      {"cuda_graphs", gpu.cuda_graphs},
      {"weight_budget_bytes", gpu.weight_budget_bytes.has_value()},
      {"plugin", !gpu.plugin.empty()},
  };
  std::string strange;
  for (const auto& [name, is_given] : given) {
    if (!is_given || std::find(taken.begin(), taken.end(), name) != taken.end()) continue;
    strange += join_text(strange.empty() ? "" : " and no ", name);
  }
  if (strange.empty()) return std::nullopt;
  return join_text(backend, " takes no ", strange, "; leave it out, or choose another backend");
}

Selection select_backend(const BackendOptions& options, const Bundle& bundle) {
  // In the order of preference of "auto".
  const Backend backends[] = {
      trt_backend("tensorrt", options, bundle),
      trt_backend("tensorrt-rtx", options, bundle),
      ort_backend("ort-cuda", "CUDAExecutionProvider", options, bundle),
      ort_backend("ort-cpu", "CPUExecutionProvider", options, bundle),
  };
  std::string known, reasons;
  std::vector<Availability> passed_over;
  for (const Backend& backend : backends) {
    known += join_text(known.empty() ? "" : ", ", backend.name);
    if (options.name != "auto" && options.name != backend.name) continue;
    auto [state, runner] = backend.open();
    if (!state.reason) return {std::move(state), std::move(passed_over), std::move(runner)};
    if (options.name == backend.name) {
      throw Error(EV_ERROR_BACKEND, "backend.unavailable")
          .found("backend \"", options.name, "\" cannot be used: ", *state.reason);
    }
    reasons += join_text(reasons.empty() ? "" : "; ", state.name, ": ", *state.reason);
    passed_over.push_back(std::move(state));
  }
  if (options.name != "auto") {
    throw Error(EV_ERROR_BACKEND, "backend.unknown", "backend")
        .found("there is no backend \"", options.name, "\"")
        .hint("choose auto or one of ", known);
  }
  throw Error(EV_ERROR_BACKEND, "backend.unavailable").found("no backend can be used (", reasons, ")");
}

}  // namespace ev
