// Launches of our own kernels; the only header of rope_launch.cu that host compilers read.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "rope_arithmetic.h"

namespace ev::plugin {

enum class StorageType { kFloat16, kBFloat16 };
enum class PositionType { kInt32, kInt64 };

// Pointers are the device's, laid out as RopeArguments of rope_kernel.h says.
struct RopeTensors {
  const void* q;
  const void* k;
  const void* q_norm;
  const void* k_norm;
  const void* positions;
  void* q_out;
  void* k_out;
};

// Queue kernel one on `stream`. tokens >= 1, head_dim a multiple of 16 up to kMaxHeadDim.
cudaError_t launch_normalize_and_rotate(StorageType storage, PositionType position_type, const RopeTensors& tensors,
                                        const RopeTable& table, std::int64_t tokens, std::int32_t num_heads,
                                        std::int32_t head_dim, float epsilon, cudaStream_t stream);

// Queue describe_packing on `stream`: offsets [num_sequences + 1] -> lengths [num_sequences],
// element_offsets [num_sequences + 1].
cudaError_t launch_describe_packing(const std::int32_t* offsets, std::int32_t num_sequences, std::int32_t inner,
                                    std::int32_t* lengths, std::int32_t* element_offsets, cudaStream_t stream);

}  // namespace ev::plugin
