#include "lifetime.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

#include "error.hpp"

namespace ev {

namespace {

// A graph ends soon after it is stopped, but one that is being loaded cannot be stopped.
constexpr std::chrono::seconds kLongestWait{10};
// A few for each library at its first uses; later ones make no static objects any more.
constexpr int kMaxHandlers = 64;

struct State {
  std::mutex mutex;
  std::condition_variable changed;
  int num_calls = 0;
  int num_handlers = 0;
  std::vector<std::function<void()>*> stop_functions;
  std::atomic<bool> is_ending{false};
  std::thread::id ending_thread;
};

/// Never destroyed: threads may ask for it until the process is gone.
State& state() {
  static auto* const made = new State;
  return *made;
}

/// How many of the calls that are counted are this thread's.
thread_local int num_own_calls = 0;

/// Whether another thread than this one ends the process.
bool is_ended_by_another() {
  const State& known = state();
  return known.is_ending && known.ending_thread != std::this_thread::get_id();
}

/// Does not return when the process is ending, but in the thread that ends it.
void sleep_if_ending() {
  if (!is_ended_by_another()) return;
  while (true) std::this_thread::sleep_for(std::chrono::hours(1));
}

void begin_call() {
  {
    const std::lock_guard lock(state().mutex);
    // Under the lock: a call is either counted before the process begins to end, or it does not begin.
    if (!is_ended_by_another()) {
      ++state().num_calls;
      ++num_own_calls;
      return;
    }
  }
  sleep_if_ending();
}

void end_call() {
  {
    const std::lock_guard lock(state().mutex);
    --state().num_calls;
    --num_own_calls;
  }
  state().changed.notify_all();
  sleep_if_ending();
}

/// Returns whether all calls of other threads have ended.
bool stop_calls() {
  State& known = state();
  std::unique_lock lock(known.mutex);
  if (!known.is_ending) {
    known.ending_thread = std::this_thread::get_id();
    known.is_ending = true;
    // Under the lock, so that none is destroyed meanwhile.
    for (const std::function<void()>* stop : known.stop_functions) (*stop)();
  }
  return known.changed.wait_for(lock, kLongestWait, [&] { return known.num_calls <= num_own_calls; });
}

#if defined(__GLIBC__)
void at_exit(int status, void*) {
  if (stop_calls()) return;
  // Going on would destroy what other threads use. The status is the caller's all the same.
  std::fflush(nullptr);
  _exit(status);
}
bool add_handler() { return on_exit(at_exit, nullptr) == 0; }
#else
void at_exit() { stop_calls(); }
bool add_handler() { return std::atexit(at_exit) == 0; }
#endif

}  // namespace

Call::Call() noexcept { begin_call(); }
Call::~Call() { end_call(); }

CallersCode::CallersCode() noexcept { end_call(); }
CallersCode::~CallersCode() { begin_call(); }

StopAtExit::StopAtExit(std::function<void()> stop) : stop_(std::move(stop)) {
  const std::lock_guard lock(state().mutex);
  state().stop_functions.push_back(&stop_);
}

StopAtExit::~StopAtExit() {
  const std::lock_guard lock(state().mutex);
  auto& functions = state().stop_functions;
  functions.erase(std::find(functions.begin(), functions.end(), &stop_));
}

bool is_process_ending() noexcept { return state().is_ending; }

void check_process_ending() {
  if (is_process_ending()) throw Error(EV_ERROR_CANCELLED).found("stopped, because the process is ending");
}

void wait_for_calls_at_exit() {
  const std::lock_guard lock(state().mutex);
  if (state().num_handlers < kMaxHandlers && add_handler()) ++state().num_handlers;
}

}  // namespace ev
