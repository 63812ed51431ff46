// A call that begins while the process ends: lifetime_test. It is either waited for, or it does not begin.
// src/lifetime.cpp is compiled into this program, whose on_exit stands in for the C library's.
#include "lifetime.hpp"

#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "check.hpp"

namespace {

constexpr int kEnteredTooLate = 3;

std::atomic<bool> holds{false}, goes_on{true}, are_statics_destroyed{false};

void sleep_ms(int count) { std::this_thread::sleep_for(std::chrono::milliseconds(count)); }

/// As one of ONNX Runtime's, which calls use.
struct Static {
  ~Static() {
    are_statics_destroyed = true;
    sleep_ms(300);
  }
};

/// exit() waits for a lock that a thread holds, and a call that begins waits behind it. Then the lock is free.
[[noreturn]] void end_while_a_call_begins() {
  static const Static object;
  ev::wait_for_calls_at_exit();
  goes_on = false;
  std::thread([] { ev::wait_for_calls_at_exit(); }).detach();
  while (!holds) sleep_ms(1);
  std::thread([] {
    sleep_ms(150);
    const ev::Call call;
    for (int i = 0; i < 40; ++i, sleep_ms(10)) {
      if (are_statics_destroyed) _exit(kEnteredTooLate);
    }
  }).detach();
  std::thread([] {
    sleep_ms(400);
    goes_on = true;
  }).detach();
  std::exit(0);
}

}  // namespace

extern "C" int on_exit(void (*handler)(int, void*), void* argument) noexcept {
  if (!goes_on) {
    holds = true;
    while (!goes_on) sleep_ms(1);
    return -1;  // no more than the first is needed
  }
  using OnExit = int (*)(void (*)(int, void*), void*);
  return reinterpret_cast<OnExit>(dlsym(RTLD_NEXT, "on_exit"))(handler, argument);
}

int main() {
  const pid_t child = fork();
  if (child == 0) end_while_a_call_begins();
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  return check::report();
}
