// The table of backends, and the choice among them. The twin of editverse_rt/backends/__init__.py.
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
            Availability state = probe_ort(name, provider, options.onnxruntime);
            if (state.reason) return {std::move(state), nullptr};
            return {std::move(state), open_ort_runner(bundle, provider, options)};
          }};
}

Backend trt_backend(const char* name, const BackendOptions& options, const Bundle& bundle) {
  return {name, [=, &options, &bundle] { return open_trt(name, bundle, options); }};
}

}  // namespace

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
      fail(EV_ERROR_BACKEND, "backend \"", options.name, "\" cannot be used: ", *state.reason);
    }
    reasons += join_text(reasons.empty() ? "" : "; ", state.name, ": ", *state.reason);
    passed_over.push_back(std::move(state));
  }
  if (options.name != "auto") {
    fail(EV_ERROR_BACKEND, "there is no backend \"", options.name, "\"; choose auto or one of ", known);
  }
  fail(EV_ERROR_BACKEND, "no backend can be used (", reasons, ")");
}

}  // namespace ev
