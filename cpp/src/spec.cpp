#include "spec.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"

namespace ev {

namespace {

// A table of steps is held in memory; no solver of use has more.
constexpr std::int64_t kMaxSteps = 100000;

template <typename T>
const T* find_named(const std::vector<T>& values, const std::string& name) {
  const auto found = std::find_if(values.begin(), values.end(), [&](const T& v) { return v.name == name; });
  return found == values.end() ? nullptr : &*found;
}

}  // namespace

Schedule Schedule::with_steps(std::int64_t steps) const {
  if (steps == num_inference_steps()) return *this;
  if (steps < 1) fail(EV_ERROR_REQUEST, "num_inference_steps is ", steps, "; give at least 1");
  if (kind != "euler") {
    fail(EV_ERROR_REQUEST, "num_inference_steps is ", steps, ", but schedule \"", name, "\" is a multistep table of ",
         num_inference_steps(), " steps; leave it out, or choose an euler schedule");
  }
  if (steps > kMaxSteps) fail(EV_ERROR_REQUEST, "num_inference_steps is ", steps, "; give at most ", kMaxSteps);
  Schedule result;
  result.name = name;
  result.kind = kind;
  const auto n = static_cast<double>(steps);
  for (std::int64_t i = 0; i < steps; ++i) result.timesteps.push_back(static_cast<double>(i) / n);
  result.coefficients.assign(static_cast<std::size_t>(steps), {1.0 / n, 0.0, 0.0});
  result.guidance_scale.assign(static_cast<std::size_t>(steps), guidance_scale.at(0));
  return result;
}

Schedule Schedule::with_guidance(double scale) const {
  if (!std::isfinite(scale) || scale < 0) {
    fail(EV_ERROR_REQUEST, "guidance_scale is ", scale, "; give a number of at least 0 (1: none)");
  }
  const auto is_one = [](double row) { return row == 1.0; };
  const bool unguided = std::all_of(guidance_scale.begin(), guidance_scale.end(), is_one);
  Schedule result = *this;
  for (double& row : result.guidance_scale) row = unguided || !is_one(row) ? scale : row;
  return result;
}

const GraphSpec* BundleSpec::find_graph(const std::string& graph_name) const { return find_named(graphs, graph_name); }

const Schedule* BundleSpec::find_schedule(const std::string& schedule_name) const {
  return find_named(schedules, schedule_name);
}

}  // namespace ev
