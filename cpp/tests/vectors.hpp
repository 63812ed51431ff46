// What the programs share that hold the C++ host to the vectors of the Python host.
#pragma once

#include <fstream>
#include <string>
#include <vector>

#include "check.hpp"
#include "error.hpp"
#include "fields.hpp"

namespace vectors {

using ev::Json;

inline Json read_vectors(const std::string& folder, const std::string& name) {
  std::ifstream stream(folder + "/" + name, std::ios::binary);
  return Json::parse(stream);
}

/// What call() gives as {"result": ...}, or {"error": name, "text": ...}, as the vectors have it.
template <typename Call>
Json outcome(const Call& call) {
  try {
    return {{"result", call()}};
  } catch (const ev::Error& error) {
    return {{"error", ev_error_name(error.code())}, {"text", error.what()}};
  }
}

/// Compares with a case; both hosts give the same texts, word by word.
inline void compare(const Json& found, const Json& expected, const std::string& file, std::size_t index) {
  for (const char* field : {"result", "error", "text"}) {
    // Objects as such, whatever the order of their fields.
    const nlohmann::json want = expected.value(field, Json()), have = found.value(field, Json());
    CHECK_MSG(have == want, file + " case " + std::to_string(index) + ": " + field + " is " + have.dump() +
                                ", expected " + want.dump());
  }
}

/// The text of JSON after edits: ["set", path, value], ["delete", path], ["text", old, new].
inline std::string apply_edits(const Json& base, const Json& edits) {
  Json whole = Json::array({base});
  std::vector<std::pair<std::string, std::string>> replacements;
  for (const Json& edit : edits) {
    if (edit.at(0) == "text") {
      replacements.emplace_back(edit.at(1), edit.at(2));
      continue;
    }
    const Json& path = edit.at(1);
    Json* place = &whole[0];
    for (std::size_t i = 0; i + 1 < path.size(); ++i) {
      place = path[i].is_string() ? &(*place)[path[i].get<std::string>()] : &(*place)[path[i].get<std::size_t>()];
    }
    if (path.empty()) {
      *place = edit.at(2);
      continue;
    }
    const Json& last = path.back();
    if (edit.at(0) == "delete") {
      if (last.is_string()) {
        place->erase(last.get<std::string>());
      } else {
        place->erase(last.get<std::size_t>());
      }
    } else if (last.is_string()) {
      (*place)[last.get<std::string>()] = edit.at(2);
    } else {
      (*place)[last.get<std::size_t>()] = edit.at(2);
    }
  }
  std::string text = whole[0].dump();
  for (const auto& [from, to] : replacements) text.replace(text.find(from), from.size(), to);
  return text;
}

/// `field "graphs.noise.file"` of an error's text: what was found is shown in the manner of each language.
inline std::string named_field(const std::string& text) {
  const std::size_t begin = text.find("field \"");
  return begin == std::string::npos ? "" : text.substr(begin, text.find('"', begin + 7) + 1 - begin);
}

template <typename Result>
void check_list(const Json& cases, const std::string& name, const Result& result) {
  std::size_t index = 0;
  for (const Json& one : cases) compare(outcome([&]() -> Json { return result(one); }), one, name, index++);
}

}  // namespace vectors
