// Attention by cuDNN's fused SDPA, its graphs built once for each shape.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "recent_cache.h"
#include "rope_launch.h"

namespace ev::plugin {

// q, k, v and the output are [tokens, num_heads, head_dim]. With num_sequences 0 the tokens are one sequence;
// otherwise they are that many, packed one after the other, of which each attends to itself only.
struct AttentionShape {
  StorageType storage;
  std::int64_t tokens;
  std::int32_t num_heads;
  std::int32_t head_dim;
  std::int32_t num_sequences;

  auto key() const { return std::make_tuple(storage, tokens, num_heads, head_dim, num_sequences); }
  bool operator<(const AttentionShape& other) const { return key() < other.key(); }
};

struct AttentionTensors {
  const void* q;
  const void* k;
  const void* v;
  void* output;
  const std::int32_t* lengths;          // [num_sequences], null for one sequence
  const std::int32_t* element_offsets;  // [num_sequences + 1], null for one sequence
  void* workspace;                      // attention_workspace_bytes
};

class AttentionGraph;

// The graphs of all shapes and devices met, each compiled by cuDNN. Shared by the plugins of a network, since its
// blocks have one shape. Calls may come from several threads.
class AttentionGraphs {
 public:
  static constexpr std::size_t kCapacity = 64;

  AttentionGraphs();
  ~AttentionGraphs();
  AttentionGraphs(const AttentionGraphs&) = delete;
  AttentionGraphs& operator=(const AttentionGraphs&) = delete;

  // The graph of a shape on the current device; building one takes cuDNN a moment, finding it again does not.
  // Throws PluginError without cuDNN, without a device, or for a shape that cuDNN has no engine for.
  std::shared_ptr<const AttentionGraph> graph_for(const AttentionShape& shape);

  // Queues the attention on `stream`. May be captured in a CUDA graph. Throws PluginError.
  void run(const AttentionGraph& graph, const AttentionTensors& tensors, cudaStream_t stream);

 private:
  struct Device;

  Device& current_device();

  std::mutex mutex_;
  std::map<int, std::unique_ptr<Device>> devices_;
};

}  // namespace ev::plugin
