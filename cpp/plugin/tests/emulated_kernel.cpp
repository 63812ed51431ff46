// Kernel one's source and its arithmetic, compiled for the host, behind a C ABI that tests call with ctypes.
#define EDITVERSE_EMULATED_CUDA 1
#include "rope_kernel.h"

#include <algorithm>
#include <cstddef>
#include <string>

namespace {

using namespace ev::plugin;

template <typename T>
RopeArguments<T, std::int64_t> arguments_of(const void* const* inputs, void* const* outputs) {
  RopeArguments<T, std::int64_t> arguments{};
  arguments.q = static_cast<const T*>(inputs[0]);
  arguments.k = static_cast<const T*>(inputs[1]);
  arguments.q_norm = static_cast<const T*>(inputs[2]);
  arguments.k_norm = static_cast<const T*>(inputs[3]);
  arguments.positions = static_cast<const std::int64_t*>(inputs[4]);
  arguments.q_out = static_cast<T*>(outputs[0]);
  arguments.k_out = static_cast<T*>(outputs[1]);
  return arguments;
}

template <typename T>
void run(const void* const* inputs, void* const* outputs, std::uint32_t* const* counts, std::int64_t tokens,
         std::int32_t num_heads, std::int32_t head_dim, const std::int32_t* axis_dims, const float* axis_thetas,
         float epsilon) {
  auto arguments = arguments_of<T>(inputs, outputs);
  arguments.num_heads = num_heads;
  arguments.head_dim = head_dim;
  arguments.epsilon = epsilon;
  arguments.table = rope_table(axis_dims, axis_thetas);

  const auto dim = static_cast<std::size_t>(head_dim);
  const std::size_t elements = static_cast<std::size_t>(tokens) * static_cast<std::size_t>(num_heads) * dim;
  emulated::watch(inputs[0], elements * sizeof(T), sizeof(T), counts[0], nullptr);
  emulated::watch(inputs[1], elements * sizeof(T), sizeof(T), counts[1], nullptr);
  for (int norm = 2; norm < 4; ++norm) {
    if (inputs[norm] != nullptr) emulated::watch(inputs[norm], dim * sizeof(T), sizeof(T), counts[norm], nullptr);
  }
  emulated::watch(inputs[4], static_cast<std::size_t>(tokens) * kNumAxes * 8, 8, counts[4], nullptr);
  emulated::watch(outputs[0], elements * sizeof(T), sizeof(T), nullptr, counts[5]);
  emulated::watch(outputs[1], elements * sizeof(T), sizeof(T), nullptr, counts[6]);

  const LaunchGeometry geometry = launch_geometry(tokens, num_heads, head_dim);
  const emulated::Index block{kLanes, geometry.warps, 1};
  switch (geometry.pairs_per_lane) {
    case 1:
      emulated::launch(geometry.blocks, block, [&] { normalize_and_rotate<T, std::int64_t, 1>(arguments); });
      break;
    case 2:
      emulated::launch(geometry.blocks, block, [&] { normalize_and_rotate<T, std::int64_t, 2>(arguments); });
      break;
    default: emulated::launch(geometry.blocks, block, [&] { normalize_and_rotate<T, std::int64_t, 4>(arguments); });
  }
  emulated::forget_watches();
}

void write_error(char* error, std::size_t capacity) {
  const std::string message = emulated::take_error();
  const std::size_t length = std::min(message.size(), capacity - 1);
  message.copy(error, length);
  error[length] = '\0';
}

}  // namespace

