// The TensorRT plugin of the node editverse::RopeAttention, version 1 (export/lower.py, lowering `plugin`).
//
// Inputs: q, k, v [L, heads * head_dim]; q_norm, k_norm [head_dim], or neither where q and k come normalised;
// positions int64 or int32 [L, 4]; and, if several sequences share the call, their offsets int32 [S + 1], from
// 0 to L. Output [L, heads * head_dim].
// q, k, v, the norms and the output are all fp16 or all bf16.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "attention.h"
#include "rope_options.h"

namespace ev::plugin {

constexpr const char* kPluginName = "RopeAttention";
constexpr const char* kPluginVersion = "1";
constexpr const char* kPluginNamespace = "editverse";
constexpr int kNumFields = 4;

// Throws PluginError for a field that is missing, unknown, given twice, or of another type or length.
RopeOptions options_from_fields(const nvinfer1::PluginFieldCollection& fields);

class RopeAttentionPlugin : public nvinfer1::IPluginV3,
                            public nvinfer1::IPluginV3OneCore,
                            public nvinfer1::IPluginV3OneBuild,
                            public nvinfer1::IPluginV3OneRuntime {
 public:
  // Throws PluginError for options that check_options refuses.
  RopeAttentionPlugin(const RopeOptions& options, std::shared_ptr<AttentionGraphs> graphs);

  // Every method below reports an error to TensorRT's logger and gives null, false or a value other than 0.

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  // IPluginV3OneCore
  const char* getPluginName() const noexcept override { return kPluginName; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

  // IPluginV3OneBuild
  std::int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, std::int32_t num_inputs,
                               const nvinfer1::DynamicPluginTensorDesc* out,
                               std::int32_t num_outputs) noexcept override;
  std::int32_t getOutputDataTypes(nvinfer1::DataType* output_types, std::int32_t num_outputs,
                                  const nvinfer1::DataType* input_types,
                                  std::int32_t num_inputs) const noexcept override;
  std::int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t num_inputs,
                               const nvinfer1::DimsExprs* shape_inputs, std::int32_t num_shape_inputs,
                               nvinfer1::DimsExprs* outputs, std::int32_t num_outputs,
                               nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(std::int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 std::int32_t num_inputs, std::int32_t num_outputs) noexcept override;
  std::int32_t getNbOutputs() const noexcept override { return 1; }
  std::size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t num_inputs,
                               const nvinfer1::DynamicPluginTensorDesc* outputs,
                               std::int32_t num_outputs) const noexcept override;

  // IPluginV3OneRuntime
  std::int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, std::int32_t num_inputs,
                             const nvinfer1::PluginTensorDesc* out, std::int32_t num_outputs) noexcept override;
  std::int32_t enqueue(const nvinfer1::PluginTensorDesc* input_desc, const nvinfer1::PluginTensorDesc* output_desc,
                       const void* const* inputs, void* const* outputs, void* workspace,
                       cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override { return &collection_; }

 private:
  RopeOptions options_;
  RopeTable table_;
  std::shared_ptr<AttentionGraphs> graphs_;

  std::array<nvinfer1::PluginField, kNumFields> fields_;
  nvinfer1::PluginFieldCollection collection_;

  // Of the shape that onShapeChange was last told of.
  AttentionShape shape_{};
  PositionType position_type_{};
  std::int32_t num_inputs_ = 0;
  std::shared_ptr<const AttentionGraph> graph_;
};

class RopeAttentionCreator : public nvinfer1::IPluginCreatorV3One {
 public:
  RopeAttentionCreator();

  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  const char* getPluginName() const noexcept override { return kPluginName; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

 private:
  std::array<nvinfer1::PluginField, kNumFields> fields_;
  nvinfer1::PluginFieldCollection collection_;
  std::shared_ptr<AttentionGraphs> graphs_;
};

// Where errors go: TensorRT's logger if it gave one (setLoggerFinder), else the standard error stream.
void report(const std::string& message) noexcept;

}  // namespace ev::plugin
