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

#include "editverse_rt.h"

namespace ev {

using Json = nlohmann::ordered_json;

constexpr const char* kExportAgain = "export the bundle again";

/// What a damaged file is to its caller: the code that is thrown, and what the text tells to do.
struct Damage {
  int code = EV_ERROR_BUNDLE;
  const char* fix = kExportAgain;
};

/// Parses JSON as the bundle format has it: no field twice in an object, no constants such as NaN, nesting of
/// bounded depth. Throws damage.code with `where` at its head.
Json parse_json(std::string_view text, const std::string& where, Damage damage = {});

/// Takes the fields of one JSON object. `where`: the file, for errors. `name`: of the object, "" for the outermost.
/// The value must outlive this. Every method throws damage.code for a field that is missing or of another kind.
class Fields {
 public:
  Fields(const Json& value, std::string where, std::string name, Damage damage = {});

  [[noreturn]] void refuse(const std::string& field, const Json& found, const std::string& expected) const;
  /// Refuses what nobody took: a misspelt field must not pass as absent.
  void finish() const;

  std::string string(const std::string& field);
  /// A string that may be empty.
  std::string text(const std::string& field);
  /// A relative path with forward slashes that stays inside the bundle.
  std::string path(const std::string& field);
  std::int64_t integer(const std::string& field, std::int64_t minimum, std::int64_t maximum = kLargest);
  bool boolean(const std::string& field);
  std::string choice(const std::string& field, const std::vector<std::string>& choices);
  /// A finite number.
  double number(const std::string& field);
  double number(const std::string& field, double minimum);
  double positive_number(const std::string& field);
  std::vector<double> numbers(const std::string& field);
  /// A list of lists of rows of numbers.
  std::vector<std::vector<std::vector<double>>> matrices(const std::string& field);
  const Json& array(const std::string& field);
  const Json& mapping(const std::string& field);
  /// The names of the fields, in their order.
  std::vector<std::string> names() const;
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
  Damage damage_;
  std::set<std::string> taken_;
};

}  // namespace ev
