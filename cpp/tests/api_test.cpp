// The C interface and its C++ wrapper, in one thread: results, plans, errors. api_test BUNDLE [OPENINGS]
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <limits>
#include <vector>

#include "check.hpp"
#include "editverse_rt.hpp"

namespace {

namespace fs = std::filesystem;

std::string bundle;

/// Whether a call failed with a code and a text of one line that has `part` in it.
void check_failure(int code, int expected, const std::string& part, int line) {
  const std::string text = ev_last_error();
  check::that(code == expected && text.find(part) != std::string::npos && text.find('\n') == std::string::npos,
              std::string(ev_error_name(code)) + ": " + text + " (expected " + ev_error_name(expected) + " with \"" +
                  part + "\")",
              __FILE__, line);
}
#define CHECK_FAILURE(code, expected, part) check_failure((code), (expected), (part), __LINE__)

/// folder: kept as it is, so it must outlive the options.
ev_options options_for(const char* folder) {
  ev_options options;
  ev_options_init(&options, sizeof options);
  options.bundle = folder;
  options.num_threads = 1;
  return options;
}

/// A pipeline, a plan of its smallest picture, and room for a request: what most checks begin with.
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

  int plan(ev_plan_info* info, ev_clip_size* sizes = nullptr) {
    ev_plan_info_init(info, sizeof *info);
    return ev_plan(pipeline, &request, info, sizes);
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
ev_clip_size default_size() {
  Bench bench;
  ev_plan_info info;
  CHECK(bench.plan(&info) == EV_OK);
  return info.result;
}

void check_library() {
  CHECK(std::string(ev_version()) == "0.1.0");
  CHECK(ev_has_media() == 0 || ev_has_media() == 1);
  CHECK(std::string(ev_error_name(EV_OK)) == "OK");
  CHECK(std::string(ev_error_name(EV_ERROR_BUNDLE)) == "BundleError");
  CHECK(std::string(ev_error_name(-999)) == "unknown");
  CHECK(std::string(ev_last_error()).empty());
  ev_options_init(nullptr, 0);
  ev_input_init(nullptr, 0);
  ev_request_init(nullptr, 0);
  ev_plan_info_init(nullptr, 0);
  ev_frames_init(nullptr, 0);
}

void check_null_pointers() {
  Bench bench;
  ev_pipeline* none = nullptr;
  ev_pipeline* untouched = reinterpret_cast<ev_pipeline*>(&bench);
  ev_result* result = reinterpret_cast<ev_result*>(&bench);
  ev_plan_info info;
  ev_plan_info_init(&info, sizeof info);
  ev_frames frames;
  ev_frames_init(&frames, sizeof frames);
  ev_options options = options_for(bundle.c_str());
  CHECK_FAILURE(ev_open(nullptr, &options), EV_ERROR_ARGUMENT, "pipeline is NULL");
  CHECK_FAILURE(ev_open(&untouched, nullptr), EV_ERROR_ARGUMENT, "ev_options is NULL");
  CHECK(untouched == nullptr);
  options.bundle = nullptr;
  CHECK_FAILURE(ev_open(&none, &options), EV_ERROR_ARGUMENT, "ev_options.bundle is NULL");
  CHECK_FAILURE(ev_run(nullptr, &bench.request, &result), EV_ERROR_ARGUMENT, "pipeline is NULL");
  CHECK(result == nullptr);
  CHECK_FAILURE(ev_run(bench.pipeline, nullptr, &result), EV_ERROR_ARGUMENT, "ev_request is NULL");
  CHECK_FAILURE(ev_run(bench.pipeline, &bench.request, nullptr), EV_ERROR_ARGUMENT, "result is NULL");
  CHECK_FAILURE(ev_plan(nullptr, &bench.request, &info, nullptr), EV_ERROR_ARGUMENT, "pipeline is NULL");
  CHECK_FAILURE(ev_plan(bench.pipeline, nullptr, &info, nullptr), EV_ERROR_ARGUMENT, "ev_request is NULL");
  CHECK_FAILURE(ev_plan(bench.pipeline, &bench.request, nullptr, nullptr), EV_ERROR_ARGUMENT, "plan is NULL");
  CHECK_FAILURE(ev_result_frames(nullptr, &frames), EV_ERROR_ARGUMENT, "result is NULL");
  bench.request.prompt = nullptr;
  CHECK_FAILURE(bench.run(), EV_ERROR_ARGUMENT, "ev_request.prompt is NULL");
  bench.request.prompt = "x";
  bench.request.num_inputs = 1;
  CHECK_FAILURE(bench.run(), EV_ERROR_ARGUMENT, "ev_request.inputs is NULL");
  ev_close(nullptr);
  ev_close(&none);
  ev_cancel(nullptr);
  ev_result_free(nullptr);
  ev_result_free(&result);
  CHECK(ev_info(nullptr) == nullptr);
  CHECK(ev_result_notice(nullptr, 0) == nullptr);
}

void check_struct_sizes() {
  Bench bench;
  ev_pipeline* pipeline = nullptr;
  ev_options options = options_for(bundle.c_str());
  for (const std::size_t wrong : {std::size_t{0}, sizeof(ev_options) - 1, std::size_t{100000}, SIZE_MAX}) {
    options.struct_size = wrong;
    CHECK_FAILURE(ev_open(&pipeline, &options), EV_ERROR_ARGUMENT, "ev_options has struct_size");
  }
  bench.request.struct_size = 8;
  CHECK_FAILURE(bench.run(), EV_ERROR_ARGUMENT, "ev_request has struct_size 8");
  // From a newer header: a longer struct, whose new fields are zero, or not.
  struct {
    ev_request known;
    std::uint64_t added;
  } newer = {};
  ev_request_init(&newer.known, sizeof newer.known);
  newer.known.prompt = "A red circle";
  newer.known.struct_size = sizeof newer;
  ev_plan_info info;
  ev_plan_info_init(&info, sizeof info);
  CHECK(ev_plan(bench.pipeline, &newer.known, &info, nullptr) == EV_OK);
  newer.added = 1;
  CHECK_FAILURE(ev_plan(bench.pipeline, &newer.known, &info, nullptr), EV_ERROR_ARGUMENT, "does not know");
  // From an older header: its init and its calls touch nothing beyond its struct.
  struct {
    unsigned char known[offsetof(ev_options, allow_unverified)];
    unsigned char beyond[sizeof(ev_options)];
  } older;
  std::memset(&older, 0x5a, sizeof older);
  auto* old_options = reinterpret_cast<ev_options*>(older.known);
  ev_options_init(old_options, sizeof older.known);
  CHECK(std::all_of(std::begin(older.beyond), std::end(older.beyond), [](unsigned char byte) { return byte == 0x5a; }));
  const char* folder = bundle.c_str();
  std::memcpy(older.known + offsetof(ev_options, bundle), &folder, sizeof folder);
  CHECK(ev_open(&pipeline, old_options) == EV_OK);
  ev_close(&pipeline);
  // A newer header's init has its own fields set to zero.
  std::memset(&newer, 0x5a, sizeof newer);
  ev_request_init(&newer.known, sizeof newer);
  CHECK(newer.known.struct_size == sizeof newer && newer.added == 0 && newer.known.fps == EV_DEFAULT);
  // A size that no struct has is written nowhere.
  for (const std::size_t wrong : {std::size_t{0}, std::size_t{7}, std::size_t{5000}, SIZE_MAX}) {
    ev_plan_info untouched = info;
    ev_plan_info_init(&untouched, wrong);
    CHECK(untouched.struct_size == sizeof info);
  }
  info.struct_size = 1;
  CHECK_FAILURE(ev_plan(bench.pipeline, &bench.request, &info, nullptr), EV_ERROR_ARGUMENT,
                "ev_plan_info has struct_size");
}

void check_requests() {
  Bench bench;
  const auto refuse = [&](const char* part, int code, const std::function<void(ev_request&)>& change) {
    const ev_request before = bench.request;
    change(bench.request);
    CHECK_FAILURE(bench.run(), code, part);
    ev_plan_info info;
    CHECK_FAILURE(bench.plan(&info), code, part);
    bench.request = before;
  };
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  refuse("is empty", EV_ERROR_REQUEST, [](ev_request& r) { r.prompt = " \t"; });
  refuse("not UTF-8", EV_ERROR_REQUEST, [](ev_request& r) { r.prompt = "caf\xe9"; });
  refuse("no video1 is given", EV_ERROR_REQUEST, [](ev_request& r) { r.prompt = "<video1> x"; });
  refuse("schedule is \"fast\"", EV_ERROR_REQUEST, [](ev_request& r) { r.schedule = "fast"; });
  refuse("num_inference_steps is 0", EV_ERROR_REQUEST, [](ev_request& r) { r.num_inference_steps = 0; });
  refuse("num_inference_steps is -7", EV_ERROR_REQUEST, [](ev_request& r) { r.num_inference_steps = -7; });
  refuse("num_inference_steps is 2", EV_ERROR_REQUEST, [](ev_request& r) { r.num_inference_steps = INT32_MAX; });
  refuse("guidance_scale is -2", EV_ERROR_REQUEST, [](ev_request& r) { r.guidance_scale = -2; });
  refuse("guidance_scale is", EV_ERROR_REQUEST, [=](ev_request& r) { r.guidance_scale = nan; });
  refuse("seed is -1", EV_ERROR_REQUEST, [](ev_request& r) { r.seed = -1; });
  refuse("num_frames is 0", EV_ERROR_REQUEST, [](ev_request& r) { r.num_frames = 0; });
  refuse("num_frames is", EV_ERROR_REQUEST, [](ev_request& r) { r.num_frames = INT32_MAX; });
  refuse("only one of", EV_ERROR_REQUEST, [](ev_request& r) { r.width_px = 64; });
  refuse("size is 0x0", EV_ERROR_REQUEST, [](ev_request& r) { r.width_px = r.height_px = 0; });
  refuse("size is", EV_ERROR_REQUEST, [](ev_request& r) { r.width_px = r.height_px = INT32_MAX; });
  refuse("size is -5x-5", EV_ERROR_REQUEST, [](ev_request& r) { r.width_px = r.height_px = -5; });
  refuse("fps is 0", EV_ERROR_REQUEST, [](ev_request& r) { r.fps = 0; });
  refuse("fps is inf", EV_ERROR_REQUEST, [=](ev_request& r) { r.fps = infinity; });
  refuse("start_s is -1", EV_ERROR_REQUEST, [](ev_request& r) { r.start_s = -1; });
  refuse("start_s is 1", EV_ERROR_REQUEST, [](ev_request& r) { r.start_s = 1; });
  const std::string many(100000, 'x');
  refuse("tokens", EV_ERROR_REQUEST, [&](ev_request& r) { r.prompt = many.c_str(); });
}

void check_inputs() {
  Bench bench;
  const ev_clip_size size = default_size();
  ClipInput clip(bench, "video1", 5, size.width_px, size.height_px);
  const ev_input good = clip.input;
  const auto refuse = [&](const char* part, int code, const std::function<void(ev_input&)>& change) {
    clip.input = good;
    change(clip.input);
    CHECK_FAILURE(bench.run(), code, part);
  };
  refuse("name is NULL", EV_ERROR_ARGUMENT, [](ev_input& i) { i.name = nullptr; });
  refuse("called \"film\"", EV_ERROR_REQUEST, [](ev_input& i) { i.name = "film"; });
  refuse("called \"\"", EV_ERROR_REQUEST, [](ev_input& i) { i.name = ""; });
  refuse("ev_input has struct_size", EV_ERROR_ARGUMENT, [](ev_input& i) { i.struct_size = 3; });
  refuse("neither a path nor frames", EV_ERROR_ARGUMENT, [](ev_input& i) { i.frames = nullptr; });
  refuse("both a path and frames", EV_ERROR_ARGUMENT, [](ev_input& i) { i.path = "x.mp4"; });
  refuse("bytes", EV_ERROR_MEDIA, [](ev_input& i) { --i.num_bytes; });
  refuse("has 0 bytes", EV_ERROR_MEDIA, [](ev_input& i) { i.num_bytes = 0; });
  refuse("0 frames", EV_ERROR_MEDIA, [](ev_input& i) { i.num_frames = 0; });
  refuse("-3 frames", EV_ERROR_MEDIA, [](ev_input& i) { i.num_frames = -3; });
  refuse("2147483647 frames", EV_ERROR_MEDIA, [](ev_input& i) { i.num_frames = INT32_MAX; });
  refuse("px", EV_ERROR_MEDIA, [](ev_input& i) { i.width_px = 0; });
  refuse("px", EV_ERROR_MEDIA, [](ev_input& i) { i.height_px = INT32_MIN; });
  refuse("px", EV_ERROR_MEDIA, [](ev_input& i) { i.width_px = i.height_px = INT32_MAX; });
  refuse("strides", EV_ERROR_MEDIA, [](ev_input& i) { i.row_stride_bytes = 1; });
  refuse("", EV_ERROR_MEDIA, [](ev_input& i) { i.row_stride_bytes = SIZE_MAX; });
  refuse("strides", EV_ERROR_MEDIA, [](ev_input& i) { i.frame_stride_bytes = SIZE_MAX; });
  refuse("strides", EV_ERROR_MEDIA, [](ev_input& i) { i.frame_stride_bytes = 1; });
  clip.input = good;
  clip.input.name = "image1";
  bench.request.prompt = "<image1> x";
  CHECK_FAILURE(bench.run(), EV_ERROR_MEDIA, "these frames are a video");
  clip.input = good;
  bench.request.prompt = "<video1> x";
  bench.request.start_s = 1000;
  CHECK_FAILURE(bench.run(), EV_ERROR_MEDIA, "found a start of 1000 s");
  bench.request.start_s = 0;
  const ev_input twice[] = {good, good};
  bench.request.inputs = twice;
  bench.request.num_inputs = 2;
  CHECK_FAILURE(bench.run(), EV_ERROR_REQUEST, "given twice");
  bench.request.num_inputs = SIZE_MAX;
  CHECK_FAILURE(bench.run(), EV_ERROR_ARGUMENT, "num_inputs is");
  if (ev_has_media() == 0) {
    ClipInput odd(bench, "video1", 1, size.width_px + 1, size.height_px);
    CHECK_FAILURE(bench.run(), EV_ERROR_MEDIA, "resize it to what ev_plan says");
    odd.input.frames = nullptr;
    odd.input.path = "in.mp4";
    CHECK_FAILURE(bench.run(), EV_ERROR_MEDIA, "without FFmpeg");
  } else {
    ClipInput file(bench, "video1", 1, 1, 1);
    file.input.frames = nullptr;
    file.input.path = "no-such-file.mp4";
    CHECK_FAILURE(bench.run(), EV_ERROR_MEDIA, "no-such-file.mp4: no such file");
    file.input.path = "";
    CHECK_FAILURE(bench.run(), EV_ERROR_MEDIA, "empty path");
  }
}

void check_bundles() {
  ev_pipeline* pipeline = nullptr;
  ev_options options = options_for("/no/such/folder");
  CHECK_FAILURE(ev_open(&pipeline, &options), EV_ERROR_BUNDLE, "no such folder");
  options = options_for(bundle.c_str());
  options.num_threads = 0;
  CHECK_FAILURE(ev_open(&pipeline, &options), EV_ERROR_REQUEST, "num_threads is 0");
  options = options_for(bundle.c_str());
  options.backend = "abacus";
  CHECK_FAILURE(ev_open(&pipeline, &options), EV_ERROR_BACKEND, "there is no backend \"abacus\"");
  options.backend = "tensorrt-rtx";
  CHECK_FAILURE(ev_open(&pipeline, &options), EV_ERROR_BACKEND, "cannot be used");
  options.backend = "ort-cpu";
  options.onnxruntime = "/no/such/libonnxruntime.so";
  CHECK_FAILURE(ev_open(&pipeline, &options), EV_ERROR_BACKEND, "cannot be loaded");

  const fs::path folder = fs::temp_directory_path() / ("editverse-api-test-" + std::to_string(getpid()));
  const auto damage = [&](const char* part, int code, const std::function<void()>& change) {
    fs::remove_all(folder);
    fs::copy(bundle, folder, fs::copy_options::recursive);
    change();
    const std::string text = folder.string();
    const ev_options damaged = options_for(text.c_str());
    CHECK_FAILURE(ev_open(&pipeline, &damaged), code, part);
    CHECK(pipeline == nullptr);
  };
  const auto write = [&](const char* name, const std::string& text) { std::ofstream(folder / name) << text; };
  damage("no bundle.json", EV_ERROR_BUNDLE, [&] { fs::remove(folder / "bundle.json"); });
  damage("JSON", EV_ERROR_BUNDLE, [&] { write("bundle.json", ""); });
  damage("JSON", EV_ERROR_BUNDLE, [&] { write("bundle.json", "{\"name\": \"\xff\"}"); });
  damage("stands twice", EV_ERROR_BUNDLE, [&] { write("bundle.json", "{\"a\": 1, \"a\": 2}"); });
  damage("inside each other", EV_ERROR_BUNDLE, [&] { write("bundle.json", std::string(100000, '[')); });
  damage("an object", EV_ERROR_BUNDLE, [&] { write("bundle.json", "[]"); });
  damage("is missing", EV_ERROR_BUNDLE, [&] { fs::remove(folder / "tokenizer.model"); });
  damage("has 3 bytes", EV_ERROR_BUNDLE, [&] { write("noise.onnx", "abc"); });
  damage("was altered", EV_ERROR_BUNDLE, [&] {
    std::fstream file(folder / "transformer.onnx", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(1000);
    file.put('\x55');
    file.put('\xaa');
  });
  damage("is a link that leaves the bundle", EV_ERROR_BUNDLE, [&] {
    fs::remove(folder / "noise.onnx");
    fs::create_symlink(fs::absolute(fs::path(bundle) / "noise.onnx"), folder / "noise.onnx");
  });
  damage("is not in the list of files", EV_ERROR_BUNDLE, [&] {
    // A graph of this bundle names its weights by this name; dropped from the list, it is not verified.
    std::ifstream stream(folder / "bundle.json");
    std::string text((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
    const std::size_t at = text.find("\"vae_decoder.weights\"");
    text.replace(at, 21, "\"noise.copy\"");
    const std::size_t entry = text.rfind('{', at), end = text.find('}', at);
    const std::size_t noise = text.find("\"noise.onnx\"", text.find("\"files\""));
    const std::size_t from = text.rfind('{', noise), to = text.find('}', noise);
    std::string copy = text.substr(from, to - from + 1);
    copy.replace(copy.find("noise.onnx"), 10, "noise.copy");
    text.replace(entry, end - entry + 1, copy);
    write("bundle.json", text);
    fs::copy(folder / "noise.onnx", folder / "noise.copy");
  });
  fs::remove_all(folder);
}

/// A graph that ONNX Runtime cannot read, in a bundle whose hashes are right, is a failure of the run only.
void check_broken_graph() {
  const fs::path folder = fs::temp_directory_path() / ("editverse-broken-" + std::to_string(getpid()));
  fs::remove_all(folder);
  fs::copy(bundle, folder, fs::copy_options::recursive);
  std::ifstream stream(folder / "bundle.json");
  std::string text((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  // noise.onnx becomes the tokenizer's bytes: listed, of the right hash, and no graph.
  const std::size_t files = text.find("\"files\"");
  const auto entry = [&](const std::string& name) {
    const std::size_t at = text.find("\"" + name + "\"", files);
    return std::make_pair(text.rfind('{', at), text.find('}', at) + 1);
  };
  const auto [token_begin, token_end] = entry("tokenizer.model");
  std::string copy = text.substr(token_begin, token_end - token_begin);
  copy.replace(copy.find("tokenizer.model"), 15, "noise.onnx");
  const auto [begin, end] = entry("noise.onnx");
  text.replace(begin, end - begin, copy);
  std::ofstream(folder / "bundle.json") << text;
  fs::copy_file(folder / "tokenizer.model", folder / "noise.onnx", fs::copy_options::overwrite_existing);
  const std::string path = folder.string();
  const ev_options options = options_for(path.c_str());
  Bench bench;
  ev_close(&bench.pipeline);
  CHECK(ev_open(&bench.pipeline, &options) == EV_OK);
  CHECK_FAILURE(bench.run(), EV_ERROR_BACKEND, "cannot load graph \"noise\"");
  CHECK_FAILURE(bench.run(), EV_ERROR_BACKEND, "cannot load graph \"noise\"");
  fs::remove_all(folder);
}

void check_results() {
  Bench bench;
  const std::string info = ev_info(bench.pipeline);
  CHECK(info.find("\"backend\":\"ort-cpu\"") != std::string::npos);
  CHECK(info.find("tensorrt-rtx") != std::string::npos);
  const ev_clip_size size = default_size();
  ClipInput clip(bench, "video1", 9, size.width_px, size.height_px);
  ev_plan_info plan;
  ev_clip_size read = {};
  CHECK(bench.plan(&plan, &read) == EV_OK);
  CHECK(plan.result.num_frames == 9 && plan.result.width_px == size.width_px && plan.num_inference_steps == 1);
  CHECK(read.num_frames == 9 && read.width_px == size.width_px && read.height_px == size.height_px);
  // What is planned does not need the pixels.
  clip.input.frames = nullptr;
  clip.input.num_bytes = 0;
  CHECK(bench.plan(&plan) == EV_OK);
  clip.input.frames = clip.pixels.data();
  clip.input.num_bytes = clip.pixels.size();

  ev_result* result = nullptr;
  CHECK(ev_run(bench.pipeline, &bench.request, &result) == EV_OK);
  ev_frames frames;
  ev_frames_init(&frames, sizeof frames);
  CHECK(ev_result_frames(result, &frames) == EV_OK);
  CHECK(frames.size.num_frames == 9 && frames.size.width_px == size.width_px && frames.fps == plan.fps);
  CHECK(frames.num_bytes == clip.pixels.size());
  CHECK(ev_result_notice(result, 0) == nullptr);

  // The same pixels behind strides, at an odd address, give the same bytes.
  const std::size_t row = static_cast<std::size_t>(size.width_px) * 3, stride = row + 5;
  const std::size_t frame_stride = stride * static_cast<std::size_t>(size.height_px) + 11;
  std::vector<std::uint8_t> spread(frame_stride * 9 + 1, 0);
  for (std::size_t t = 0; t < 9; ++t) {
    for (std::size_t y = 0; y < static_cast<std::size_t>(size.height_px); ++y) {
      std::fill_n(spread.data() + 1 + t * frame_stride + y * stride, row, std::uint8_t{90});
    }
  }
  clip.input.frames = spread.data() + 1;
  clip.input.num_bytes = spread.size() - 1;
  clip.input.row_stride_bytes = stride;
  clip.input.frame_stride_bytes = frame_stride;
  ev_result* again = nullptr;
  CHECK(ev_run(bench.pipeline, &bench.request, &again) == EV_OK);
  ev_frames same;
  ev_frames_init(&same, sizeof same);
  CHECK(ev_result_frames(again, &same) == EV_OK);
  CHECK(same.num_bytes == frames.num_bytes && std::memcmp(same.data, frames.data, frames.num_bytes) == 0);
  ev_result_free(&again);

  // A result outlives its pipeline.
  ev_close(&bench.pipeline);
  CHECK(bench.pipeline == nullptr);
  CHECK(std::count(frames.data, frames.data + frames.num_bytes, frames.data[0]) > 0);
  ev_result_free(&result);
  CHECK(result == nullptr);
}

void check_notices() {
  Bench bench;
  const ev_clip_size size = default_size();
  ClipInput clip(bench, "video1", 7, size.width_px, size.height_px);
  ev_result* result = nullptr;
  CHECK(ev_run(bench.pipeline, &bench.request, &result) == EV_OK);
  const char* notice = ev_result_notice(result, 0);
  CHECK_MSG(notice != nullptr && std::string(notice).find("took frames 0-4 ") != std::string::npos,
            notice == nullptr ? "no notice" : notice);
  CHECK(ev_result_notice(result, 1) == nullptr);
  ev_result_free(&result);
}

void check_callbacks() {
  Bench bench;
  bench.request.num_inference_steps = 3;
  struct Seen {
    int calls = 0;
    int stop_after;
  } seen{0, 2};
  bench.request.user_data = &seen;
  bench.request.callback = [](void* user_data, const ev_step* step) {
    auto* self = static_cast<Seen*>(user_data);
    CHECK(step->struct_size == sizeof(ev_step) && step->step == self->calls && step->num_inference_steps == 3);
    return ++self->calls == self->stop_after ? 1 : 0;
  };
  CHECK_FAILURE(bench.run(), EV_ERROR_CANCELLED, "after step 2 of 3");
  CHECK(seen.calls == 2);
  seen = {0, 99};
  CHECK(bench.run() == EV_OK);
  CHECK(seen.calls == 3);

  bench.request.user_data = &bench;
  bench.request.callback = [](void* user_data, const ev_step*) {
    auto* self = static_cast<Bench*>(user_data);
    CHECK_FAILURE(self->run(), EV_ERROR_ARGUMENT, "from its own callback");
    ev_plan_info info;
    CHECK_FAILURE(self->plan(&info), EV_ERROR_ARGUMENT, "from its own callback");
    ev_cancel(self->pipeline);
    return 0;
  };
  CHECK_FAILURE(bench.run(), EV_ERROR_CANCELLED, "stopped by ev_cancel");
  bench.request.callback = [](void*, const ev_step*) -> int { throw std::runtime_error("out of the window"); };
  CHECK_FAILURE(bench.run(), EV_ERROR_CANCELLED, "out of the window");
  bench.request.callback = [](void*, const ev_step*) -> int { throw 3; };
  CHECK_FAILURE(bench.run(), EV_ERROR_CANCELLED, "threw an exception");
  bench.request.callback = nullptr;
  ev_cancel(bench.pipeline);  // stops nothing, as nothing runs
  CHECK(bench.run() == EV_OK);
}

/// Whether call() throws an Exception.
template <typename Exception, typename Call>
bool throws(const Call& call) {
  try {
    call();
  } catch (const Exception&) {
    return true;
  }
  return false;
}

void check_cpp() {
  using namespace editverse;
  static_assert(!std::is_copy_constructible_v<Pipeline> && std::is_nothrow_move_constructible_v<Pipeline>);
  static_assert(!std::is_copy_constructible_v<Result> && std::is_nothrow_move_constructible_v<Result>);
  CHECK(throws<BundleError>([] { Pipeline pipeline("/no/such/folder"); }));
  CHECK(throws<BackendError>([] { Pipeline pipeline(Options{bundle, "abacus", "", 1}); }));
  Pipeline first(Options{bundle, "auto", "", 1});
  Pipeline pipeline = std::move(first);
  Request request("A red circle");
  request.num_frames = 1;
  request.num_inference_steps = 2;
  const Plan plan = pipeline.plan(request);
  CHECK(plan.result.num_frames == 1 && plan.inputs.empty() && plan.num_tokens > 1);
  int steps = 0;
  request.on_step = [&](const Step& step) { return step.step == steps++; };
  const Result made = pipeline.run(request);
  CHECK(steps == 2 && made.frames().width_px == plan.result.width_px && made.notices().empty());
  request.on_step = [](const Step&) -> bool { throw std::out_of_range("mine"); };
  CHECK(throws<std::out_of_range>([&] { pipeline.run(request); }));
  request.on_step = [](const Step&) { return false; };
  CHECK(throws<RequestCancelled>([&] { pipeline.run(request); }));
  request.on_step = nullptr;
  request.seed = -1;
  CHECK(throws<RequestError>([&] { pipeline.run(request); }));
  request.seed = 0;
  Request edit("<image1> Make it night");
  edit.num_inference_steps = 1;
  edit.add_frames("image1", made.frames());
  CHECK(pipeline.plan(edit).inputs.at(0).width_px == plan.result.width_px);
  CHECK(pipeline.run(edit).frames().num_bytes == made.frames().num_bytes);
  edit.inputs[0].frames.num_bytes = 1;
  CHECK(throws<MediaError>([&] { pipeline.run(edit); }));
  CHECK(throws<Error>([&] { pipeline.run(edit); }));
}

long resident_bytes() {
  long pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

/// Opening, running and closing again and again holds no more memory at the end than after the first ones.
void check_growth(int openings) {
  long after_first = 0;
  for (int i = 0; i < openings; ++i) {
    Bench bench;
    CHECK(bench.run() == EV_OK);
    if (i == openings / 5) after_first = resident_bytes();
  }
  const long growth = resident_bytes() - after_first;
  // One leaked pipeline would be several megabytes; allocators settle within a few.
  CHECK_MSG(growth < 8L << 20, "grew by " + std::to_string(growth) + " bytes");
  std::printf("%d openings: grew by %ld bytes after the first fifth\n", openings, growth);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: api_test BUNDLE [OPENINGS]\n";
    return 2;
  }
  bundle = argv[1];
  if (argc > 2) {
    check_growth(std::atoi(argv[2]));
    return check::report();
  }
  check_library();
  check_null_pointers();
  check_struct_sizes();
  check_requests();
  check_inputs();
  check_bundles();
  check_broken_graph();
  check_results();
  check_notices();
  check_callbacks();
  check_cpp();
  return check::report();
}
