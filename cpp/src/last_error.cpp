#include "last_error.hpp"

#include <algorithm>
#include <iterator>
#include <string>

#include "fields.hpp"

namespace ev {

namespace {

/// Set even where memory has run out: a fixed room, cut short if need be.
thread_local char text_of_last[1024] = "";
thread_local std::string json_of_last;
/// Where there was no memory for the JSON.
thread_local bool is_json_lost = false;
constexpr const char* kNoMemoryJson =
    R"({"code":"memory","field":"","found":"memory ran out","expected":"","hint":"","message":"memory ran out"})";

// The library's own names of what these structs have.
constexpr const char* kRequestFields[] = {
    "prompt",   "inputs", "negative_prompt", "schedule", "num_inference_steps", "guidance_scale", "seed",
    "strength", "fps",    "num_frames",      "start_s"};
constexpr const char* kOptionsFields[] = {"bundle",      "num_threads", "device", "weight_budget_bytes",
                                          "onnxruntime", "tensorrt",    "plugin", "cuda_graphs"};

/// The name in the C interface of what the library calls by its own names: `seed` is `ev_request.seed`.
std::string c_name(const std::string& field) {
  const auto is_it = [&](const char* name) { return field == name; };
  if (field == "size") return "ev_request.width_px";  // and height_px, which is given with it
  if (std::any_of(std::begin(kRequestFields), std::end(kRequestFields), is_it)) return "ev_request." + field;
  if (std::any_of(std::begin(kOptionsFields), std::end(kOptionsFields), is_it)) return "ev_options." + field;
  return field;
}

void keep_text(const char* text) noexcept {
  std::size_t i = 0;
  for (; text[i] != '\0' && i + 1 < sizeof text_of_last; ++i) text_of_last[i] = text[i] == '\n' ? ' ' : text[i];
  // Not in the middle of a character.
  if (text[i] != '\0') {
    while (i > 0 && (static_cast<unsigned char>(text_of_last[i - 1]) & 0xC0) == 0x80) --i;
    if (i > 0 && static_cast<unsigned char>(text_of_last[i - 1]) >= 0xC0) --i;
  }
  text_of_last[i] = '\0';
}

void keep_json(const ErrorFacts& facts) {
  Json json;
  json["code"] = facts.code;
  json["field"] = c_name(facts.field);
  json["found"] = facts.found;
  json["expected"] = facts.expected;
  json["hint"] = facts.hint;
  json["message"] = text_of_last;
  json_of_last = json.dump(-1, ' ', true, Json::error_handler_t::replace);
  is_json_lost = false;
}

}  // namespace

int remember_error(const Error& error) noexcept {
  try {
    keep_text(error.facts().describe(c_name).c_str());
    keep_json(error.facts());
  } catch (...) {
    keep_text(error.what());
    is_json_lost = true;
  }
  return error.code();
}

int remember_error(int code, const char* text) noexcept {
  keep_text(text);
  try {
    ErrorFacts facts;
    facts.code = default_code(code);
    facts.found = text;
    keep_json(facts);
  } catch (...) {
    is_json_lost = true;
  }
  return code;
}

const char* last_error_text() { return text_of_last; }

const char* last_error_json() { return is_json_lost ? kNoMemoryJson : json_of_last.c_str(); }

}  // namespace ev
