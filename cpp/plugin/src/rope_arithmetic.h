// The arithmetic of kernel one: RMS norm of a head row and its rotation by a 4-axis position.
//
// Device and host compile the same text. Every operation is one that IEEE 754 rounds in one way only
// (no contraction left to the compiler, no approximate function), so both give the same bits.
// Source: section 3.2 of the paper; reference/model.py, rope_attention.
#pragma once

#include <math.h>
#include <string.h>

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define EDITVERSE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define EDITVERSE_HOST_DEVICE inline
#endif

namespace ev::plugin {

// 16-bit storage. The bits are what memory holds; all arithmetic is in float.
struct Float16 {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

namespace bits {

EDITVERSE_HOST_DEVICE std::uint32_t from_float(float value) {
  std::uint32_t word;
  memcpy(&word, &value, sizeof(word));
  return word;
}

EDITVERSE_HOST_DEVICE float to_float(std::uint32_t word) {
  float value;
  memcpy(&value, &word, sizeof(value));
  return value;
}

}  // namespace bits

EDITVERSE_HOST_DEVICE float float_from(float value) { return value; }

EDITVERSE_HOST_DEVICE float float_from(BFloat16 value) {
  return bits::to_float(static_cast<std::uint32_t>(value.bits) << 16);
}

EDITVERSE_HOST_DEVICE float float_from(Float16 value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity, or not a number
    return bits::to_float(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  }
  // 2^112 moves the exponent's bias from 15 to 127, for subnormal numbers too.
  return bits::to_float(sign | bits::from_float(bits::to_float(magnitude << 13) * 0x1p112f));
#endif
}

template <typename T>
EDITVERSE_HOST_DEVICE T rounded_to(float value);

template <>
EDITVERSE_HOST_DEVICE float rounded_to<float>(float value) {
  return value;
}

// Round to nearest, ties to even; what is not a number becomes 0x7fff, as the device's instruction has it.
template <>
EDITVERSE_HOST_DEVICE BFloat16 rounded_to<BFloat16>(float value) {
#if defined(__CUDA_ARCH__)
  return BFloat16{__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
  const std::uint32_t word = bits::from_float(value);
  if ((word & 0x7fffffffu) > 0x7f800000u) {
    return BFloat16{0x7fff};
  }
  return BFloat16{static_cast<std::uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16)};
#endif
}

template <>
EDITVERSE_HOST_DEVICE Float16 rounded_to<Float16>(float value) {
#if defined(__CUDA_ARCH__)
  return Float16{__half_as_ushort(__float2half_rn(value))};
#else
  const std::uint32_t word = bits::from_float(value);
  const auto sign = static_cast<std::uint16_t>((word >> 16) & 0x8000u);
  const std::uint32_t magnitude = word & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return Float16{0x7fff};
  }
  if (magnitude >= 0x477ff000u) {  // 65520 and beyond round to infinity
    return Float16{static_cast<std::uint16_t>(sign | 0x7c00u)};
  }
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 lets the hardware round to a multiple of 2^-24
    const std::uint32_t sum = bits::from_float(bits::to_float(magnitude) + 0.5f);
    return Float16{static_cast<std::uint16_t>(sign | (sum - 0x3f000000u))};
  }
  const std::uint32_t rebiased = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
  return Float16{static_cast<std::uint16_t>(sign | (rebiased >> 13))};
#endif
}

constexpr int kNumAxes = 4;
constexpr int kMaxHeadDim = 256;

// For each of the head_dim / 2 pairs of channels its axis and its frequency. Small enough to be an argument
// of the kernel, so it needs no memory of its own on the device.
struct RopeTable {
  float frequencies[kMaxHeadDim / 2];
  std::uint8_t axes[kMaxHeadDim / 2];
};

// The table of axes with axis_dims[i] channels (even, summing to head_dim <= kMaxHeadDim) and RoPE bases
// axis_thetas[i], NTK scaling applied: pair p of an axis turns by theta ** (-2 p / d) a step. Exponents are
// float, as the reference has them; the power is the double's, rounded once.
inline RopeTable rope_table(const std::int32_t axis_dims[kNumAxes], const float axis_thetas[kNumAxes]) {
  RopeTable table{};
  int pair = 0;
  for (int axis = 0; axis < kNumAxes; ++axis) {
    for (std::int32_t channel = 0; channel < axis_dims[axis]; channel += 2, ++pair) {
      const float exponent = static_cast<float>(channel) / static_cast<float>(axis_dims[axis]);
      const double power = pow(static_cast<double>(axis_thetas[axis]), -static_cast<double>(exponent));
      table.frequencies[pair] = static_cast<float>(power);
      table.axes[pair] = static_cast<std::uint8_t>(axis);
    }
  }
  return table;
}

struct Rotation {
  float cos;
  float sin;
};

// Cosine and sine of an angle in radians, both to 2^-23; |angle| up to 2^40.
//
// Not sincosf: the host's and the device's differ in the last place, and the device's keeps a slow path in
// local memory for large angles. The quarter turns are taken off in double, with pi / 2 in two parts; the
// rest, within pi / 4, goes through Taylor's series, whose first omitted term is below 2e-9.
EDITVERSE_HOST_DEVICE Rotation rotation_by(float angle) {
  const auto wide = static_cast<double>(angle);
  const double quarter_turns = rint(wide * 0x1.45f306dc9c883p-1);
  double rest = fma(-quarter_turns, 0x1.921fb54442d18p+0, wide);
  rest = fma(-quarter_turns, 0x1.1a62633145c07p-54, rest);
  const auto x = static_cast<float>(rest);
  const float square = x * x;

  float odd = fmaf(square, 1.0f / 362880.0f, -1.0f / 5040.0f);
  odd = fmaf(square, odd, 1.0f / 120.0f);
  odd = fmaf(square, odd, -1.0f / 6.0f);
  const float sine = fmaf(x * square, odd, x);

  float even = fmaf(square, -1.0f / 3628800.0f, 1.0f / 40320.0f);
  even = fmaf(square, even, -1.0f / 720.0f);
  even = fmaf(square, even, 1.0f / 24.0f);
  even = fmaf(square, even, -0.5f);
  const float cosine = fmaf(square, even, 1.0f);

  switch (static_cast<long long>(quarter_turns) & 3) {
    case 0: return {cosine, sine};
    case 1: return {-sine, cosine};
    case 2: return {-cosine, -sine};
    default: return {sine, -cosine};
  }
}

// The angle that the reference turns a pair by: position and frequency as floats, their product rounded.
template <typename Position>
EDITVERSE_HOST_DEVICE float rope_angle(Position position, float frequency) {
  return static_cast<float>(position) * frequency;
}

// 1 / sqrt(mean of the squares + epsilon).
EDITVERSE_HOST_DEVICE float inverse_rms(float sum_of_squares, int head_dim, float epsilon) {
  return 1.0f / sqrtf(sum_of_squares / static_cast<float>(head_dim) + epsilon);
}

struct ChannelPair {
  float first;
  float second;
};

// Turn channel i against channel i + head_dim / 2.
EDITVERSE_HOST_DEVICE ChannelPair rotated(ChannelPair x, Rotation by) {
  return {fmaf(-x.second, by.sin, x.first * by.cos), fmaf(x.first, by.sin, x.second * by.cos)};
}

}  // namespace ev::plugin
