// The C interface and its C++ wrapper, in one thread: results, sizes of requests, callbacks. api_test BUNDLE [OPENINGS]
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <type_traits>

#include "bench.hpp"

namespace {

void check_library() {
  CHECK(std::string(ev_version()) == "0.1.0");
  CHECK(ev_has_media() == 0 || ev_has_media() == 1);
  CHECK(std::string(ev_error_name(EV_OK)) == "OK");
  CHECK(std::string(ev_error_name(EV_ERROR_BUNDLE)) == "BundleError");
  CHECK(std::string(ev_error_name(-999)) == "unknown");
  CHECK(std::string(ev_last_error()).empty());
  CHECK(std::string(ev_last_error_json()).empty());
  ev_options_init(nullptr, 0);
  ev_input_init(nullptr, 0);
  ev_request_init(nullptr, 0);
  ev_request_info_init(nullptr, 0);
  ev_frames_init(nullptr, 0);
}

void check_results() {
  Bench bench;
  const std::string info = ev_info(bench.pipeline);
  CHECK(info.find("\"backend\":\"ort-cpu\"") != std::string::npos);
  CHECK(info.find("tensorrt-rtx") != std::string::npos);
  const ev_clip_size size = default_size();
  ClipInput clip(bench, "video1", 9, size.width_px, size.height_px);
  ev_request_info described;
  ev_clip_size read = {};
  CHECK(bench.describe(&described, &read) == EV_OK);
  CHECK(described.result.num_frames == 9 && described.result.width_px == size.width_px &&
        described.num_inference_steps == 1);
  CHECK(read.num_frames == 9 && read.width_px == size.width_px && read.height_px == size.height_px);
  // The sizes of a request do not depend on the pixels.
  clip.input.frames = nullptr;
  clip.input.num_bytes = 0;
  CHECK(bench.describe(&described) == EV_OK);
  clip.input.frames = clip.pixels.data();
  clip.input.num_bytes = clip.pixels.size();

  ev_result* result = nullptr;
  CHECK(ev_run(bench.pipeline, &bench.request, &result) == EV_OK);
  ev_frames frames;
  ev_frames_init(&frames, sizeof frames);
  CHECK(ev_result_frames(result, &frames) == EV_OK);
  CHECK(frames.size.num_frames == 9 && frames.size.width_px == size.width_px && frames.fps == described.fps);
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
  bench.request.length = "cut";
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
    ev_request_info info;
    CHECK_FAILURE(self->describe(&info), EV_ERROR_ARGUMENT, "from its own callback");
    ev_cancel(self->pipeline);
    return 0;
  };
  CHECK_FAILURE(bench.run(), EV_ERROR_CANCELLED, "cancelled by its caller");
  bench.request.callback = [](void*, const ev_step*) -> int { throw std::runtime_error("out of the window"); };
  CHECK_FAILURE(bench.run(), EV_ERROR_CANCELLED, "out of the window");
  bench.request.callback = [](void*, const ev_step*) -> int { throw 3; };
  CHECK_FAILURE(bench.run(), EV_ERROR_CANCELLED, "threw an exception");
  bench.request.callback = nullptr;
  ev_cancel(bench.pipeline);  // stops nothing, as nothing runs
  CHECK(bench.run() == EV_OK);
}

