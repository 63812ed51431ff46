#include "request.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include "error.hpp"
#include "fields.hpp"
#include "tables.hpp"

namespace ev {

namespace {

/// As Python's repr shows it: the shortest digits that give the same number again.
std::string show(double value) { return std::isfinite(value) ? Json(value).dump() : join_text(value); }
std::string show(std::int64_t value) { return join_text(value); }

template <typename Number>
void check_option(const std::string& name, Number number) {
  const auto value = static_cast<double>(number);
  for (const OptionRange& range : kOptionRanges) {
    if (name != range.name) continue;
    if (std::isfinite(value) && value >= range.minimum && value > range.above && value <= range.maximum) return;
    throw Error(EV_ERROR_REQUEST, "request.option", name).value(show(number)).expected(range.expected);
  }
}

/// In quotation marks, as Python's repr shows a string of plain characters; a long one is cut.
std::string show(const std::string& value) {
  constexpr std::size_t kMost = 60;
  const char quote = value.find('\'') != std::string::npos && value.find('"') == std::string::npos ? '"' : '\'';
  const std::string shown = quote + value + quote;
  return shown.size() <= kMost ? shown : shown.substr(0, kMost - 3) + "...";
}

void check_choice(const std::string& name, const std::string& value) {
  for (const OptionChoices& option : option_choices()) {
    if (name != option.name) continue;
    if (std::find(option.choices.begin(), option.choices.end(), value) != option.choices.end()) return;
    throw Error(EV_ERROR_REQUEST, "request.option", name).value(show(value)).expected(option.expected);
  }
}

}  // namespace

void check_options(const Request& request) {
  std::set<std::string> names;
  for (const Source& source : request.sources) {
    check_input_name(source.name);
    if (names.insert(source.name).second) continue;
    throw Error(EV_ERROR_REQUEST, "request.input_name", "inputs")
        .found(source.name, " is given twice")
        .hint("number the inputs video1, video2, image1 ...");
  }
  if (request.num_inference_steps) check_option("num_inference_steps", *request.num_inference_steps);
  if (request.guidance_scale) check_option("guidance_scale", *request.guidance_scale);
  if (request.strength) check_option("strength", *request.strength);
  check_option("seed", request.seed);
  if (request.num_frames) check_option("num_frames", *request.num_frames);
  if (request.length) check_choice("length", *request.length);
  if (request.fps) check_option("fps", *request.fps);
  check_option("start_s", request.start_s);
}

}  // namespace ev
