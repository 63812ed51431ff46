// Reading a JSON object field by field, each with its type, so that an error names the field. The twin of
// editverse_rt/fields.py.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ev {

using Json = nlohmann::ordered_json;

constexpr const char* kExportAgain = "export the bundle again";

/// Parses JSON as the bundle format has it: no field twice in an object, no constants such as NaN, nesting of
/// bounded depth. Throws EV_ERROR_BUNDLE with `where` at its head.
Json parse_json(std::string_view text, const std::string& where);

/// Takes the fields of one JSON object. `where`: the file, for errors. `name`: of the object, "" for the outermost.
/// The value must outlive this. Every method throws EV_ERROR_BUNDLE for a field that is missing or of another kind.
class Fields {
 public:
  Fields(const Json& value, std::string where, std::string name);

  [[noreturn]] void refuse(const std::string& field, const Json& found, const std::string& expected) const;
  /// Refuses what nobody took: a misspelt field must not pass as absent.
  void finish() const;

  std::string string(const std::string& field);
  /// A relative path with forward slashes that stays inside the bundle.
  std::string path(const std::string& field);
  std::int64_t integer(const std::string& field, std::int64_t minimum, std::int64_t maximum = kLargest);
  double positive_number(const std::string& field);
  std::vector<double> numbers(const std::string& field);
  std::vector<std::vector<double>> number_rows(const std::string& field);
  const Json& array(const std::string& field);
  const Json& mapping(const std::string& field);
  Fields child(const std::string& field);
  std::vector<Fields> children(const std::string& field);
  std::vector<std::pair<std::string, Fields>> named_children(const std::string& field);

 private:
  static constexpr std::int64_t kLargest = INT64_MAX;

  std::string full_name(const std::string& field) const;
  const Json& take(const std::string& field);
  std::vector<double> numbers_of(const std::string& field, const Json& value) const;

  const Json* value_;
  std::string where_;
  std::string name_;
  std::set<std::string> taken_;
};

}  // namespace ev
