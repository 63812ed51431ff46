// What the C interface makes of bad input: an error code and a text, never a crash. bad_input_test BUNDLE
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <limits>

#include "bench.hpp"

namespace {

namespace fs = std::filesystem;

void check_null_pointers() {
  Bench bench;
  ev_pipeline* none = nullptr;
  ev_pipeline* untouched = reinterpret_cast<ev_pipeline*>(&bench);
  ev_result* result = reinterpret_cast<ev_result*>(&bench);
  ev_request_info info;
  ev_request_info_init(&info, sizeof info);
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
  CHECK_FAILURE(ev_describe_request(nullptr, &bench.request, &info, nullptr), EV_ERROR_ARGUMENT, "pipeline is NULL");
  CHECK_FAILURE(ev_describe_request(bench.pipeline, nullptr, &info, nullptr), EV_ERROR_ARGUMENT, "ev_request is NULL");
  CHECK_FAILURE(ev_describe_request(bench.pipeline, &bench.request, nullptr, nullptr), EV_ERROR_ARGUMENT,
                "info is NULL");
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
  options = options_for(bundle.c_str());
  options.device = -2;
  CHECK_FAILURE(ev_open(&pipeline, &options), EV_ERROR_REQUEST, "device is -2; give a GPU's number");
  options = options_for(bundle.c_str());
  options.weight_budget_bytes = -2;
  CHECK_FAILURE(ev_open(&pipeline, &options), EV_ERROR_REQUEST, "weight_budget_bytes is -2; give 0 or more");
  options = options_for(bundle.c_str());
  options.plugin = "x.so";
  options.cuda_graphs = 1;
  CHECK_FAILURE(ev_open(&pipeline, &options), EV_ERROR_BACKEND, "no backend can be used");
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
  ev_request_info info;
  ev_request_info_init(&info, sizeof info);
  CHECK(ev_describe_request(bench.pipeline, &newer.known, &info, nullptr) == EV_OK);
  newer.added = 1;
  CHECK_FAILURE(ev_describe_request(bench.pipeline, &newer.known, &info, nullptr), EV_ERROR_ARGUMENT, "does not know");
  // From older headers: their init and their calls touch nothing beyond their struct.
  for (const std::size_t size : {offsetof(ev_options, tensorrt), offsetof(ev_options, release_graphs)}) {
    alignas(ev_options) unsigned char room[2 * sizeof(ev_options)];
    std::memset(room, 0x5a, sizeof room);
    auto* old_options = reinterpret_cast<ev_options*>(room);
    ev_options_init(old_options, size);
    CHECK(std::all_of(room + size, std::end(room), [](unsigned char byte) { return byte == 0x5a; }));
    const char* folder = bundle.c_str();
    std::memcpy(room + offsetof(ev_options, bundle), &folder, sizeof folder);
    CHECK(ev_open(&pipeline, old_options) == EV_OK);
    ev_close(&pipeline);
  }
  for (const std::size_t size : {offsetof(ev_request, negative_prompt), offsetof(ev_request, length)}) {
    // A request of an older header: what follows it is not read.
    alignas(ev_request) unsigned char room[2 * sizeof(ev_request)];
    std::memset(room, 0x5a, sizeof room);
    auto* old_request = reinterpret_cast<ev_request*>(room);
    ev_request_init(old_request, size);
    CHECK(std::all_of(room + size, std::end(room), [](unsigned char byte) { return byte == 0x5a; }));
    const char* prompt = "A red circle";
    std::memcpy(room + offsetof(ev_request, prompt), &prompt, sizeof prompt);
    ev_request_info_init(&info, sizeof info);
    CHECK(ev_describe_request(bench.pipeline, old_request, &info, nullptr) == EV_OK);
    ev_request_info_init(&info, offsetof(ev_request_info, num_windows));
    info.num_windows = 77;
    CHECK(ev_describe_request(bench.pipeline, old_request, &info, nullptr) == EV_OK && info.num_windows == 77);
    ev_request_info_init(&info, sizeof info);
  }
  // A newer header's init has its own fields set to zero.
  std::memset(&newer, 0x5a, sizeof newer);
  ev_request_init(&newer.known, sizeof newer);
  CHECK(newer.known.struct_size == sizeof newer && newer.added == 0 && newer.known.fps == EV_DEFAULT);
  // A size that no struct has is written nowhere.
  for (const std::size_t wrong : {std::size_t{0}, std::size_t{7}, std::size_t{5000}, SIZE_MAX}) {
    ev_request_info untouched = info;
    ev_request_info_init(&untouched, wrong);
    CHECK(untouched.struct_size == sizeof info);
  }
  info.struct_size = 1;
  CHECK_FAILURE(ev_describe_request(bench.pipeline, &bench.request, &info, nullptr), EV_ERROR_ARGUMENT,
                "ev_request_info has struct_size");
}

void check_requests() {
  Bench bench;
  const auto refuse = [&](const char* part, int code, const std::function<void(ev_request&)>& change) {
    const ev_request before = bench.request;
    change(bench.request);
    CHECK_FAILURE(bench.run(), code, part);
    ev_request_info info;
    CHECK_FAILURE(bench.describe(&info), code, part);
    bench.request = before;
  };
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  refuse("is empty", EV_ERROR_REQUEST, [](ev_request& r) { r.prompt = " \t"; });
  refuse("not UTF-8", EV_ERROR_REQUEST, [](ev_request& r) { r.prompt = "caf\xe9"; });
  refuse("no video1 is given", EV_ERROR_REQUEST, [](ev_request& r) { r.prompt = "<video1> x"; });
  refuse("schedule is \"none\"", EV_ERROR_REQUEST, [](ev_request& r) { r.schedule = "none"; });
  refuse("num_inference_steps is 0", EV_ERROR_REQUEST, [](ev_request& r) { r.num_inference_steps = 0; });
  refuse("num_inference_steps is -7", EV_ERROR_REQUEST, [](ev_request& r) { r.num_inference_steps = -7; });
  refuse("negative_prompt is given", EV_ERROR_REQUEST, [](ev_request& r) { r.negative_prompt = "blurred"; });
  refuse("ev_request.num_inference_steps is 10001; expected a whole number from 1 to 10000", EV_ERROR_REQUEST,
         [](ev_request& r) { r.num_inference_steps = 10001; });
  refuse("num_inference_steps is 2", EV_ERROR_REQUEST, [](ev_request& r) { r.num_inference_steps = INT32_MAX; });
  refuse("guidance_scale is -2", EV_ERROR_REQUEST, [](ev_request& r) { r.guidance_scale = -2; });
  refuse("guidance_scale is", EV_ERROR_REQUEST, [=](ev_request& r) { r.guidance_scale = nan; });
  refuse("seed is -1", EV_ERROR_REQUEST, [](ev_request& r) { r.seed = -1; });
  refuse("length is 'half'; expected one of whole, cut", EV_ERROR_REQUEST, [](ev_request& r) { r.length = "half"; });
  refuse("length is ''", EV_ERROR_REQUEST, [](ev_request& r) { r.length = ""; });
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
  // As data: names of this interface, each part by itself.
  bench.request.seed = -1;
  CHECK(bench.run() == EV_ERROR_REQUEST);
  CHECK_MSG(std::string(ev_last_error_json()) ==
                R"({"code":"request.option","field":"ev_request.seed","found":"-1",)"
                R"("expected":"a whole number from 0 to 9223372036854775807","hint":"",)"
                R"("message":"ev_request.seed is -1; expected a whole number from 0 to 9223372036854775807"})",
            ev_last_error_json());
  bench.request.seed = 0;
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
  CHECK_FAILURE(bench.run(), EV_ERROR_MEDIA, "found a start of 1000 s; the video ends at");
  bench.request.start_s = 0;
  const ev_input twice[] = {good, good};
  bench.request.inputs = twice;
  bench.request.num_inputs = 2;
  CHECK_FAILURE(bench.run(), EV_ERROR_REQUEST, "given twice");
  bench.request.num_inputs = SIZE_MAX;
  CHECK_FAILURE(bench.run(), EV_ERROR_ARGUMENT, "num_inputs is");
  if (ev_has_media() == 0) {
    ClipInput odd(bench, "video1", 1, size.width_px + 1, size.height_px);
    CHECK_FAILURE(bench.run(), EV_ERROR_MEDIA, "resize it to what ev_describe_request says");
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

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: bad_input_test BUNDLE\n";
    return 2;
  }
  bundle = argv[1];
  check_null_pointers();
  check_struct_sizes();
  check_requests();
  check_inputs();
  check_bundles();
  check_broken_graph();
  return check::report();
}
