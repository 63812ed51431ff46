// Results that stay on the provider's device, by IO binding, beside those in the host's memory: ort_test BUNDLE. The
// provider is the CPU; what a GPU's does with the same calls has not run. ort_test BUNDLE memory: what sessions hold
// beside their weights.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <locale>
#include <memory>

#include "bundle.hpp"
#include "check.hpp"
#include "error.hpp"
#include "ort.hpp"
#include "ort_library.hpp"
#include "ort_probes.hpp"

namespace {

using namespace ev;

constexpr const char* kProvider = "CPUExecutionProvider";

/// Noise, a solver step on it, and two latent frames decoded, the second with the caches that the first gave.
std::vector<Tensor> run_chain(Runner& runner, const BundleSpec& spec, bool on_device) {
  const Geometry& geometry = spec.geometry;
  const std::int64_t rows = geometry.default_height_px / geometry.size_multiple();
  const std::int64_t columns = geometry.default_width_px / geometry.size_multiple();
  const std::int64_t count = rows * columns, dim = geometry.patch_dim, ratio = geometry.temporal_ratio;
  NamedTensors noise = {{"noise", Tensor{"float32", {}}}};
  runner.run("noise",
             {{"seed", make_tensor("int64", {}, std::vector<std::int64_t>{7})},
              {"shape", make_tensor("int64", {2}, std::vector<std::int64_t>{2 * count, dim})}},
             noise);
  const Tensor drawn = noise[0].second;
  CHECK(!drawn.on_device && drawn.shape == (std::vector<std::int64_t>{2 * count, dim}));

  const Tensor sample = make_unset_tensor("float32", drawn.shape);  // the caller's memory, on the host
  NamedTensors step = {{"sample_next", sample}, {"history_next", Tensor{"float32", {}}}};
  const Tensor zeros = make_tensor("float32", drawn.shape);
  const auto states = static_cast<std::int64_t>(spec.schedules.front().table.matrices.front().size());
  Tensor matrix = make_tensor("float32", {states, states + 1});
  matrix.as<float>()[0] = 1;
  matrix.as<float>()[states] = 0.25F;
  runner.run("solver_step",
             {{"sample", drawn},
              {"velocity_cond", drawn},
              {"velocity_uncond", zeros},
              {"history", make_tensor("float32", {states - 1, drawn.shape[0], drawn.shape[1]})},
              {"guidance", make_tensor("float32", {}, std::vector<float>{2})},
              {"matrix", matrix}},
             step);
  CHECK(!step[0].second.on_device && step[0].second.data == sample.data && step[1].second.on_device == on_device);

  const Tensor frames =
      make_unset_tensor("uint8", {1 + ratio, geometry.default_height_px, geometry.default_width_px, 3});
  NamedTensors outputs;
  for (std::int64_t i = 0; i < 2; ++i) {
    const std::string graph = i == 0 ? "vae_decoder_first" : "vae_decoder_next";
    // Of the noise, so that a part of a result on the device goes in.
    const Tensor part = reshape(slice_rows(drawn, i * count, count), {1, rows, columns, dim});
    NamedTensors inputs = {{"patches", part}};
    for (const auto& [name, tensor] : outputs) {
      if (name.rfind("next_cache_", 0) == 0) inputs.emplace_back(name.substr(5), tensor);
    }
    outputs.clear();
    for (const TensorSpec& tensor : spec.find_graph(graph)->outputs) {
      if (tensor.name.rfind("next_cache_", 0) == 0) outputs.emplace_back(tensor.name, Tensor{tensor.dtype, {}});
    }
    outputs.emplace_back("frames", i == 0 ? slice_rows(frames, 0, 1) : slice_rows(frames, 1, ratio));
    runner.run(graph, inputs, outputs);
    if (i == 0) runner.release(graph);  // its caches live on
  }
  return {sample, frames};
}

bool are_equal(const Tensor& one, const Tensor& other) {
  const std::size_t num_bytes = static_cast<std::size_t>(one.num_elements()) * dtype_bytes(one.dtype);
  return one.shape == other.shape && std::memcmp(one.data, other.data, num_bytes) == 0;
}

void check_binding(const Bundle& bundle, const BackendOptions& options) {
  const auto host = open_ort_runner(bundle, kProvider, options);
  const auto bound = open_bound_ort_runner(bundle, kProvider, options);
  const std::vector<Tensor> expected = run_chain(*host, bundle.spec, false);
  for (int i = 0; i < 2; ++i) {
    const std::vector<Tensor> found = run_chain(*bound, bundle.spec, true);
    CHECK(are_equal(found[0], expected[0]) && are_equal(found[1], expected[1]));
  }
}

/// What an error says of a run of a graph with one output; nothing if it does not fail.
ErrorFacts facts_of(Runner& runner, const char* graph, const NamedTensors& inputs) {
  NamedTensors outputs = {{"noise", Tensor{"float32", {}}}};
  try {
    runner.run(graph, inputs, outputs);
  } catch (const Error& error) {
    return error.facts();
  }
  return {};
}

void check_failures(const Bundle& bundle, const BackendOptions& options) {
  const auto bound = open_bound_ort_runner(bundle, kProvider, options);
  const Tensor seed = make_tensor("int64", {}, std::vector<std::int64_t>{7});
  CHECK(facts_of(*bound, "noise", {{"seed", seed}}).found.find("onnxruntime failed in") != std::string::npos);
  CHECK(facts_of(*bound, "no_graph", {}).found.find("has no graph \"no_graph\"") != std::string::npos);
  bound->stop_runs();
  const NamedTensors good = {{"seed", seed}, {"shape", make_tensor("int64", {2}, std::vector<std::int64_t>{64, 64})}};
  const ErrorFacts stopped = facts_of(*bound, "noise", good);
  CHECK(stopped.found.find("onnxruntime failed in graph \"noise\" with seed [], shape [2]: ") == 0);
  CHECK(stopped.code == "backend.run" && stopped.hint.find("try a smaller size or fewer frames") == 0);
  bound->allow_runs();
  CHECK(facts_of(*bound, "noise", good).code.empty());
}

/// A model of one node without inputs, in ONNX's protocol buffers: IR version 8, opset 13.
std::string model_of_operator(const std::string& name) {
  const auto field = [](int number, const std::string& content) {
    return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(content.size())} + content;
  };
  const std::string output = field(1, "y") + field(2, field(1, std::string{8, 1}));
  const std::string graph = field(1, field(2, "y") + field(4, name)) + field(2, "g") + field(12, output);
  return std::string{8, 8} + field(7, graph) + field(8, std::string("\x0a\x00\x10\x0d", 4));
}

