// Stands in for the backends: a fuzz target plans requests and runs no graph of a model, so it needs no ONNX Runtime.
// The graphs of schedules, which a plan runs, give zeros of the right shapes.
#include <cstdlib>

#include "runner.hpp"

namespace ev {

namespace {

class NoRunner final : public Runner {
 public:
  explicit NoRunner(const Bundle& bundle)
      : num_states_(static_cast<std::int64_t>(bundle.spec.schedules.front().table.matrices.front().size())) {}

  void run(const std::string& graph, const NamedTensors& inputs, NamedTensors& outputs) override {
    if (graph.rfind("schedule_", 0) != 0 || inputs.front().first != "num_steps") std::abort();
    const std::int64_t num_steps = *inputs.front().second.as<const std::int64_t>();
    for (auto& [name, tensor] : outputs) {
      std::vector<std::int64_t> shape = {num_steps};
      if (name == "matrices") shape = {num_steps, num_states_, num_states_ + 1};
      tensor = make_tensor(tensor.dtype, shape);
    }
  }

  void release(const std::string&) override {}
  void stop_runs() override {}
  void allow_runs() override {}

 private:
  std::int64_t num_states_;
};

}  // namespace

Selection select_backend(const BackendOptions&, const Bundle& bundle) {
  return {{"none", std::nullopt, ""}, {}, std::make_unique<NoRunner>(bundle)};
}

}  // namespace ev
