// The table of backends, and the choice among them. The twin of editverse_rt/backends/__init__.py.
#include <algorithm>
#include <functional>

#include "error.hpp"
#include "ort.hpp"
#include "runner.hpp"
#include "trt.hpp"

namespace ev {

namespace {

/// options: the names of those that it takes.
struct Backend {
  const char* name;
  std::vector<std::string> options;
  std::function<Opened()> open;
};

Backend ort_backend(const char* name, const char* provider, std::vector<std::string> taken,
                    const BackendOptions& options, const Bundle& bundle) {
  return {name, std::move(taken), [=, &options, &bundle]() -> Opened {
            Availability state = probe_ort(name, provider, options);
            if (state.reason) return {std::move(state), nullptr};
            return {std::move(state), open_ort_runner(bundle, provider, options)};
          }};
}

Backend trt_backend(const char* name, std::vector<std::string> taken, const BackendOptions& options,
                    const Bundle& bundle) {
  return {name, std::move(taken), [=, &options, &bundle] { return open_trt(name, bundle, options); }};
}

/// The first option that is not as it is by default and that the backend does not take, or nothing.
std::optional<std::string> find_strange_option(const Backend& backend, const GpuOptions& gpu) {
  const std::pair<const char*, bool> given[] = {
      {"device", gpu.device.has_value()},
      {"cuda_graphs", gpu.cuda_graphs},
      {"weight_budget_bytes", gpu.weight_budget_bytes.has_value()},
      {"plugin", !gpu.plugin.empty()},
  };
  for (const auto& [name, is_given] : given) {
    if (!is_given) continue;
    if (std::find(backend.options.begin(), backend.options.end(), name) == backend.options.end()) return name;
  }
  return std::nullopt;
}

Error refuse_option(const std::string& option, const char* backend) {
  return Error(EV_ERROR_BACKEND, "backend.option", option)
      .value("not taken by ", backend)
      .hint("leave it out, or choose another backend");
}

}  // namespace

Selection select_backend(const BackendOptions& options, const Bundle& bundle) {
  // In the order of preference of "auto".
  const Backend backends[] = {
      trt_backend("tensorrt", {"device", "cuda_graphs", "weight_budget_bytes", "plugin"}, options, bundle),
      // It records graphs by itself, by calls that only its own headers have: none were at hand.
      trt_backend("tensorrt-rtx", {"device", "weight_budget_bytes", "plugin"}, options, bundle),
      ort_backend("ort-cuda", "CUDAExecutionProvider", {"device"}, options, bundle),
      ort_backend("ort-cpu", "CPUExecutionProvider", {}, options, bundle),
  };
  std::string known, reasons;
  std::vector<Availability> passed_over;
  for (const Backend& backend : backends) {
    known += join_text(known.empty() ? "" : ", ", backend.name);
    if (options.name != "auto" && options.name != backend.name) continue;
    const auto strange = find_strange_option(backend, options.gpu);
    if (strange && options.name == backend.name) throw refuse_option(*strange, backend.name);
    auto [state, runner] =
        strange ? Opened{{backend.name, refuse_option(*strange, backend.name).what(), ""}, nullptr} : backend.open();
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
