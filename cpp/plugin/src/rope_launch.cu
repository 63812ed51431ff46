#include "rope_launch.h"

#include "rope_kernel.h"

namespace ev::plugin {

namespace {

template <typename T, typename Position>
cudaError_t launch(const RopeTensors& tensors, const RopeTable& table, std::int64_t tokens, std::int32_t num_heads,
                   std::int32_t head_dim, float epsilon, cudaStream_t stream) {
  const RopeArguments<T, Position> arguments = {static_cast<const T*>(tensors.q),
                                                static_cast<const T*>(tensors.k),
                                                static_cast<const T*>(tensors.q_norm),
                                                static_cast<const T*>(tensors.k_norm),
                                                static_cast<const Position*>(tensors.positions),
                                                static_cast<T*>(tensors.q_out),
                                                static_cast<T*>(tensors.k_out),
                                                num_heads,
                                                head_dim,
                                                epsilon,
                                                table};
  const LaunchGeometry geometry = launch_geometry(tokens, num_heads, head_dim);
  const dim3 block(kLanes, geometry.warps);
  switch (geometry.pairs_per_lane) {
    case 1: normalize_and_rotate<T, Position, 1><<<geometry.blocks, block, 0, stream>>>(arguments); break;
    case 2: normalize_and_rotate<T, Position, 2><<<geometry.blocks, block, 0, stream>>>(arguments); break;
    default: normalize_and_rotate<T, Position, 4><<<geometry.blocks, block, 0, stream>>>(arguments);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_normalize_and_rotate(StorageType storage, PositionType position_type, const RopeTensors& tensors,
                                        const RopeTable& table, std::int64_t tokens, std::int32_t num_heads,
                                        std::int32_t head_dim, float epsilon, cudaStream_t stream) {
  const bool half = storage == StorageType::kFloat16;
  auto* const chosen = position_type == PositionType::kInt64
                           ? (half ? launch<Float16, std::int64_t> : launch<BFloat16, std::int64_t>)
                           : (half ? launch<Float16, std::int32_t> : launch<BFloat16, std::int32_t>);
  return chosen(tensors, table, tokens, num_heads, head_dim, epsilon, stream);
}

cudaError_t launch_describe_packing(const std::int32_t* offsets, std::int32_t num_sequences, std::int32_t inner,
                                    std::int32_t* lengths, std::int32_t* element_offsets, cudaStream_t stream) {
  describe_packing<<<packing_blocks(num_sequences), kPackingThreads, 0, stream>>>(offsets, num_sequences, inner,
                                                                                  lengths, element_offsets);
  return cudaGetLastError();
}

}  // namespace ev::plugin
