// The calls that are under way, so that the end of the process can wait for them.
//
// exit() destroys the static objects of every library while other threads still run. A thread that computes in ONNX
// Runtime at that moment would use what is gone, and the process would end by a signal in place of its exit status. So
// the first thing that exit() does is to stop what runs here and to wait until no thread is inside of this library;
// a thread that leaves it, or enters it, then sleeps until the process is gone.
#pragma once

#include <functional>

namespace ev {

/// A call of the library is under way in this thread for as long as one of these lives. When the process is ending,
/// the constructor and the destructor do not return, but in the thread that called exit().
class Call {
 public:
  Call() noexcept;
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
};

/// Within a Call, the caller's own code runs for as long as one of these lives: its callback.
class CallersCode {
 public:
  CallersCode() noexcept;
  ~CallersCode();
  CallersCode(const CallersCode&) = delete;
  CallersCode& operator=(const CallersCode&) = delete;
};

/// What stops calls that take long, for as long as it lives: called, in another thread, when the process is ending.
class StopAtExit {
 public:
  explicit StopAtExit(std::function<void()> stop);
  ~StopAtExit();
  StopAtExit(const StopAtExit&) = delete;
  StopAtExit& operator=(const StopAtExit&) = delete;

 private:
  std::function<void()> stop_;
};

/// Whether exit() was called. Long work that nothing stops asks for it now and then.
bool is_process_ending() noexcept;

/// Throws EV_ERROR_CANCELLED if exit() was called.
void check_process_ending();

/// Makes exit() wait for calls before it destroys the static objects that exist now. To be called again when a library
/// may have made more of them.
void wait_for_calls_at_exit();

}  // namespace ev