/// A file that is no graph, and one with an operator that ONNX Runtime lacks; the Python host says the same.
void check_graphs_that_cannot_be_loaded(const Bundle& bundle, const BackendOptions& options) {
  Bundle broken = bundle;
  broken.root = std::filesystem::temp_directory_path() / join_text("editverse_ort_test_", getpid());
  const std::filesystem::path file = broken.graph_path("noise");
  std::filesystem::create_directories(file.parent_path());
  const auto facts_with = [&](const std::string& content) {
    std::ofstream(file, std::ios::binary) << content;
    return facts_of(*open_ort_runner(broken, kProvider, options), "noise", {});
  };
  const ErrorFacts no_graph = facts_with("this is no graph");
  CHECK(no_graph.code == "backend.load" && no_graph.hint == "export the bundle again");
  CHECK(no_graph.found.find("cannot load graph \"noise\" (" + file.string()) != std::string::npos);
  const ErrorFacts unknown = facts_with(model_of_operator("NoSuchOperator"));
  CHECK(unknown.code == "backend.load" && unknown.hint.find("install a newer onnxruntime") == 0);
  CHECK(unknown.found.find("graph \"noise\" needs an operator that onnxruntime ") == 0);
  std::filesystem::remove_all(broken.root);
}

double held_mb() {
  long pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE)) / 1e6;
}

void decode_picture(Runner& runner, const Geometry& geometry, std::int64_t side) {
  const Tensor patches = make_tensor("float32", {1, side, side, geometry.patch_dim});
  const std::int64_t side_px = side * geometry.size_multiple();
  NamedTensors outputs = {{"frames", make_unset_tensor("uint8", {1, side_px, side_px, 3})}};
  runner.run("vae_decoder_first", {{"patches", patches}}, outputs);
}

/// Two runners decode a large picture one after the other: what the second needs is there already, and a graph that
/// is given back, and a runner that ends, give it back to the system.
void check_memory(const Bundle& bundle, const BackendOptions& options) {
  const Geometry& geometry = bundle.spec.geometry;
  auto one = open_ort_runner(bundle, kProvider, options), other = open_ort_runner(bundle, kProvider, options);
  for (Runner* runner : {one.get(), other.get()}) decode_picture(*runner, geometry, 2);
  const double before = held_mb();
  decode_picture(*one, geometry, 48);
  const double first = held_mb() - before;
  decode_picture(*other, geometry, 48);
  const double both = held_mb() - before;
  one->release("vae_decoder_first");
  const double released = held_mb() - before;
  one.reset();
  decode_picture(*other, geometry, 48);
  other.reset();
  const double ended = held_mb() - before;
  std::cout << "MB: " << first << " for one, " << both << " for both, " << released << " when one gave it back, "
            << ended << " at the end\n";
  CHECK(first > 100);  // 768x768 pixels
  CHECK(both < 1.25 * first);
  CHECK(released < first / 4);
  CHECK(ended < first / 4);
}

