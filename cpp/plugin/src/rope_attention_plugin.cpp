#include "rope_attention_plugin.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <iostream>
#include <limits>
#include <new>
#include <utility>

#include "workspace.h"

namespace ev::plugin {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

namespace {

enum Input : std::int32_t { kQ, kK, kV };
constexpr std::int32_t kAbsent = -1;

// Where the inputs after q, k and v stand, by their number: the norms are left out where a model norms over all
// heads before the node, the offsets where a call holds one sequence.
struct Places {
  std::int32_t q_norm = kAbsent;
  std::int32_t k_norm = kAbsent;
  std::int32_t positions = kAbsent;
  std::int32_t offsets = kAbsent;

  bool has_norms() const { return q_norm != kAbsent; }
  bool has_offsets() const { return offsets != kAbsent; }
};

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

// What an entry point that must not throw does: the error is reported, and `failed` returned.
template <typename Result, typename Action>
Result guarded(const char* where, Result failed, const Action& action) noexcept {
  try {
    return action();
  } catch (const std::exception& error) {
    try {
      report(std::string(where) + ": " + error.what());
    } catch (...) {  // NOLINT(bugprone-empty-catch): no memory left for the message
    }
    return failed;
  }
}

std::string written(const Dims& dims) {
  std::string text = "[";
  for (std::int32_t i = 0; i < dims.nbDims; ++i) text += (i == 0 ? "" : ", ") + std::to_string(dims.d[i]);
  return text + "]";
}

Places places_of(std::int32_t num_inputs) {
  switch (num_inputs) {
    case 4: return {kAbsent, kAbsent, 3, kAbsent};
    case 5: return {kAbsent, kAbsent, 3, 4};
    case 6: return {3, 4, 5, kAbsent};
    case 7: return {3, 4, 5, 6};
    default:
      throw PluginError(std::to_string(num_inputs) +
                        " inputs; expected 6 (q, k, v, q_norm, k_norm, positions), 4 without the norms, and one more "
                        "with offsets");
  }
}

void check_dims(const char* input, const Dims& dims, std::initializer_list<std::int64_t> expected) {
  bool fits = dims.nbDims == static_cast<std::int32_t>(expected.size());
  std::int32_t axis = 0;
  for (const std::int64_t wanted : expected) {
    fits = fits && (wanted < 0 || dims.d[axis] < 0 || dims.d[axis] == wanted);
    ++axis;
  }
  if (!fits) {
    Dims wanted{};
    for (const std::int64_t length : expected) wanted.d[wanted.nbDims++] = length;
    throw PluginError(std::string(input) + " is " + written(dims) + "; expected " + written(wanted) + " (-1: any)");
  }
}

// `dims_of(i)` are the dims of input i; -1 is a length that is not known yet.
template <typename DimsOf>
void check_shapes(const RopeOptions& options, std::int32_t num_inputs, const DimsOf& dims_of) {
  const Places places = places_of(num_inputs);
  check_dims("q", dims_of(kQ), {-1, options.inner()});
  const std::int64_t tokens = dims_of(kQ).d[0];
  check_dims("k", dims_of(kK), {tokens, options.inner()});
  check_dims("v", dims_of(kV), {tokens, options.inner()});
  if (places.has_norms()) {
    check_dims("q_norm", dims_of(places.q_norm), {options.head_dim()});
    check_dims("k_norm", dims_of(places.k_norm), {options.head_dim()});
  }
  check_dims("positions", dims_of(places.positions), {tokens, kNumAxes});
  if (places.has_offsets()) check_dims("offsets", dims_of(places.offsets), {-1});
  if (tokens > std::numeric_limits<std::int32_t>::max()) {
    throw PluginError(std::to_string(tokens) + " tokens; expected fewer than 2^31");
  }
}

bool is_short_float(DataType type) { return type == DataType::kHALF || type == DataType::kBF16; }

std::int64_t num_sequences_of(std::int64_t num_offsets) {
  if (num_offsets < 2) {
    throw PluginError("offsets hold " + std::to_string(num_offsets) +
                      " numbers; expected the first token of each sequence and the number of tokens");
  }
  return num_offsets - 1;
}

template <typename Value>
void read_field(const PluginField& field, PluginFieldType type, Value* values, std::int32_t count) {
  if (field.type != type || field.length != count || field.data == nullptr) {
    throw PluginError(std::string("field ") + field.name + " has type " + std::to_string(static_cast<int>(field.type)) +
                      " and length " + std::to_string(field.length) + "; expected type " +
                      std::to_string(static_cast<int>(type)) + " (PluginFieldType) and length " +
                      std::to_string(count));
  }
  memcpy(values, field.data, sizeof(Value) * static_cast<std::size_t>(count));
}

// The one table of fields, with the data of `options` if it is given.
std::array<PluginField, kNumFields> fields_of(const RopeOptions* options) {
  const auto data = [options](const auto RopeOptions::* member) -> const void* {
    return options == nullptr ? nullptr : &(options->*member);
  };
  return {PluginField{"num_heads", data(&RopeOptions::num_heads), PluginFieldType::kINT32, 1},
          PluginField{"axis_dims", data(&RopeOptions::axis_dims), PluginFieldType::kINT32, kNumAxes},
          PluginField{"axis_thetas", data(&RopeOptions::axis_thetas), PluginFieldType::kFLOAT32, kNumAxes},
          PluginField{"epsilon", data(&RopeOptions::epsilon), PluginFieldType::kFLOAT32, 1}};
}

}  // namespace

void report(const std::string& message) noexcept {
  nvinfer1::ILoggerFinder* const finder = logger_finder.load();
  nvinfer1::ILogger* const logger = finder == nullptr ? nullptr : finder->findLogger();
  if (logger == nullptr) {
    std::cerr << kPluginName << ": " << message << '\n';
  } else {
    logger->log(nvinfer1::ILogger::Severity::kERROR, (std::string(kPluginName) + ": " + message).c_str());
  }
}

RopeOptions options_from_fields(const nvinfer1::PluginFieldCollection& given) {
  RopeOptions options;
  const std::array<PluginField, kNumFields> known = fields_of(nullptr);
  std::array<bool, kNumFields> seen{};
  for (std::int32_t i = 0; i < given.nbFields; ++i) {
    const PluginField& field = given.fields[i];
    const std::string name = field.name == nullptr ? "" : field.name;
    std::size_t index = 0;
    while (index < known.size() && name != known[index].name) ++index;
    if (index == known.size() || seen[index]) {
      throw PluginError("field '" + name + "' is " + (index == known.size() ? "unknown" : "given twice") +
                        "; expected num_heads, axis_dims, axis_thetas and epsilon, each once");
    }
    seen[index] = true;
    const PluginFieldType type = known[index].type;
    switch (index) {
      case 0: read_field(field, type, &options.num_heads, 1); break;
      case 1: read_field(field, type, options.axis_dims.data(), kNumAxes); break;
      case 2: read_field(field, type, options.axis_thetas.data(), kNumAxes); break;
      default: read_field(field, type, &options.epsilon, 1);
    }
  }
  for (std::size_t index = 0; index < known.size(); ++index) {
    if (!seen[index]) {
      throw PluginError(std::string("field '") + known[index].name +
                        "' is missing; expected num_heads, axis_dims, axis_thetas and epsilon");
    }
  }
  return options;
}

RopeAttentionPlugin::RopeAttentionPlugin(const RopeOptions& options, std::shared_ptr<AttentionGraphs> graphs)
    : options_(options),
      graphs_(std::move(graphs)),
      fields_(fields_of(&options_)),
      collection_{kNumFields, fields_.data()} {
  check_options(options_);
  table_ = rope_table(options_.axis_dims.data(), options_.axis_thetas.data());
}

nvinfer1::IPluginCapability* RopeAttentionPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* RopeAttentionPlugin::clone() noexcept {
  return guarded<nvinfer1::IPluginV3*>("clone", nullptr, [this] {
    auto copy = std::make_unique<RopeAttentionPlugin>(options_, graphs_);
    copy->shape_ = shape_;
    copy->position_type_ = position_type_;
    copy->num_inputs_ = num_inputs_;
    copy->graph_ = graph_;
    return copy.release();
  });
}

std::int32_t RopeAttentionPlugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, std::int32_t num_inputs,
                                                  const nvinfer1::DynamicPluginTensorDesc*, std::int32_t) noexcept {
  return guarded<std::int32_t>("configurePlugin", 1, [&] {
    check_shapes(options_, num_inputs, [in](std::int32_t i) { return in[i].desc.dims; });
    return 0;
  });
}

