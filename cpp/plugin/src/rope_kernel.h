// Kernel one: QK-norm, if there are weights for it, and the 4-axis rotation of q and k, in one pass over both; and its
// launch geometry.
//
// A block is one token, a warp takes head rows warp, warp + warps, ... of q, then of k. A lane holds
// kPairs pairs of channels (i, i + head_dim / 2), so it reads and writes two vectors of kPairs values a row,
// neighbouring lanes neighbouring vectors. The angles belong to the token: a lane computes those of its pairs
// once, for all of its rows.
#pragma once

#include "rope_arithmetic.h"

#if defined(EDITVERSE_EMULATED_CUDA)
#include "emulated_cuda.h"
#endif

namespace ev::plugin {

constexpr int kLanes = 32;
constexpr int kMaxWarps = 4;

template <typename T, typename Position>
struct RopeArguments {
  const T* q;  // [tokens, num_heads * head_dim], as k, q_out and k_out
  const T* k;
  const T* q_norm;  // [head_dim], as k_norm; both null: q and k are only rotated
  const T* k_norm;
  const Position* positions;  // [tokens, kNumAxes]
  T* q_out;
  T* k_out;
  std::int32_t num_heads;
  std::int32_t head_dim;
  float epsilon;
  RopeTable table;
};

struct LaunchGeometry {
  std::uint32_t blocks;
  std::uint32_t warps;
  std::int32_t pairs_per_lane;
};

// Geometry for tokens >= 1, num_heads >= 1, and head_dim a multiple of 16 up to kMaxHeadDim: then half a row
// divides into whole vectors, and every vector is aligned to its own size if the row of the first token is.
inline LaunchGeometry launch_geometry(std::int64_t tokens, std::int32_t num_heads, std::int32_t head_dim) {
  const std::int32_t half = head_dim / 2;
  LaunchGeometry geometry{};
  geometry.blocks = static_cast<std::uint32_t>(tokens);
  geometry.warps = static_cast<std::uint32_t>(num_heads < kMaxWarps ? num_heads : kMaxWarps);
  geometry.pairs_per_lane = half <= kLanes ? 1 : half <= 2 * kLanes ? 2 : 4;
  return geometry;
}

constexpr int kPackingThreads = 128;

inline std::int32_t packing_blocks(std::int32_t num_sequences) {
  return num_sequences / kPackingThreads + 1;  // num_sequences + 1 offsets
}

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T values[kCount];
};

template <int kCount, typename T>
EDITVERSE_HOST_DEVICE Vector<T, kCount> load_vector(const T* source) {
#if defined(EDITVERSE_EMULATED_CUDA)
  emulated::note_read(source, sizeof(Vector<T, kCount>));
#endif
  return *reinterpret_cast<const Vector<T, kCount>*>(source);
}

template <int kCount, typename T>
EDITVERSE_HOST_DEVICE void store_vector(T* target, const Vector<T, kCount>& vector) {
#if defined(EDITVERSE_EMULATED_CUDA)
  emulated::note_write(target, sizeof(Vector<T, kCount>));
#endif
  *reinterpret_cast<Vector<T, kCount>*>(target) = vector;
}

#if defined(__CUDACC__) || defined(EDITVERSE_EMULATED_CUDA)

template <typename T, typename Position, int kPairs>
__global__ void __launch_bounds__(kLanes* kMaxWarps)
    normalize_and_rotate(const __grid_constant__ RopeArguments<T, Position> arguments) {
  const std::int32_t half = arguments.head_dim / 2;
  const std::int64_t token = blockIdx.x;
  const std::int32_t first_pair = static_cast<std::int32_t>(threadIdx.x) * kPairs;
  const bool active = first_pair < half;

  Rotation rotations[kPairs];
  if (active) {
    for (int i = 0; i < kPairs; ++i) {
      const Position* position = arguments.positions + token * kNumAxes + arguments.table.axes[first_pair + i];
      rotations[i] =
          rotation_by(rope_angle(load_vector<1>(position).values[0], arguments.table.frequencies[first_pair + i]));
    }
  }
  for (int tensor = 0; tensor < 2; ++tensor) {
    const T* source = tensor == 0 ? arguments.q : arguments.k;
    const T* norm = tensor == 0 ? arguments.q_norm : arguments.k_norm;
    T* target = tensor == 0 ? arguments.q_out : arguments.k_out;
    // The same for every lane, so all of them come to the shuffles below, or none.
    const bool has_norm = norm != nullptr;
    Vector<T, kPairs> first_norm{}, second_norm{};
    if (active && has_norm) {
      first_norm = load_vector<kPairs>(norm + first_pair);
      second_norm = load_vector<kPairs>(norm + half + first_pair);
    }
    for (std::int32_t head = static_cast<std::int32_t>(threadIdx.y); head < arguments.num_heads;
         head += static_cast<std::int32_t>(blockDim.y)) {
      const std::int64_t row = (token * arguments.num_heads + head) * arguments.head_dim;
      Vector<T, kPairs> first{}, second{};
      if (active) {
        first = load_vector<kPairs>(source + row + first_pair);
        second = load_vector<kPairs>(source + row + half + first_pair);
      }
      float scale = 1.0f;
      if (has_norm) {
        float sum = 0.0f;
        for (int i = 0; i < kPairs; ++i) {
          const float a = float_from(first.values[i]);
          const float b = float_from(second.values[i]);
          sum = fmaf(b, b, fmaf(a, a, sum));
        }
        // Every lane of the warp comes here, idle ones with zeros: `head` is the same for all of them.
        for (int distance = kLanes / 2; distance > 0; distance /= 2) {
          sum = sum + __shfl_xor_sync(0xffffffffu, sum, distance);
        }
        scale = inverse_rms(sum, arguments.head_dim, arguments.epsilon);
      }
      if (active) {
        for (int i = 0; i < kPairs; ++i) {
          ChannelPair normalized = {float_from(first.values[i]), float_from(second.values[i])};
          if (has_norm) {
            normalized = {normalized.first * scale * float_from(first_norm.values[i]),
                          normalized.second * scale * float_from(second_norm.values[i])};
          }
          const ChannelPair turned = rotated(normalized, rotations[i]);
          first.values[i] = rounded_to<T>(turned.first);
          second.values[i] = rounded_to<T>(turned.second);
        }
        store_vector(target + row + first_pair, first);
        store_vector(target + row + half + first_pair, second);
      }
    }
  }
}

// Sequences packed one after the other, as cuDNN wants to hear of them: sequence s has
// offsets[s + 1] - offsets[s] tokens, and its first element stands at offsets[s] * inner.
__global__ void describe_packing(const std::int32_t* offsets, std::int32_t num_sequences, std::int32_t inner,
                                 std::int32_t* lengths, std::int32_t* element_offsets) {
  const std::int32_t index = static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (index < num_sequences) {
    store_vector(lengths + index, Vector<std::int32_t, 1>{{load_vector<1>(offsets + index + 1).values[0] -
                                                           load_vector<1>(offsets + index).values[0]}});
  }
  if (index <= num_sequences) {
    store_vector(element_offsets + index, Vector<std::int32_t, 1>{{load_vector<1>(offsets + index).values[0] * inner}});
  }
}

#endif

}  // namespace ev::plugin
