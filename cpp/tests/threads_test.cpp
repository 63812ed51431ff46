// The promises about threads: threads_test BUNDLE
#include <atomic>
#include <chrono>
#include <cstring>
#include <iostream>
#include <thread>
#include <vector>

#include "check.hpp"
#include "editverse_rt.hpp"

namespace {

using editverse::Options;
using editverse::Pipeline;
using editverse::Request;
using editverse::Result;

std::string bundle;

Request picture(std::int64_t seed, int num_inference_steps) {
  Request request("A red circle");
  request.num_frames = 1;
  request.seed = seed;
  request.num_inference_steps = num_inference_steps;
  return request;
}

std::vector<std::uint8_t> bytes_of(const Result& result) {
  const editverse::Frames frames = result.frames();
  return {frames.data, frames.data + frames.num_bytes};
}

/// CHECK counts in plain integers, so threads keep what they find to themselves and the main thread checks.
void check_two_pipelines() {
  Pipeline one(Options{bundle, "auto", "", 1}), other(Options{bundle, "auto", "", 1});
  std::vector<std::uint8_t> first, second;
  std::thread thread([&] { first = bytes_of(one.run(picture(1, 2))); });
  second = bytes_of(other.run(picture(1, 2)));
  thread.join();
  CHECK(first == second && !first.empty());
}

void check_turns() {
  Pipeline pipeline(Options{bundle, "auto", "", 1});
  const std::vector<std::uint8_t> expected = bytes_of(pipeline.run(picture(1, 2)));
  std::atomic<int> inside{0}, most{0};
  std::vector<std::vector<std::uint8_t>> found(2);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < found.size(); ++i) {
    threads.emplace_back([&, i] {
      Request request = picture(1, 2);
      request.on_step = [&](const editverse::Step& step) {
        if (step.step == 0) most = std::max(most.load(), ++inside);
        if (step.step == 1) --inside;
        return true;
      };
      pipeline.describe(request);
      found[i] = bytes_of(pipeline.run(request));
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(found[0] == expected && found[1] == expected);
  CHECK(most == 1);
}

void check_cancel() {
  Pipeline pipeline(Options{bundle, "auto", "", 1});
  std::atomic<bool> started{false};
  Request request = picture(1, 10000);
  request.on_step = [&](const editverse::Step&) {
    started = true;
    return true;
  };
  std::thread thread([&] {
    while (!started) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    pipeline.cancel();
  });
  bool cancelled = false;
  try {
    pipeline.run(request);
  } catch (const editverse::RequestCancelled&) {
    cancelled = true;
  }
  thread.join();
  CHECK(cancelled);
  CHECK(!bytes_of(pipeline.run(picture(1, 1))).empty());
}

/// Cancelling at any moment, before a request, in a graph, or after, never breaks the next one.
void check_cancel_at_any_time() {
  Pipeline pipeline(Options{bundle, "auto", "", 1});
  const std::vector<std::uint8_t> expected = bytes_of(pipeline.run(picture(1, 1)));
  std::atomic<bool> over{false};
  std::thread thread([&] {
    while (!over) {
      pipeline.cancel();
      std::this_thread::sleep_for(std::chrono::milliseconds(3));
    }
  });
  int done = 0, cancelled = 0;
  for (int i = 0; i < 10; ++i) {
    try {
      done += bytes_of(pipeline.run(picture(1, 1))) == expected ? 1 : 0;
    } catch (const editverse::RequestCancelled&) {
      ++cancelled;
    }
  }
  over = true;
  thread.join();
  CHECK(done + cancelled == 10);
  CHECK(bytes_of(pipeline.run(picture(1, 1))) == expected);
}

/// The last error belongs to its thread.
void check_errors() {
  ev_pipeline* none = nullptr;
  ev_open(&none, nullptr);
  const std::string mine = ev_last_error();
  std::string before, after;
  std::thread thread([&] {
    before = ev_last_error();
    ev_options options;
    ev_options_init(&options, sizeof options);
    options.bundle = "/no/such/folder";
    ev_pipeline* pipeline = nullptr;
    ev_open(&pipeline, &options);
    after = ev_last_error();
  });
  thread.join();
  CHECK(before.empty() && after.find("no such folder") != std::string::npos);
  CHECK(mine == ev_last_error() && !mine.empty());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: threads_test BUNDLE\n";
    return 2;
  }
  bundle = argv[1];
  check_two_pipelines();
  check_turns();
  check_cancel();
  check_cancel_at_any_time();
  check_errors();
  return check::report();
}