std::int32_t RopeAttentionPlugin::getOutputDataTypes(DataType* output_types, std::int32_t num_outputs,
                                                     const DataType* input_types,
                                                     std::int32_t num_inputs) const noexcept {
  return guarded<std::int32_t>("getOutputDataTypes", 1, [&] {
    places_of(num_inputs);
    if (num_outputs != 1) throw PluginError(std::to_string(num_outputs) + " outputs; expected 1");
    if (!is_short_float(input_types[kQ])) {
      throw PluginError("q has data type " + std::to_string(static_cast<int>(input_types[kQ])) +
                        "; expected fp16 or bf16; build the transformer with --precision bf16 or fp16, or "
                        "export it with --attention inline");
    }
    output_types[0] = input_types[kQ];
    return 0;
  });
}

std::int32_t RopeAttentionPlugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t num_inputs,
                                                  const nvinfer1::DimsExprs*, std::int32_t,
                                                  nvinfer1::DimsExprs* outputs, std::int32_t num_outputs,
                                                  nvinfer1::IExprBuilder&) noexcept {
  return guarded<std::int32_t>("getOutputShapes", 1, [&] {
    places_of(num_inputs);
    if (num_outputs != 1) throw PluginError(std::to_string(num_outputs) + " outputs; expected 1");
    if (inputs[kQ].nbDims != 2) {
      throw PluginError("q has " + std::to_string(inputs[kQ].nbDims) + " axes; expected 2, [L, heads * head_dim]");
    }
    outputs[0] = inputs[kQ];
    return 0;
  });
}

