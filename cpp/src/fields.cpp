#include "fields.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"

namespace ev {

namespace {

constexpr std::size_t kMaxShownBytes = 80;
// Deeper than any bundle.json, far from the end of the stack.
constexpr int kMaxDepth = 100;

bool is_plain_path(const std::string& path) {
  for (const char c : path) {
    if (c == '\\' || c == ':' || static_cast<unsigned char>(c) < 0x20) return false;
  }
  std::size_t begin = 0;
  while (begin <= path.size()) {
    const std::size_t end = std::min(path.find('/', begin), path.size());
    const std::string part = path.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") return false;
    begin = end + 1;
  }
  return true;
}

}  // namespace

Json parse_json(std::string_view text, const std::string& where, Damage damage) {
  std::vector<std::set<std::string>> open_objects;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxDepth) {
      throw Error(damage.code).found(where, ": more than ", kMaxDepth, " values inside each other").hint(damage.fix);
    }
    if (event == Json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == Json::parse_event_t::object_end) open_objects.pop_back();
    if (event == Json::parse_event_t::key && !open_objects.back().insert(parsed.get<std::string>()).second) {
      throw Error(damage.code)
          .found(where, " cannot be read as JSON: the field ", parsed.dump(), " stands twice")
          .hint("fetch or ", damage.fix);
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), watch);
  } catch (const Json::exception& error) {
    std::string line = error.what();
    std::replace(line.begin(), line.end(), '\n', ' ');
    throw Error(damage.code).found(where, " cannot be read as UTF-8 JSON: ", line).hint("fetch or ", damage.fix);
  }
}

Fields::Fields(const Json& value, std::string where, std::string name, Damage damage)
    : value_(&value), where_(std::move(where)), name_(std::move(name)), damage_(damage) {
  if (!value.is_object()) refuse("", value, "an object");
}

std::string Fields::full_name(const std::string& field) const {
  return name_.empty() || field.empty() ? name_ + field : name_ + "." + field;
}

void Fields::refuse(const std::string& field, const Json& found, const std::string& expected) const {
  std::string shown = found.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (shown.size() > kMaxShownBytes) shown = shown.substr(0, kMaxShownBytes - 3) + "...";
  const std::string name = full_name(field);
  throw Error(damage_.code, join_text(default_code(damage_.code), ".field"), name)
      .found(where_, ": field \"", name, "\" is ", shown)
      .expected(expected)
      .hint(damage_.fix);
}

const Json& Fields::take(const std::string& field) {
  const auto found = value_->find(field);
  if (found == value_->end()) {
    const std::string name = full_name(field);
    throw Error(damage_.code, join_text(default_code(damage_.code), ".field"), name)
        .found(where_, ": field \"", name, "\" is missing")
        .hint(damage_.fix);
  }
  taken_.insert(field);
  return *found;
}

void Fields::finish() const {
  for (const auto& [field, value] : value_->items()) {
    if (taken_.count(field) == 0) refuse(field, value, "no field of this name");
  }
}

std::string Fields::string(const std::string& field) {
  const Json& value = take(field);
  if (!value.is_string() || value.get_ref<const std::string&>().empty()) {
    refuse(field, value, "a string that is not empty");
  }
  return value.get<std::string>();
}

std::string Fields::text(const std::string& field) {
  const Json& value = take(field);
  if (!value.is_string()) refuse(field, value, "a string");
  return value.get<std::string>();
}

std::string Fields::path(const std::string& field) {
  const std::string value = string(field);
  if (!is_plain_path(value)) {
    refuse(field, value, "a relative path with forward slashes that stays inside the bundle");
  }
  return value;
}

std::int64_t Fields::integer(const std::string& field, std::int64_t minimum, std::int64_t maximum) {
  const Json& value = take(field);
  const bool fits = value.is_number_unsigned() ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(INT64_MAX)
                                               : value.is_number_integer();
  if (!fits || value.get<std::int64_t>() < minimum || value.get<std::int64_t>() > maximum) {
    refuse(field, value,
           maximum == kLargest ? join_text("a whole number of at least ", minimum)
                               : join_text("a whole number from ", minimum, " to ", maximum));
  }
  return value.get<std::int64_t>();
}

