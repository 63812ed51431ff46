// When each frame of a result is shown, in ticks of what its container can hold. The twin of
// editverse_rt/media/timing.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace ev {

/// The fraction with a denominator of at most 100,000 that is nearest to a rate from 0.001 to 1000: its numerator and
/// denominator. As limit_denominator of Python's Fraction; av_d2q would bound the numerator as well.
inline std::pair<int, int> fraction_of_rate(double fps) {
  constexpr std::int64_t kMaxDenominator = 100'000;
  constexpr int kMantissaBits = 53;
  int exponent = 0;
  auto number = static_cast<std::int64_t>(std::ldexp(std::frexp(fps, &exponent), kMantissaBits));
  int shift = kMantissaBits - exponent;  // the rate is number / 2^shift; 0.001 has the largest, 62
  for (; shift > 0 && number % 2 == 0; --shift) number /= 2;
  const std::int64_t denominator = std::int64_t{1} << shift;
  if (denominator <= kMaxDenominator) return {static_cast<int>(number), static_cast<int>(denominator)};
  // Its continued fraction, up to the last convergent p1 / q1 that the bound allows.
  std::int64_t p0 = 0, q0 = 1, p1 = 1, q1 = 0, rest = denominator;
  while (true) {
    const std::int64_t whole = number / rest;
    if (q1 > 0 && whole > (kMaxDenominator - q0) / q1) break;
    p0 = std::exchange(p1, p0 + whole * p1);
    q0 = std::exchange(q1, q0 + whole * q1);
    number = std::exchange(rest, number - whole * rest);
  }
  // It is one of the two nearest, the other lies on the other side of the rate.
  const std::int64_t steps = (kMaxDenominator - q0) / q1, p2 = p0 + steps * p1, q2 = q0 + steps * q1;
  const bool is_convergent = rest <= denominator / (2 * q2);
  return {static_cast<int>(is_convergent ? p1 : p2), static_cast<int>(is_convergent ? q1 : q2)};
}

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
