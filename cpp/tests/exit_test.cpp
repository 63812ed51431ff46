// The end of a process, and of a pipeline, while requests run in other threads: exit_test BUNDLE. Each way to end is
// tried in processes of their own, at moments that are spread over a request.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <thread>
#include <vector>

#include "check.hpp"
#include "editverse_rt.hpp"

namespace {

namespace fs = std::filesystem;
using editverse::Options;
using editverse::Pipeline;
using editverse::Request;
using editverse::Result;

constexpr int kStatus = 7;
constexpr std::chrono::seconds kPrompt{5};

std::string bundle;

void sleep_ms(int duration_ms) { std::this_thread::sleep_for(std::chrono::milliseconds(duration_ms)); }

Request endless() {
  Request request("A red circle");
  request.num_frames = 1;
  request.num_inference_steps = 10000;
  return request;
}

/// Runs one request after another until one fails. Detached: it is running when the process ends.
void run_for_ever(Pipeline& pipeline) {
  std::thread([&pipeline] {
    try {
      while (true) pipeline.run(endless());
    } catch (const editverse::Error&) {
    }
  }).detach();
}

/// What a child process does; returning from it is returning from main.
using Ending = std::function<int(int repetition)>;

int exit_while_running(int repetition) {
  auto* const pipeline = new Pipeline(Options{bundle, "auto", "", 2});
  for (int i = 0; i < 2; ++i) run_for_ever(*pipeline);  // one runs, the other waits for its turn
  sleep_ms(repetition * 5);
  return kStatus;
}

/// Not while the first is opened: what ONNX Runtime sets up then is torn down before exit() comes to this library.
int exit_while_opening(int repetition) {
  {
    const Pipeline first(Options{bundle, "auto", "", 1});
  }
  std::thread([] {
    while (true) Pipeline(Options{bundle, "auto", "", 1});
  }).detach();
  sleep_ms(repetition * 10);
  return kStatus;
}

int exit_in_the_callback(int repetition) {
  auto* const pipeline = new Pipeline(Options{bundle, "auto", "", 2});
  auto* const other = new Pipeline(Options{bundle, "auto", "", 2});
  run_for_ever(*other);
  Request request = endless();
  request.on_step = [&](const editverse::Step& step) {
    if (step.step == repetition) std::exit(kStatus);
    return true;
  };
  pipeline->run(request);
  return 1;
}

int exit_with_a_static_pipeline(int repetition) {
  static Pipeline pipeline(Options{bundle, "auto", "", 2});  // destroyed by exit()
  run_for_ever(pipeline);
  sleep_ms(repetition * 5);
  return kStatus;
}

int exit_while_saving(int repetition) {
  Pipeline pipeline(Options{bundle, "auto", "", 2});
  Request request("A red circle");
  request.num_frames = 17;
  request.num_inference_steps = 1;
  auto* const result = new Result(pipeline.run(request));
  std::thread([result] {
    for (int i = 0; true; ++i) result->save(i % 2 == 0 ? "saved.mp4" : "saved.webm");
  }).detach();
  sleep_ms(repetition * 9);
  return kStatus;
}

int close_while_running(int repetition) {
  ev_options options;
  ev_options_init(&options, sizeof options);
  options.bundle = bundle.c_str();
  ev_pipeline* pipeline = nullptr;
  if (ev_open(&pipeline, &options) != EV_OK) return 1;
  std::atomic<int> num_cancelled{0};
  std::vector<std::thread> threads;
  std::atomic<bool> is_running{false};
  ev_pipeline* const shared = pipeline;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&, shared] {
      ev_request request;
      ev_request_init(&request, sizeof request);
      request.prompt = "A red circle";
      request.num_frames = 1;
      request.num_inference_steps = 10000;
      request.user_data = &is_running;
      request.callback = [](void* flag, const ev_step*) { return *static_cast<std::atomic<bool>*>(flag) = true, 0; };
      ev_result* result = nullptr;
      const int code = ev_run(shared, &request, &result);
      // A thread that comes to it late finds that it is closed.
      if ((code == EV_ERROR_CANCELLED || code == EV_ERROR_ARGUMENT) && result == nullptr) ++num_cancelled;
    });
  }
  while (!is_running) sleep_ms(1);
  sleep_ms(repetition);
  ev_close(&pipeline);
  for (std::thread& thread : threads) thread.join();
  ev_pipeline* again = shared;
  ev_close(&again);  // closed already: nothing happens
  ev_cancel(shared);
  return pipeline == nullptr && num_cancelled == 3 && ev_info(shared) == nullptr ? kStatus : 2;
}

int close_in_the_callback(int) {
  ev_options options;
  ev_options_init(&options, sizeof options);
  options.bundle = bundle.c_str();
  static ev_pipeline* pipeline = nullptr;
  if (ev_open(&pipeline, &options) != EV_OK) return 1;
  ev_request request;
  ev_request_init(&request, sizeof request);
  request.prompt = "A red circle";
  request.num_frames = 1;
  request.callback = [](void*, const ev_step*) { return ev_close(&pipeline), 0; };
  ev_result* result = nullptr;
  const int code = ev_run(pipeline, &request, &result);
  return code == EV_ERROR_CANCELLED && pipeline == nullptr && result == nullptr ? kStatus : 2;
}

/// Runs what a child does in a process of its own, in an empty folder, and says what is wrong with its end.
std::string problem_of(const Ending& ending, int repetition) {
  std::string folder = (fs::temp_directory_path() / "exit_test.XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) return "no folder";
  const auto begin = std::chrono::steady_clock::now();
  const pid_t child = fork();
  if (child == 0) {
    fs::current_path(folder);
    alarm(2 * kPrompt.count());     // rather than to hang
    std::exit(ending(repetition));  // what returning from main is
  }
  int status = 0;
  waitpid(child, &status, 0);
  std::string problem;
  if (WIFSIGNALED(status)) problem = "signal " + std::to_string(WTERMSIG(status));
  if (WIFEXITED(status) && WEXITSTATUS(status) != kStatus) problem = "status " + std::to_string(WEXITSTATUS(status));
  if (std::chrono::steady_clock::now() - begin > kPrompt) problem += " late";
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().filename().string().rfind("saved.", 0) != 0) problem += " left " + entry.path().string();
  }
  fs::remove_all(folder);
  return problem;
}

void check_ending(const char* name, int num_repetitions, const Ending& ending) {
  std::cout << name << std::endl;
  for (int repetition = 0; repetition < num_repetitions && check::failures < 3; ++repetition) {
    const std::string problem = problem_of(ending, repetition);
    CHECK_MSG(problem.empty(), std::string(name) + ", repetition " + std::to_string(repetition) + ": " + problem);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: exit_test BUNDLE\n";
    return 2;
  }
  bundle = fs::absolute(argv[1]).string();
  check_ending("exit while a request runs", 20, exit_while_running);
  check_ending("exit while a bundle is opened", 8, exit_while_opening);
  check_ending("exit in the callback", 8, exit_in_the_callback);
  check_ending("exit with a static pipeline", 8, exit_with_a_static_pipeline);
  if (ev_has_media() != 0) check_ending("exit while a result is saved", 8, exit_while_saving);
  check_ending("close while requests run", 20, close_while_running);
  check_ending("close in the callback", 2, close_in_the_callback);
  return check::report();
}