bool Fields::boolean(const std::string& field) {
  const Json& value = take(field);
  if (!value.is_boolean()) refuse(field, value, "true or false");
  return value.get<bool>();
}

std::string Fields::choice(const std::string& field, const std::vector<std::string>& choices) {
  const Json& value = take(field);
  if (value.is_string() && std::find(choices.begin(), choices.end(), value.get<std::string>()) != choices.end()) {
    return value.get<std::string>();
  }
  std::string expected;
  for (const std::string& name : choices) expected += (expected.empty() ? "one of " : ", ") + name;
  refuse(field, value, expected);
}

double Fields::number(const std::string& field) {
  const Json& value = take(field);
  if (!value.is_number() || !std::isfinite(value.get<double>())) refuse(field, value, "a number");
  return value.get<double>();
}

double Fields::number(const std::string& field, double minimum) {
  const Json& value = take(field);
  if (!value.is_number() || !std::isfinite(value.get<double>()) || value.get<double>() < minimum) {
    refuse(field, value, join_text("a number of at least ", minimum));
  }
  return value.get<double>();
}

double Fields::positive_number(const std::string& field) {
  const Json& value = take(field);
  if (!value.is_number() || !(value.get<double>() > 0) || !std::isfinite(value.get<double>())) {
    refuse(field, value, "a number above 0");
  }
  return value.get<double>();
}

std::vector<double> Fields::numbers(const std::string& field) { return numbers_of(field, take(field)); }

std::vector<std::vector<std::vector<double>>> Fields::matrices(const std::string& field) {
  std::vector<std::vector<std::vector<double>>> matrices;
  for (const Json& rows : array(field)) {
    const std::string name = join_text(field, "[", matrices.size(), "]");
    if (!rows.is_array()) refuse(name, rows, "a list of rows");
    std::vector<std::vector<double>> matrix;
    for (const Json& row : rows) matrix.push_back(numbers_of(join_text(name, "[", matrix.size(), "]"), row));
    matrices.push_back(std::move(matrix));
  }
  return matrices;
}

std::vector<double> Fields::numbers_of(const std::string& field, const Json& value) const {
  if (!value.is_array()) refuse(field, value, "a list of numbers");
  std::vector<double> numbers;
  for (const Json& number : value) {
    if (!number.is_number() || !std::isfinite(number.get<double>())) refuse(field, value, "a list of numbers");
    numbers.push_back(number.get<double>());
  }
  return numbers;
}

const Json& Fields::array(const std::string& field) {
  const Json& value = take(field);
  if (!value.is_array()) refuse(field, value, "a list");
  return value;
}

const Json& Fields::mapping(const std::string& field) {
  const Json& value = take(field);
  if (!value.is_object()) refuse(field, value, "an object");
  return value;
}

std::vector<std::string> Fields::names() const {
  std::vector<std::string> names;
  for (const auto& [name, value] : value_->items()) names.push_back(name);
  return names;
}

Fields Fields::child(const std::string& field) { return {take(field), where_, full_name(field), damage_}; }

std::vector<Fields> Fields::children(const std::string& field) {
  std::vector<Fields> result;
  for (const Json& value : array(field)) {
    result.emplace_back(value, where_, join_text(full_name(field), "[", result.size(), "]"), damage_);
  }
  return result;
}

std::vector<std::pair<std::string, Fields>> Fields::named_children(const std::string& field) {
  std::vector<std::pair<std::string, Fields>> result;
  for (const auto& [name, value] : mapping(field).items()) {
    result.emplace_back(name, Fields(value, where_, full_name(field) + "." + name, damage_));
  }
  return result;
}

}  // namespace ev