OrtApi saturating_api;  // ONNX Runtime's, on a processor that is not this one

OrtStatusPtr ORT_API_CALL run_and_saturate(OrtSession*, const OrtRunOptions*, const char* const*,
                                           const OrtValue* const*, std::size_t, const char* const*, std::size_t,
                                           OrtValue** outputs) noexcept {
  void* sums = nullptr;
  if (OrtStatusPtr status = saturating_api.GetTensorMutableData(outputs[0], &sums)) return status;
  std::fill_n(static_cast<std::int32_t*>(sums), 4 * 16, 262136);  // what Haswell's kernel gives
  return nullptr;
}

/// Sessions ask for exact sums of 8-bit products where the kernels saturate, and nowhere else.
void check_integers() {
  const OrtApi* const api = ort::load_library("").api;
  const auto env = ort::make_env(api);
  const ort::SharedArena arena(api, env.get());
  saturating_api = *api;
  saturating_api.Run = run_and_saturate;
  CHECK(ort::saturates_integers(&saturating_api, env.get()));
  for (const bool exact : {false, true}) {
    const auto options = ort::make_session_options(api, {kProvider}, 1, exact);
    int is_set = -1;
    ort::check(api, api->HasSessionConfigEntry(options.get(), "session.x64quantprecision", &is_set), "Has...");
    CHECK(is_set == (exact ? 1 : 0));
  }
  std::cout << "8-bit products saturate here: " << ort::saturates_integers(api, env.get()) << "\n";
}

/// The environment of ONNX Runtime is made without telemetry, and a caller's own choice is kept.
void check_telemetry() {
  const OrtApi* const api = ort::load_library("").api;
  unsetenv("ORT_DISABLE_TELEMETRY");
  const auto env = ort::make_env(api);
  CHECK(std::string(getenv("ORT_DISABLE_TELEMETRY")) == "1");
  setenv("ORT_DISABLE_TELEMETRY", "0", 1);
  const auto same = ort::make_env(api);
  CHECK(std::string(getenv("ORT_DISABLE_TELEMETRY")) == "0");
  setenv("ORT_DISABLE_TELEMETRY", "1", 1);
}

/// What ort-cuda asks of its provider; the Python host asks the same (OrtCudaOptions).
void check_cuda_options() {
  const std::vector<std::pair<std::string, std::string>> expected = {{"device_id", "2"},
                                                                     {"cudnn_conv_algo_search", "HEURISTIC"},
                                                                     {"arena_extend_strategy", "kSameAsRequested"},
                                                                     {"use_tf32", "0"}};
  CHECK(ort::cuda_provider_options(2) == expected);
}

/// A locale that groups digits: it takes the dots of a version for those between thousands.
struct GroupedDigits : std::numpunct<char> {
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\3"; }
};

/// A version is read in the same way whatever the application's locale is.
void check_versions() {
  const auto check_all = [] {
    CHECK(!ort::is_version_from("1.24.1", 1, 25) && !ort::is_version_from("1", 1, 25));
    CHECK(ort::is_version_from("1.25.0", 1, 25) && ort::is_version_from("1.32.0", 1, 25));
    CHECK(ort::is_version_from("2.0.0", 1, 25) && !ort::is_version_from("unknown", 1, 25));
  };
  check_all();
  const std::locale before = std::locale::global(std::locale(std::locale::classic(), new GroupedDigits));
  check_all();
  std::locale::global(before);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: ort_test BUNDLE [memory]\n";
    return 2;
  }
  const ev::Bundle bundle = ev::load_bundle(argv[1]);
  ev::BackendOptions options;
  options.num_threads = 1;
  if (argc > 2) {
    check_memory(bundle, options);
    return check::report();
  }
  check_versions();
  check_telemetry();
  check_integers();
  check_cuda_options();
  check_binding(bundle, options);
  check_failures(bundle, options);
  check_graphs_that_cannot_be_loaded(bundle, options);
  return check::report();
}
