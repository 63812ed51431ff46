// How the plugin divides the memory that TensorRT lends it for a call.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ev::plugin {

// What an engine of cuDNN's attention may take; those that want more are not chosen. TensorRT asks once, for the
// largest shape, before any engine is known: so this is a bound and not what an engine says. It grows with the rows,
// since an engine that splits the keys joins its parts by a maximum and a sum (float32) of each row of each head; room
// for two parts, and 16 MiB for what does not depend on the shape.
constexpr std::size_t attention_workspace_bytes(std::int64_t tokens, std::int32_t num_heads) {
  return (std::size_t{16} << 20) + static_cast<std::size_t>(tokens) * static_cast<std::size_t>(num_heads) * 2 * 2 * 4;
}

// What the library's kernels expect of a tensor's first element.
constexpr std::size_t kAlignment = 256;

// Offsets in bytes, each a multiple of kAlignment, from a start that is aligned too.
struct Workspace {
  std::size_t q;
  std::size_t k;
  std::size_t lengths;
  std::size_t element_offsets;
  std::size_t attention;
  std::size_t num_bytes;
};

// For `elements` elements of two bytes in each of q and k, and num_sequences packed sequences (0: not packed).
inline Workspace divide_workspace(std::int64_t elements, std::int64_t num_sequences, std::size_t attention_bytes) {
  Workspace workspace{};
  std::size_t used = 0;
  const auto take = [&used](std::size_t num_bytes) {
    const std::size_t offset = used;
    used += (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  };
  workspace.q = take(static_cast<std::size_t>(elements) * 2);
  workspace.k = take(static_cast<std::size_t>(elements) * 2);
  if (num_sequences > 0) {
    workspace.lengths = take(static_cast<std::size_t>(num_sequences) * sizeof(std::int32_t));
    workspace.element_offsets = take(static_cast<std::size_t>(num_sequences + 1) * sizeof(std::int32_t));
  }
  workspace.attention = take(attention_bytes);
  workspace.num_bytes = used;
  return workspace;
}

}  // namespace ev::plugin
