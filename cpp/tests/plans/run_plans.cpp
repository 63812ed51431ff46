// Runs requests on the plans of a bundle, over the stubs beside this file, and prints JSON of what came of it:
// run_plans BUNDLE BACKEND OPTIONS IN.rgb NUM_FRAMES WIDTH HEIGHT OUT.rgb REPEATS CANCEL_STEP, where OPTIONS is JSON
// by the names of editverse::Options.
#include <dlfcn.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "editverse_rt.hpp"

namespace {

using Json = nlohmann::json;

/// What a stub that the process has loaded says of itself.
Json ask(const char* library, const char* function) {
  void* const loaded = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
  void* const found = loaded == nullptr ? nullptr : dlsym(loaded, function);
  if (found == nullptr) return nullptr;
  char text[1024] = "";
  reinterpret_cast<void (*)(char*, std::size_t)>(found)(text, sizeof text);
  return Json::parse(text);
}

std::vector<std::uint8_t> read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 11) return 2;
  const int cancel_step = std::atoi(argv[10]);
  const std::vector<std::uint8_t> pixels = read_file(argv[4]);
  Json said;
  try {
    editverse::Options options{argv[1], argv[2]};
    options.num_threads = 1;
    const Json given = Json::parse(argv[3]);
    options.allow_unverified = given.value("allow_unverified", true);
    options.tensorrt = given.value("tensorrt", "");
    options.release_graphs = given.value("release_graphs", false);
    options.cuda_graphs = given.value("cuda_graphs", false);
    options.plugin = given.value("plugin", "");
    if (given.contains("device")) options.device = given["device"].get<int>();
    if (given.contains("weight_budget_bytes")) options.weight_budget_bytes = given["weight_budget_bytes"].get<long>();
    // Before the one that is looked at, others that are closed again.
    for (int i = 1; i < given.value("num_opened", 1); ++i) editverse::Pipeline before(options);
    editverse::Pipeline pipeline(options);
    said["info"] = Json::parse(pipeline.info());
    editverse::Request request("<video1> Make it night");
    request.add_frames("video1",
                       {pixels.data(), pixels.size(), std::atoi(argv[5]), std::atoi(argv[6]), std::atoi(argv[7])});
    request.num_inference_steps = 3;
    request.on_step = [&](const editverse::Step& step) {
      said["steps"].push_back(ask("libcuda.so.1", "stub_report"));
      if (step.step == cancel_step) pipeline.cancel();
      return true;
    };
    for (int i = 0; i < std::atoi(argv[9]); ++i) {
      const editverse::Result result = pipeline.run(request);
      std::ofstream(argv[8], std::ios::binary)
          .write(reinterpret_cast<const char*>(result.frames().data),
                 static_cast<std::streamsize>(result.frames().num_bytes));
      said["runs"].push_back(ask("libcuda.so.1", "stub_report"));
      said["plans"] = ask("libnvinfer.so.10", "stub_counts");
    }
  } catch (const editverse::Error& error) {
    said["error"] = ev_error_name(error.code());
    said["text"] = error.what();
    said["facts"] = Json::parse(ev_last_error_json());
  }
  said["closed"] = ask("libcuda.so.1", "stub_report");
  said["closed_plans"] = ask("libnvinfer.so.10", "stub_counts");
  std::printf("%s\n", said.dump().c_str());
  return 0;
}