extern "C" {

// dtype: 0 float, 1 fp16, 2 bf16. inputs: q, k, q_norm, k_norm (or null), positions (int64); outputs: q, k.
// counts: an array of as many elements as the tensor has for each of the inputs, then of the outputs: how
// often each was read, or written. `error` is left empty if the kernel ran to its end.
void run_normalize_and_rotate(int dtype, const void* const* inputs, void* const* outputs, std::uint32_t* const* counts,
                              std::int64_t tokens, std::int32_t num_heads, std::int32_t head_dim,
                              const std::int32_t* axis_dims, const float* axis_thetas, float epsilon, char* error,
                              std::size_t capacity) {
  auto* const chosen = dtype == 0 ? run<float> : dtype == 1 ? run<Float16> : run<BFloat16>;
  chosen(inputs, outputs, counts, tokens, num_heads, head_dim, axis_dims, axis_thetas, epsilon);
  write_error(error, capacity);
}

void run_describe_packing(const std::int32_t* offsets, std::int32_t num_sequences, std::int32_t inner,
                          std::int32_t* lengths, std::int32_t* element_offsets, std::uint32_t* const* counts,
                          char* error, std::size_t capacity) {
  const auto count = static_cast<std::size_t>(num_sequences);
  emulated::watch(offsets, (count + 1) * 4, 4, counts[0], nullptr);
  emulated::watch(lengths, count * 4, 4, nullptr, counts[1]);
  emulated::watch(element_offsets, (count + 1) * 4, 4, nullptr, counts[2]);
  const auto blocks = static_cast<std::uint32_t>(packing_blocks(num_sequences));
  emulated::launch(blocks, {kPackingThreads, 1, 1},
                   [&] { describe_packing(offsets, num_sequences, inner, lengths, element_offsets); });
  emulated::forget_watches();
  write_error(error, capacity);
}

// One lane of a warp leaves before the shuffle, then an unaligned read: what the harness has to notice.
void run_broken_kernel(int kind, char* error, std::size_t capacity) {
  static const float values[2] = {1.0f, 2.0f};
  static std::uint32_t reads[2];
  emulated::watch(values, sizeof(values), sizeof(float), reads, nullptr);
  emulated::launch(1, {kLanes, 1, 1}, [&] {
    if (kind == 0 && threadIdx.x != 5) __shfl_xor_sync(0xffffffffu, 1.0f, 1);
    if (kind == 1) load_vector<1>(values + 2);
    if (kind == 2) emulated::note_read(reinterpret_cast<const char*>(values) + 2, 4);
    if (kind == 3) emulated::note_write(const_cast<float*>(values), 4);
  });
  emulated::forget_watches();
  write_error(error, capacity);
}

void geometry_of(std::int64_t tokens, std::int32_t num_heads, std::int32_t head_dim, std::int64_t* geometry) {
  const LaunchGeometry found = launch_geometry(tokens, num_heads, head_dim);
  geometry[0] = found.blocks;
  geometry[1] = found.warps;
  geometry[2] = found.pairs_per_lane;
}

void rotations_by(const float* angles, std::size_t count, float* cosines, float* sines) {
  for (std::size_t i = 0; i < count; ++i) {
    const Rotation rotation = rotation_by(angles[i]);
    cosines[i] = rotation.cos;
    sines[i] = rotation.sin;
  }
}

void frequencies_of(const std::int32_t* axis_dims, const float* axis_thetas, float* frequencies, std::uint8_t* axes) {
  const RopeTable table = rope_table(axis_dims, axis_thetas);
  std::copy(std::begin(table.frequencies), std::end(table.frequencies), frequencies);
  std::copy(std::begin(table.axes), std::end(table.axes), axes);
}

void fp16_from_float(const float* values, std::size_t count, std::uint16_t* rounded) {
  for (std::size_t i = 0; i < count; ++i) rounded[i] = rounded_to<Float16>(values[i]).bits;
}

void bf16_from_float(const float* values, std::size_t count, std::uint16_t* rounded) {
  for (std::size_t i = 0; i < count; ++i) rounded[i] = rounded_to<BFloat16>(values[i]).bits;
}

void float_from_fp16(const std::uint16_t* values, std::size_t count, float* widened) {
  for (std::size_t i = 0; i < count; ++i) widened[i] = float_from(Float16{values[i]});
}

void float_from_bf16(const std::uint16_t* values, std::size_t count, float* widened) {
  for (std::size_t i = 0; i < count; ++i) widened[i] = float_from(BFloat16{values[i]});
}

}  // extern "C"
