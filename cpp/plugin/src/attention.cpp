#include "attention.h"

#include <cudnn_frontend.h>

#include <cmath>
#include <string>
#include <unordered_map>

#include "cudnn_library.h"
#include "rope_options.h"
#include "workspace.h"

namespace ev::plugin {

namespace graphs = cudnn_frontend::graph;

namespace {

enum Uid : std::int64_t { kQ = 1, kK, kV, kOutput, kLengths, kElementOffsets };

void check(cudnn_frontend::error_t error, const std::string& doing) {
  if (error.is_bad()) {
    throw PluginError("cuDNN " + std::to_string(cudnnGetVersion()) + " cannot " + doing + ": " + error.get_message());
  }
}

void check(cudnnStatus_t status, const std::string& doing) {
  if (status != CUDNN_STATUS_SUCCESS) {
    throw PluginError("cuDNN " + std::to_string(cudnnGetVersion()) + " cannot " + doing + ": " +
                      cudnnGetErrorString(status));
  }
}

std::string written(const AttentionShape& shape) {
  return std::to_string(shape.tokens) + " tokens, " + std::to_string(shape.num_heads) + " heads of " +
         std::to_string(shape.head_dim) + (shape.storage == StorageType::kFloat16 ? ", fp16" : ", bf16");
}

std::unique_ptr<graphs::Graph> attention_graph(const AttentionShape& shape) {
  const bool packed = shape.num_sequences > 0;
  const std::int64_t batch = packed ? shape.num_sequences : 1;
  const std::int64_t heads = shape.num_heads, dim = shape.head_dim, tokens = shape.tokens;
  // cuDNN's order of axes is batch, head, token, channel; in memory heads lie inside a token. How long the
  // longest of the packed sequences is, only the device knows: all of the tokens bound it.
  const std::vector<std::int64_t> dims = {batch, heads, tokens, dim};
  const std::vector<std::int64_t> strides = {tokens * heads * dim, dim, heads * dim, 1};

  auto graph = std::make_unique<graphs::Graph>();
  graph
      ->set_io_data_type(shape.storage == StorageType::kFloat16 ? cudnn_frontend::DataType_t::HALF
                                                                : cudnn_frontend::DataType_t::BFLOAT16)
      .set_intermediate_data_type(cudnn_frontend::DataType_t::FLOAT)
      .set_compute_data_type(cudnn_frontend::DataType_t::FLOAT);

  auto counts = [&](Uid uid, const char* name, std::int64_t count) {
    return graph->tensor(graphs::Tensor_attributes()
                             .set_uid(uid)
                             .set_name(name)
                             .set_dim({count, 1, 1, 1})
                             .set_stride({1, 1, 1, 1})
                             .set_data_type(cudnn_frontend::DataType_t::INT32));
  };
  std::shared_ptr<graphs::Tensor_attributes> lengths, element_offsets;
  if (packed) {
    lengths = counts(kLengths, "lengths", batch);
    element_offsets = counts(kElementOffsets, "element_offsets", batch + 1);
  }
  auto input = [&](Uid uid, const char* name) {
    auto attributes = graphs::Tensor_attributes().set_uid(uid).set_name(name).set_dim(dims).set_stride(strides);
    if (packed) attributes.set_ragged_offset(element_offsets);
    return graph->tensor(attributes);
  };
  const auto q = input(kQ, "q"), k = input(kK, "k"), v = input(kV, "v");

  auto options = graphs::SDPA_attributes()
                     .set_name("attention")
                     .set_generate_stats(false)
                     .set_attn_scale(1.0f / std::sqrt(static_cast<float>(shape.head_dim)));
  if (packed) options.set_padding_mask(true).set_seq_len_q(lengths).set_seq_len_kv(lengths);
  auto output = graph->sdpa(q, k, v, options)[0];
  output->set_output(true).set_uid(kOutput).set_dim(dims).set_stride(strides);
  if (packed) output->set_ragged_offset(element_offsets);
  return graph;
}

}  // namespace

class AttentionGraph {
 public:
  AttentionGraph(const AttentionShape& shape, cudnnHandle_t handle) : graph_(attention_graph(shape)) {
    const std::string doing = "attend over " + written(shape) + " in one fused kernel on this GPU";
    check(graph_->validate(), doing);
    check(graph_->build_operation_graph(handle), doing);
    check(graph_->create_execution_plans({cudnn_frontend::HeurMode_t::A}), doing);
    const std::size_t most = attention_workspace_bytes(shape.tokens, shape.num_heads);
    graph_->deselect_workspace_greater_than(static_cast<std::int64_t>(most));
    check(graph_->check_support(), doing + " within " + std::to_string(most) + " bytes of workspace");
    check(graph_->build_plans(), doing);
  }

  void run(cudnnHandle_t handle, const AttentionTensors& tensors) const {
    std::unordered_map<std::int64_t, void*> pointers = {
        {kQ, const_cast<void*>(tensors.q)},
        {kK, const_cast<void*>(tensors.k)},
        {kV, const_cast<void*>(tensors.v)},
        {kOutput, tensors.output},
    };
    if (tensors.lengths != nullptr) {
      pointers[kLengths] = const_cast<std::int32_t*>(tensors.lengths);
      pointers[kElementOffsets] = const_cast<std::int32_t*>(tensors.element_offsets);
    }
    check(graph_->execute(handle, pointers, tensors.workspace), "run the attention");
  }

 private:
  std::unique_ptr<graphs::Graph> graph_;
};

struct AttentionGraphs::Device {
  Device() { check(cudnnCreate(&handle), "use this GPU"); }
  ~Device() { cudnnDestroy(handle); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  cudnnHandle_t handle = nullptr;
  RecentCache<AttentionShape, AttentionGraph> compiled{kCapacity};
};

AttentionGraphs::AttentionGraphs() = default;
AttentionGraphs::~AttentionGraphs() = default;

AttentionGraphs::Device& AttentionGraphs::current_device() {
  int index = 0;
  const cudaError_t status = cudaGetDevice(&index);
  if (status != cudaSuccess) {
    throw PluginError(std::string("CUDA has no device to attend on: ") + cudaGetErrorString(status) +
                      "; expected an NVIDIA GPU and its driver");
  }
  auto& device = devices_[index];
  if (device == nullptr) {
    load_cudnn();
    device = std::make_unique<Device>();
  }
  return *device;
}

std::shared_ptr<const AttentionGraph> AttentionGraphs::graph_for(const AttentionShape& shape) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Device& device = current_device();
  return device.compiled.get(shape, [&] { return std::make_shared<AttentionGraph>(shape, device.handle); });
}

void AttentionGraphs::run(const AttentionGraph& graph, const AttentionTensors& tensors, cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Device& device = current_device();
  check(cudnnSetStream(device.handle, stream), "use the stream");
  graph.run(device.handle, tensors);
}

}  // namespace ev::plugin
