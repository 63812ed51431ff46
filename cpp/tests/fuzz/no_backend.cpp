// Stands in for the backends: a fuzz target plans requests and runs no graph, so it needs no ONNX Runtime.
#include <cstdlib>

#include "runner.hpp"

namespace ev {

namespace {

class NoRunner final : public Runner {
 public:
  void run(const std::string&, const NamedTensors&, NamedTensors&) override { std::abort(); }
  void release(const std::string&) override {}
  void stop_runs() override {}
  void allow_runs() override {}
};

}  // namespace

Selection select_backend(const BackendOptions&, const Bundle&) {
  return {{"none", std::nullopt, ""}, {}, std::make_unique<NoRunner>()};
}

}  // namespace ev
