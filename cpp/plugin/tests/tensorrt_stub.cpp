// Plays TensorRT to the plugin: loads the library as IPluginRegistry::loadLibrary does, and calls what a build
// and a run call, in a C ABI for ctypes. There is no TensorRT here: its interfaces are headers only.
#include <NvInfer.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "recent_cache.h"
#include "workspace.h"

namespace {

using namespace nvinfer1;

struct Log : ILogger, ILoggerFinder {
  void log(Severity severity, const char* message) noexcept override {
    text += std::to_string(static_cast<int>(severity)) + " " + message + "\n";
  }
  ILogger* findLogger() override { return this; }
  std::string text;
};

Log& recorded() {
  static Log log;
  return log;
}

IPluginCreatorV3One* creator = nullptr;

void write(const std::string& text, char* target, std::size_t capacity) {
  std::snprintf(target, capacity, "%s", text.c_str());
}

template <typename Capability>
Capability& capability(void* plugin, PluginCapabilityType type) {
  return *static_cast<Capability*>(static_cast<IPluginV3*>(plugin)->getCapabilityInterface(type));
}

IPluginV3OneCore& core_of(void* plugin) { return capability<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE); }
IPluginV3OneBuild& build_of(void* plugin) {
  return capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}
IPluginV3OneRuntime& runtime_of(void* plugin) {
  return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

std::string written(const PluginFieldCollection& fields) {
  std::string text;
  for (std::int32_t i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    text += std::string(field.name) + " " + std::to_string(static_cast<int>(field.type)) + " " +
            std::to_string(field.length);
    for (std::int32_t j = 0; field.data != nullptr && j < field.length; ++j) {
      char number[64];
      if (field.type == PluginFieldType::kINT32) {
        std::snprintf(number, sizeof number, " %d", static_cast<const std::int32_t*>(field.data)[j]);
      } else {
        std::snprintf(number, sizeof number, " %a", static_cast<const float*>(field.data)[j]);
      }
      text += number;
    }
    text += "\n";
  }
  return text;
}

// A tensor as `describe` gives it: type, format, number of axes, up to 8 lengths.
constexpr int kNumbersOfTensor = 11;

PluginTensorDesc tensor_of(const std::int64_t* numbers) {
  PluginTensorDesc tensor{};
  tensor.type = static_cast<DataType>(numbers[0]);
  tensor.format = static_cast<TensorFormat>(numbers[1]);
  tensor.dims.nbDims = static_cast<std::int32_t>(numbers[2]);
  for (std::int32_t axis = 0; axis < tensor.dims.nbDims; ++axis) tensor.dims.d[axis] = numbers[3 + axis];
  return tensor;
}

std::vector<PluginTensorDesc> tensors_of(const std::int64_t* numbers, int count) {
  std::vector<PluginTensorDesc> tensors;
  for (int i = 0; i < count; ++i) tensors.push_back(tensor_of(numbers + i * kNumbersOfTensor));
  return tensors;
}

std::vector<DynamicPluginTensorDesc> dynamic_tensors_of(const std::int64_t* numbers, int count) {
  std::vector<DynamicPluginTensorDesc> tensors;
  for (const PluginTensorDesc& desc : tensors_of(numbers, count)) {
    tensors.push_back({desc, desc.dims, desc.dims, desc.dims});
  }
  return tensors;
}

// A length that says which axis of which input it is.
struct Length : IDimensionExpr {
  Length() { mImpl = nullptr; }
  int input = 0;
  int axis = 0;
};

struct NoExpressions : IExprBuilder {
  NoExpressions() { mImpl = nullptr; }
};

}  // namespace

extern "C" {

// Returns the number of creators, 0 with a message in the log if the library does not load.
int stub_load(const char* path) {
  void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    recorded().text += dlerror();
    return 0;
  }
  const auto set_finder = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
  const auto get_creators =
      reinterpret_cast<IPluginCreatorInterface* const* (*)(std::int32_t&)>(dlsym(library, "getCreators"));
  set_finder(&recorded());
  std::int32_t count = 0;
  IPluginCreatorInterface* const* const creators = get_creators(count);
  creator = static_cast<IPluginCreatorV3One*>(creators[0]);
  return count;
}

void stub_take_log(char* text, std::size_t capacity) {
  write(recorded().text, text, capacity);
  recorded().text.clear();
}

void stub_describe_creator(char* text, std::size_t capacity) {
  const InterfaceInfo info = creator->getInterfaceInfo();
  write(std::string(info.kind) + "\n" + creator->getPluginName() + "\n" + creator->getPluginVersion() + "\n" +
            creator->getPluginNamespace() + "\n" + written(*creator->getFieldNames()),
        text, capacity);
}

// Field i has names[i], types[i] (PluginFieldType), lengths[i] and data[i].
void* stub_create(int count, const char* const* names, const std::int32_t* types, const std::int32_t* lengths,
                  const void* const* data) {
  std::vector<PluginField> fields;
  for (int i = 0; i < count; ++i) {
    fields.emplace_back(names[i], data[i], static_cast<PluginFieldType>(types[i]), lengths[i]);
  }
  const PluginFieldCollection collection{count, fields.data()};
  return creator->createPlugin("a layer", &collection, TensorRTPhase::kBUILD);
}

void* stub_create_without_fields() { return creator->createPlugin(nullptr, nullptr, TensorRTPhase::kBUILD); }

