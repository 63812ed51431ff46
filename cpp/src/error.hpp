// The error that everything below the C interface throws, and how its texts are put together.
#pragma once

#include <locale>
#include <sstream>
#include <stdexcept>
#include <string>

#include "editverse_rt.h"

namespace ev {

/// A failure that the caller can act on: one of the EV_ERROR_* codes and one line.
class Error : public std::runtime_error {
 public:
  Error(int code, const std::string& text) : std::runtime_error(text), code_(code) {}
  int code() const { return code_; }

 private:
  int code_;
};

/// Numbers appear as printf's %g shows them, as in the Python host.
template <typename... Parts>
std::string join_text(const Parts&... parts) {
  std::ostringstream text;
  text.imbue(std::locale::classic());  // an application may have set another one globally
  (text << ... << parts);
  return text.str();
}

template <typename... Parts>
[[noreturn]] void fail(int code, const Parts&... parts) {
  throw Error(code, join_text(parts...));
}

}  // namespace ev
