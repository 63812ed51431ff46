// Checks that go on after a failure and are counted; a test program ends with report().
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

namespace check {

inline int failures = 0;
inline int checks = 0;

inline void that(bool holds, const std::string& what, const char* file, int line) {
  ++checks;
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
}

/// The exit status of the program. No check at all is a failure too.
inline int report() {
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 && checks > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace check

#define CHECK(condition) check::that((condition), #condition, __FILE__, __LINE__)
#define CHECK_MSG(condition, message) check::that((condition), (message), __FILE__, __LINE__)