// As an engine does: what the plugin wants written is copied, and given to the creator of another process.
void* stub_deserialize(void* plugin) {
  const PluginFieldCollection& written_fields = *runtime_of(plugin).getFieldsToSerialize();
  std::vector<std::vector<char>> data;
  std::vector<PluginField> fields;
  for (std::int32_t i = 0; i < written_fields.nbFields; ++i) {
    const PluginField& field = written_fields.fields[i];
    const auto* const bytes = static_cast<const char*>(field.data);
    data.emplace_back(bytes, bytes + 4 * field.length);
    fields.emplace_back(field.name, nullptr, field.type, field.length);
  }
  for (std::size_t i = 0; i < fields.size(); ++i) fields[i].data = data[i].data();
  const PluginFieldCollection collection{static_cast<std::int32_t>(fields.size()), fields.data()};
  return creator->createPlugin("a layer", &collection, TensorRTPhase::kRUNTIME);
}

void* stub_clone(void* plugin) { return static_cast<IPluginV3*>(plugin)->clone(); }
void* stub_attach(void* plugin) { return runtime_of(plugin).attachToContext(nullptr); }
void stub_destroy(void* plugin) { delete static_cast<IPluginV3*>(plugin); }

void stub_describe_plugin(void* plugin, char* text, std::size_t capacity) {
  IPluginV3OneCore& core = core_of(plugin);
  write(std::string(core.getInterfaceInfo().kind) + " " + build_of(plugin).getInterfaceInfo().kind + " " +
            runtime_of(plugin).getInterfaceInfo().kind + "\n" + core.getPluginName() + "\n" + core.getPluginVersion() +
            "\n" + core.getPluginNamespace() + "\n" + std::to_string(build_of(plugin).getNbOutputs()) + "\n" +
            written(*runtime_of(plugin).getFieldsToSerialize()),
        text, capacity);
}

int stub_supports(void* plugin, int position, const std::int64_t* tensors, int num_inputs) {
  const auto found = dynamic_tensors_of(tensors, num_inputs + 1);
  return build_of(plugin).supportsFormatCombination(position, found.data(), num_inputs, 1);
}

int stub_configure(void* plugin, const std::int64_t* tensors, int num_inputs) {
  const auto found = dynamic_tensors_of(tensors, num_inputs + 1);
  return build_of(plugin).configurePlugin(found.data(), num_inputs, found.data() + num_inputs, 1);
}

int stub_output_type(void* plugin, const std::int32_t* types, int num_inputs, std::int32_t* type) {
  std::vector<DataType> inputs;
  for (int i = 0; i < num_inputs; ++i) inputs.push_back(static_cast<DataType>(types[i]));
  DataType output{};
  const int status = build_of(plugin).getOutputDataTypes(&output, 1, inputs.data(), num_inputs);
  *type = static_cast<std::int32_t>(output);
  return status;
}

// ranks of the inputs -> the output's axes as "input.axis input.axis".
int stub_output_shape(void* plugin, const std::int32_t* ranks, int num_inputs, char* text, std::size_t capacity) {
  std::vector<Length> lengths(static_cast<std::size_t>(num_inputs) * Dims::MAX_DIMS);
  std::vector<DimsExprs> inputs(static_cast<std::size_t>(num_inputs));
  for (int i = 0; i < num_inputs; ++i) {
    inputs[i].nbDims = ranks[i];
    for (int axis = 0; axis < ranks[i]; ++axis) {
      Length& length = lengths[i * Dims::MAX_DIMS + axis];
      length.input = i;
      length.axis = axis;
      inputs[i].d[axis] = &length;
    }
  }
  DimsExprs output{};
  NoExpressions builder;
  const int status = build_of(plugin).getOutputShapes(inputs.data(), num_inputs, nullptr, 0, &output, 1, builder);
  std::string found;
  for (int axis = 0; status == 0 && axis < output.nbDims; ++axis) {
    const auto& length = static_cast<const Length&>(*output.d[axis]);
    found += (axis == 0 ? "" : " ") + std::to_string(length.input) + "." + std::to_string(length.axis);
  }
  write(found, text, capacity);
  return status;
}

std::size_t stub_workspace(void* plugin, const std::int64_t* tensors, int num_inputs) {
  const auto found = dynamic_tensors_of(tensors, num_inputs + 1);
  return build_of(plugin).getWorkspaceSize(found.data(), num_inputs, found.data() + num_inputs, 1);
}

int stub_change_shape(void* plugin, const std::int64_t* tensors, int num_inputs) {
  const auto found = tensors_of(tensors, num_inputs + 1);
  return runtime_of(plugin).onShapeChange(found.data(), num_inputs, found.data() + num_inputs, 1);
}

int stub_enqueue(void* plugin) {
  return runtime_of(plugin).enqueue(nullptr, nullptr, nullptr, nullptr, nullptr, nullptr);
}

void stub_divide_workspace(std::int64_t elements, std::int64_t num_sequences, std::size_t attention_bytes,
                           std::size_t* parts) {
  const ev::plugin::Workspace workspace = ev::plugin::divide_workspace(elements, num_sequences, attention_bytes);
  const std::size_t found[] = {workspace.q,         workspace.k,        workspace.lengths, workspace.element_offsets,
                               workspace.attention, workspace.num_bytes};
  std::memcpy(parts, found, sizeof found);
}

// Asks a RecentCache for the keys in turn; made[i] is 1 if the value of keys[i] had to be made.
std::size_t stub_ask_cache(std::size_t capacity, const int* keys, std::size_t count, int* made) {
  ev::plugin::RecentCache<int, int> cache(capacity);
  for (std::size_t i = 0; i < count; ++i) {
    made[i] = 0;
    const auto value = cache.get(keys[i], [&] {
      made[i] = 1;
      return std::make_shared<const int>(keys[i] * 10);
    });
    if (*value != keys[i] * 10) return 0;
  }
  return cache.size();
}

}  // extern "C"
