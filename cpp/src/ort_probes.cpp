#include "ort_probes.hpp"

#include <algorithm>
#include <array>

namespace ev::ort {

namespace {

/// Element types of ONNX's protocol buffers.
enum ElementType : char { kFloat32 = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6 };

// Protocol buffers by hand, so that no library of them is needed. Every length is below 128.

std::string field(int number, const std::string& content) {
  return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(content.size())} + content;
}

/// A ValueInfoProto of a tensor. shape: a TensorShapeProto as a field of its type, "" for any shape.
std::string value_info(const std::string& name, ElementType type, const std::string& shape = "") {
  const std::string tensor = std::string{8, type} + shape;
  return field(1, name) + field(2, field(1, tensor));
}

/// A ModelProto (IR version 8, opset 13) of one NodeProto.
std::string model_of(const std::string& node, const std::vector<std::string>& inputs, const std::string& output) {
  std::string graph = field(1, node) + field(2, "g");
  for (const std::string& input : inputs) graph += field(11, input);
  graph += field(12, output);
  const std::string opset("\x0a\x00\x10\x0d", 4);
  return std::string{8, 8} + field(7, graph) + field(8, opset);
}

/// One Identity node, from x to y, float32 [1].
std::string identity_model() {
  const std::string shape("\x12\x04\x0a\x02\x08\x01", 6);
  const std::string node = field(1, "x") + field(2, "y") + field(4, "Identity");
  return model_of(node, {value_info("x", kFloat32, shape)}, value_info("y", kFloat32, shape));
}

/// One MatMulInteger node: a uint8 [M, K] times b int8 [K, N] is y int32 [M, N].
std::string integer_product_model() {
  const std::string node = field(1, "a") + field(1, "b") + field(2, "y") + field(4, "MatMulInteger");
  return model_of(node, {value_info("a", kUint8), value_info("b", kInt8)}, value_info("y", kInt32));
}

Handle<OrtSession> open_model(const OrtApi* api, OrtEnv* env, const Provider& provider, const std::string& model) {
  const auto options = make_session_options(api, provider, 1, false);
  OrtSession* session = nullptr;
  check(api, api->CreateSessionFromArray(env, model.data(), model.size(), options.get(), &session),
        "CreateSessionFromArray");
  return {session, api->ReleaseSession};
}

Handle<OrtMemoryInfo> make_host_memory(const OrtApi* api) {
  OrtMemoryInfo* memory = nullptr;
  check(api, api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory), "CreateCpuMemoryInfo");
  return {memory, api->ReleaseMemoryInfo};
}

template <typename T, std::size_t count>
Handle<OrtValue> wrap(const OrtApi* api, const OrtMemoryInfo* memory, std::array<T, count>& values,
                      const std::vector<std::int64_t>& shape, ONNXTensorElementDataType type) {
  OrtValue* value = nullptr;
  check(api,
        api->CreateTensorWithDataAsOrtValue(memory, values.data(), sizeof values, shape.data(), shape.size(), type,
                                            &value),
        "CreateTensorWithDataAsOrtValue");
  return {value, api->ReleaseValue};
}

}  // namespace

std::optional<std::string> find_start_problem(const OrtApi* api, const Provider& provider) {
  try {
    const auto env = make_env(api);
    open_model(api, env.get(), provider, identity_model());
  } catch (const Error& error) {
    return error.what();
  }
  return std::nullopt;
}

void free_idle_memory(const OrtApi* api, OrtEnv* env) {
  // ONNX Runtime does so after a run that asks for it, of any session of the arena.
  const auto session = open_model(api, env, {kCpu}, identity_model());
  OrtRunOptions* created = nullptr;
  check(api, api->CreateRunOptions(&created), "CreateRunOptions");
  const Handle<OrtRunOptions> options(created, api->ReleaseRunOptions);
  check(api, api->AddRunConfigEntry(created, "memory.enable_memory_arena_shrinkage", "cpu:0"), "AddRunConfigEntry");
  const auto memory = make_host_memory(api);
  std::array<float, 1> given{};
  const auto x = wrap(api, memory.get(), given, {1}, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
  const OrtValue* const inputs[] = {x.get()};
  const char *const from = "x", *const to = "y";
  OrtValue* made = nullptr;
  check(api, api->Run(session.get(), created, &from, inputs, 1, &to, 1, &made), "Run");
  api->ReleaseValue(made);
}

bool saturates_integers(const OrtApi* api, OrtEnv* env) {
  constexpr std::size_t kRows = 4, kSide = 16;
  const auto session = open_model(api, env, {kCpu}, integer_product_model());
  const auto memory = make_host_memory(api);
  std::array<std::uint8_t, kRows * kSide> rows;
  std::array<std::int8_t, kSide * kSide> columns;
  std::array<std::int32_t, kRows * kSide> sums{};
  rows.fill(255);
  columns.fill(127);
  const auto a = wrap(api, memory.get(), rows, {kRows, kSide}, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
  const auto b = wrap(api, memory.get(), columns, {kSide, kSide}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8);
  const auto y = wrap(api, memory.get(), sums, {kRows, kSide}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32);
  const char* const from[] = {"a", "b"};
  const char* const to[] = {"y"};
  const OrtValue* const inputs[] = {a.get(), b.get()};
  OrtValue* outputs[] = {y.get()};
  check(api, api->Run(session.get(), nullptr, from, inputs, 2, to, 1, outputs), "Run");
  constexpr std::int32_t kExact = 255 * 127 * static_cast<std::int32_t>(kSide);
  return std::any_of(sums.begin(), sums.end(), [](std::int32_t sum) { return sum != kExact; });
}

}  // namespace ev::ort