/// Graphs that are given back after their last run in a request are loaded again by the next: the same bytes.
void check_released_graphs() {
  using namespace editverse;
  const ev_clip_size size = default_size();
  std::vector<std::uint8_t> pixels(static_cast<std::size_t>(size.width_px * size.height_px) * 3 * 9, 90);
  const Frames clip{pixels.data(), pixels.size(), 9, size.width_px, size.height_px};
  Request request("<video1> Make it look like <image1>");
  request.add_frames("video1", clip);
  request.add_frames("image1", {pixels.data(), pixels.size() / 9, 1, size.width_px, size.height_px});
  request.num_inference_steps = 2;
  Options keeping{bundle}, releasing{bundle};
  keeping.num_threads = releasing.num_threads = 1;
  releasing.release_graphs = true;
  Pipeline kept(keeping), released(releasing);
  const Result expected = kept.run(request);
  const Frames wanted = expected.frames();
  for (int i = 0; i < 2; ++i) {
    const Result made = released.run(request);
    const Frames found = made.frames();
    CHECK(found.num_bytes == wanted.num_bytes && std::memcmp(found.data, wanted.data, wanted.num_bytes) == 0);
    request.on_step = [](const Step&) { return false; };
    try {
      released.run(request);
      CHECK(false);
    } catch (const RequestCancelled&) {
      // It goes on as before.
    }
    request.on_step = nullptr;
  }
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
  const RequestInfo info = pipeline.describe(request);
  CHECK(info.result.num_frames == 1 && info.inputs.empty() && info.num_tokens > 1);
  int steps = 0;
  request.on_step = [&](const Step& step) { return step.step == steps++; };
  const Result made = pipeline.run(request);
  CHECK(steps == 2 && made.frames().width_px == info.result.width_px && made.notices().empty());
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
  CHECK(pipeline.describe(edit).inputs.at(0).width_px == info.result.width_px);
  CHECK(pipeline.run(edit).frames().num_bytes == made.frames().num_bytes);
  edit.inputs[0].frames.num_bytes = 1;
  CHECK(throws<MediaError>([&] { pipeline.run(edit); }));
  CHECK(throws<Error>([&] { pipeline.run(edit); }));
}

/// Frames of each window by a callback are those of the whole result.
void check_windows() {
  using namespace editverse;
  Pipeline pipeline(Options{bundle, "auto", "", 1});
  Request request("A red circle");
  request.num_frames = 30;
  request.num_inference_steps = 1;
  const RequestInfo info = pipeline.describe(request);
  CHECK(info.num_windows == 2 && info.result.num_frames == 30);
  const Result whole = pipeline.run(request);
  const Frames frames = whole.frames();
  CHECK(frames.num_frames == 30);
  std::vector<std::uint8_t> taken;
  int next = 0;
  request.on_window = [&](const Window& window) {
    CHECK(window.window == next++ && window.num_windows == 2);
    CHECK(static_cast<std::size_t>(window.begin) * frames.num_bytes / 30 == taken.size());
    taken.insert(taken.end(), window.frames.data, window.frames.data + window.frames.num_bytes);
    return true;
  };
  const Result given = pipeline.run(request);
  CHECK(given.frames().data == nullptr && given.frames().num_bytes == 0 && given.frames().num_frames == 30);
  CHECK(taken == std::vector<std::uint8_t>(frames.data, frames.data + frames.num_bytes));
  CHECK(throws<ArgumentError>([&] { given.save("taken.png"); }));
  request.on_window = [](const Window&) -> bool { throw std::out_of_range("mine"); };
  CHECK(throws<std::out_of_range>([&] { pipeline.run(request); }));
  request.on_window = [&](const Window&) { return !throws<ArgumentError>([&] { pipeline.describe(request); }); };
  CHECK(throws<RequestCancelled>([&] { pipeline.run(request); }));
  request.length = "cut";
  CHECK(throws<RequestError>([&] { pipeline.run(request); }));
  request.length = "half";
  CHECK(throws<RequestError>([&] { pipeline.run(request); }));
}

long resident_bytes() {
  long pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

/// Opening, running and closing again and again holds no more memory at the end than after the first ones: the slope
/// of a straight line through what is held after each, without the first fifth, in which allocators settle.
void check_growth(int openings) {
  std::vector<long> held;
  for (int i = 0; i < openings; ++i) {
    Bench bench;
    CHECK(bench.run() == EV_OK);
    if (i >= openings / 5) held.push_back(resident_bytes());
  }
  const double count = static_cast<double>(held.size()), middle = (count - 1) / 2;
  double product = 0, square = 0;
  for (std::size_t i = 0; i < held.size(); ++i) {
    const double offset = static_cast<double>(i) - middle;
    product += offset * static_cast<double>(held[i]);
    square += offset * offset;
  }
  const double slope = product / square;
  // One leaked pipeline would be several megabytes an opening, one leaked session at least 100 kB.
  CHECK_MSG(slope < 50e3, "grew by " + std::to_string(slope) + " bytes an opening");
  std::printf("%d openings: %ld bytes held after %d, %ld after the last, slope %.0f bytes an opening\n", openings,
              held.front(), openings / 5 + 1, held.back(), slope);
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
  check_results();
  check_notices();
  check_callbacks();
  check_released_graphs();
  check_cpp();
  check_windows();
  return check::report();
}
