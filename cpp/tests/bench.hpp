// What the programs share that test the C interface: the bundle, a pipeline with a request, failures and their texts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "check.hpp"
#include "editverse_rt.hpp"

inline std::string bundle;

/// Whether a call failed with a code and a text of one line that has `part` in it.
inline void check_failure(int code, int expected, const std::string& part, int line) {
  const std::string text = ev_last_error();
  check::that(code == expected && text.find(part) != std::string::npos && text.find('\n') == std::string::npos,
              std::string(ev_error_name(code)) + ": " + text + " (expected " + ev_error_name(expected) + " with \"" +
                  part + "\")",
              __FILE__, line);
}
#define CHECK_FAILURE(code, expected, part) check_failure((code), (expected), (part), __LINE__)

/// folder: kept as it is, so it must outlive the options.
inline ev_options options_for(const char* folder) {
  ev_options options;
  ev_options_init(&options, sizeof options);
  options.bundle = folder;
  options.num_threads = 1;
  return options;
}

/// A pipeline, the size of its smallest picture, and room for a request: what most checks begin with.
struct Bench {
  Bench() {
    const ev_options options = options_for(bundle.c_str());
    CHECK(ev_open(&pipeline, &options) == EV_OK);
    ev_request_init(&request, sizeof request);
    request.prompt = "A red circle";
    request.num_frames = 1;
    request.num_inference_steps = 1;
  }
  ~Bench() { ev_close(&pipeline); }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  int run() {
    ev_result* result = nullptr;
    const int code = ev_run(pipeline, &request, &result);
    check::that((code == EV_OK) == (result != nullptr), "a result is given if and only if the run succeeds", __FILE__,
                __LINE__);
    ev_result_free(&result);
    return code;
  }

  int describe(ev_request_info* info, ev_clip_size* sizes = nullptr) {
    ev_request_info_init(info, sizeof *info);
    return ev_describe_request(pipeline, &request, info, sizes);
  }

  ev_pipeline* pipeline = nullptr;
  ev_request request;
};

/// Adds a clip to a request.
struct ClipInput {
  ClipInput(Bench& bench, const char* name, int num_frames, int width, int height)
      : pixels(static_cast<std::size_t>(num_frames) * static_cast<std::size_t>(width * height * 3), 90) {
    ev_input_init(&input, sizeof input);
    input.name = name;
    input.frames = pixels.data();
    input.num_bytes = pixels.size();
    input.num_frames = num_frames;
    input.width_px = width;
    input.height_px = height;
    bench.request.inputs = &input;
    bench.request.num_inputs = 1;
    bench.request.prompt = "<video1> Make it night";
    bench.request.num_frames = EV_DEFAULT;
  }

  std::vector<std::uint8_t> pixels;
  ev_input input;
};

/// The size of what the bundle makes by default.
inline ev_clip_size default_size() {
  Bench bench;
  ev_request_info info;
  CHECK(bench.describe(&info) == EV_OK);
  return info.result;
}