bool RopeAttentionPlugin::supportsFormatCombination(std::int32_t position,
                                                    const nvinfer1::DynamicPluginTensorDesc* tensors,
                                                    std::int32_t num_inputs, std::int32_t) noexcept {
  return guarded<bool>("supportsFormatCombination", false, [&] {
    const Places places = places_of(num_inputs);
    const nvinfer1::PluginTensorDesc& tensor = tensors[position].desc;
    if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
    if (position == kQ) return is_short_float(tensor.type);
    if (position == places.positions) {
      return tensor.type == DataType::kINT64 || tensor.type == DataType::kINT32;
    }
    if (position == places.offsets) return tensor.type == DataType::kINT32;
    return tensor.type == tensors[kQ].desc.type;
  });
}

std::size_t RopeAttentionPlugin::getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs,
                                                  std::int32_t num_inputs, const nvinfer1::DynamicPluginTensorDesc*,
                                                  std::int32_t) const noexcept {
  return guarded<std::size_t>("getWorkspaceSize", 0, [&] {
    const Places places = places_of(num_inputs);
    const std::int64_t tokens = inputs[kQ].max.d[0];
    const std::int64_t sequences = places.has_offsets() ? num_sequences_of(inputs[places.offsets].max.d[0]) : 0;
    const std::size_t attention_bytes = attention_workspace_bytes(tokens, options_.num_heads);
    return divide_workspace(tokens * options_.inner(), sequences, attention_bytes).num_bytes;
  });
}

std::int32_t RopeAttentionPlugin::onShapeChange(const nvinfer1::PluginTensorDesc* in, std::int32_t num_inputs,
                                                const nvinfer1::PluginTensorDesc*, std::int32_t) noexcept {
  return guarded<std::int32_t>("onShapeChange", 1, [&] {
    check_shapes(options_, num_inputs, [in](std::int32_t i) { return in[i].dims; });
    const Places places = places_of(num_inputs);
    const std::int64_t sequences = places.has_offsets() ? num_sequences_of(in[places.offsets].dims.d[0]) : 0;
    const std::int64_t tokens = in[kQ].dims.d[0];
    if (places.has_offsets() && tokens * options_.inner() > std::numeric_limits<std::int32_t>::max()) {
      throw PluginError(std::to_string(tokens) + " packed tokens of " + std::to_string(options_.inner()) +
                        " channels; expected fewer than 2^31 elements; run the sequences one by one");
    }
    shape_ = {in[kQ].type == DataType::kHALF ? StorageType::kFloat16 : StorageType::kBFloat16, tokens,
              options_.num_heads, options_.head_dim(), static_cast<std::int32_t>(sequences)};
    position_type_ = in[places.positions].type == DataType::kINT64 ? PositionType::kInt64 : PositionType::kInt32;
    num_inputs_ = num_inputs;
    // Here and not in enqueue: a stream that is being captured must see nothing but launches.
    graph_ = tokens == 0 ? nullptr : graphs_->graph_for(shape_);
    return 0;
  });
}

