// When each frame of a result is shown, in ticks of what its container can hold. The twin of
// editverse_rt/media/timing.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

namespace ev {

/// Ticks from the beginning, and for how many.
struct Span {
  std::int64_t begin;
  std::int64_t duration;
};

/// The tick of each time, from the first on; half to even. times_s are in order.
inline std::vector<std::int64_t> ticks_of(const std::vector<double>& times_s, int clock) {
  std::vector<std::int64_t> ticks;
  ticks.reserve(times_s.size());
  for (const double time_s : times_s) ticks.push_back(std::llrint((time_s - times_s.front()) * clock));
  return ticks;
}

/// The span of each frame, nothing for those that are left out; ticks has one number more. A frame begins a little
/// later where the one before would be too short, and is left out where the next is due by then.
inline std::vector<std::optional<Span>> spans_of(const std::vector<std::int64_t>& ticks, std::int64_t shortest) {
  const std::size_t count = ticks.size() - 1;
  const std::int64_t end = std::max(ticks.back(), ticks.front() + shortest);
  std::vector<std::optional<Span>> spans(count);
  spans[0] = Span{ticks.front(), 0};
  std::size_t last = 0;
  for (std::size_t number = 1; number < count; ++number) {
    const std::int64_t begin = std::max(ticks[number], spans[last]->begin + shortest);
    if (begin >= ticks[number + 1] || begin + shortest > end) continue;
    spans[last]->duration = begin - spans[last]->begin;
    spans[number] = Span{begin, 0};
    last = number;
  }
  spans[last]->duration = end - spans[last]->begin;
  return spans;
}

}  // namespace ev