std::int32_t RopeAttentionPlugin::enqueue(const nvinfer1::PluginTensorDesc*, const nvinfer1::PluginTensorDesc*,
                                          const void* const* inputs, void* const* outputs, void* workspace,
                                          cudaStream_t stream) noexcept {
  return guarded<std::int32_t>("enqueue", 1, [&] {
    if (shape_.tokens == 0) return 0;
    if (graph_ == nullptr) throw PluginError("no shape is known; expected onShapeChange before enqueue");
    const Workspace parts = divide_workspace(shape_.tokens * options_.inner(), shape_.num_sequences,
                                             attention_workspace_bytes(shape_.tokens, options_.num_heads));
    char* const start = static_cast<char*>(workspace);
    const Places places = places_of(num_inputs_);
    const RopeTensors rope = {inputs[kQ],
                              inputs[kK],
                              places.has_norms() ? inputs[places.q_norm] : nullptr,
                              places.has_norms() ? inputs[places.k_norm] : nullptr,
                              inputs[places.positions],
                              start + parts.q,
                              start + parts.k};
    const auto check = [](cudaError_t status) {
      if (status != cudaSuccess) {
        throw PluginError(std::string("a kernel was not launched: ") + cudaGetErrorString(status) +
                          "; expected a GPU that this library was built for (cpp/plugin/README.md)");
      }
    };
    check(launch_normalize_and_rotate(shape_.storage, position_type_, rope, table_, shape_.tokens, options_.num_heads,
                                      options_.head_dim(), options_.epsilon, stream));
    AttentionTensors tensors = {start + parts.q, start + parts.k,        inputs[kV], outputs[0], nullptr,
                                nullptr,         start + parts.attention};
    if (shape_.num_sequences > 0) {
      auto* const lengths = reinterpret_cast<std::int32_t*>(start + parts.lengths);
      auto* const element_offsets = reinterpret_cast<std::int32_t*>(start + parts.element_offsets);
      check(launch_describe_packing(static_cast<const std::int32_t*>(inputs[places.offsets]), shape_.num_sequences,
                                    options_.inner(), lengths, element_offsets, stream));
      tensors.lengths = lengths;
      tensors.element_offsets = element_offsets;
    }
    graphs_->run(*graph_, tensors, stream);
    return 0;
  });
}

nvinfer1::IPluginV3* RopeAttentionPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return clone();
}

RopeAttentionCreator::RopeAttentionCreator()
    : fields_(fields_of(nullptr)),
      collection_{kNumFields, fields_.data()},
      graphs_(std::make_shared<AttentionGraphs>()) {}

nvinfer1::IPluginV3* RopeAttentionCreator::createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                                        nvinfer1::TensorRTPhase) noexcept {
  return guarded<nvinfer1::IPluginV3*>(name == nullptr ? "createPlugin" : name, nullptr, [&] {
    if (fields == nullptr) throw PluginError("no fields; expected those of the node's attributes");
    return std::make_unique<RopeAttentionPlugin>(options_from_fields(*fields), graphs_).release();
  });
}

}  // namespace ev::plugin

// What IPluginRegistry::loadLibrary looks for in a library. Nothing is registered when the library is loaded,
// and nothing of libnvinfer is called, so it loads where there is none. TensorRT prescribes the names.
// NOLINTBEGIN(readability-identifier-naming)
extern "C" {

__attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  ev::plugin::logger_finder.store(finder);
}

__attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(
    std::int32_t& num_creators) {
  // Never destroyed: when the process ends, CUDA may be gone before the plans that the creator holds.
  static nvinfer1::IPluginCreatorInterface* const creators[] = {new ev::plugin::RopeAttentionCreator};
  num_creators = 1;
  return creators;
}
// NOLINTEND(readability-identifier-naming)

}  // extern "C"
