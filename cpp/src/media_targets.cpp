#include "media_targets.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <optional>
#include <vector>

#include "error.hpp"
#include "media.hpp"

namespace ev {

namespace {

namespace fs = std::filesystem;

constexpr double kMaxFps = 1000;
constexpr long kSpareNameBytes = 255;

std::string in_small_letters(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  return text;
}

bool is_video(const std::string& suffix) {
  return std::find(std::begin(kVideoSuffixes), std::end(kVideoSuffixes), suffix) != std::end(kVideoSuffixes);
}

std::vector<std::string> known_suffixes() {
  std::vector<std::string> known(std::begin(kVideoSuffixes), std::end(kVideoSuffixes));
  known.insert(known.end(), std::begin(kImageSuffixes), std::end(kImageSuffixes));
  std::sort(known.begin(), known.end());
  return known;
}

fs::path folder_of(const fs::path& target) { return target.has_parent_path() ? target.parent_path() : fs::path("."); }

/// Where a pattern has its number: from the percent sign to behind the d, and how many digits it has at least.
struct NumberPlace {
  std::size_t begin = std::string::npos;
  std::size_t end = 0;
  std::size_t num_digits = 1;
};

/// The next %d or %0Nd, N from 1 to 9, from a place on. A letter behind the d makes it a word.
NumberPlace find_number(const std::string& name, std::size_t from) {
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  for (std::size_t at = name.find('%', from); at != std::string::npos; at = name.find('%', at + 1)) {
    NumberPlace place{at, at + 1, 1};
    if (name.size() > at + 2 && name[at + 1] == '0' && name[at + 2] >= '1' && name[at + 2] <= '9') {
      place.num_digits = static_cast<std::size_t>(name[at + 2] - '0');
      place.end = at + 3;
    }
    const bool is_number = place.end < name.size() && name[place.end] == 'd';
    ++place.end;
    if (is_number && !(place.end < name.size() && is_letter(name[place.end]))) return place;
  }
  return {};
}

void check_name(const std::string& path, const fs::path& target) {
  const std::string one = numbered(target.filename().string(), 999999);
  const std::string name = one.empty() ? target.filename().string() : one;
  const long limit = pathconf(folder_of(target).c_str(), _PC_NAME_MAX);
  const auto longest = static_cast<std::size_t>(limit > 0 ? limit : kSpareNameBytes);
  if (name.size() <= longest) return;
  throw Error(EV_ERROR_MEDIA, "media.place")
      .found(path, ": found a name of ", name.size(), " bytes")
      .expected("at most ", longest)
      .hint("choose a shorter one");
}

void check_type(const std::string& path, const fs::path& target) {
  const std::vector<std::string> known = known_suffixes();
  const auto is_known = [&](const std::string& text) {
    return std::find(known.begin(), known.end(), text) != known.end();
  };
  const std::string name = target.filename().string(), suffix = suffix_of(target);
  if (name.empty() || name == "-" || name == "." || name == ".." ||
      (suffix.empty() && is_known(in_small_letters(name)))) {
    throw Error(EV_ERROR_MEDIA, "media.type")
        .found(path, ": found no file name")
        .expected("a name such as out.mp4")
        .hint("results are not written to standard output");
  }
  if (suffix.empty() || is_known(suffix)) return;
  std::string all;
  for (const std::string& other : known) all += (all.empty() ? "" : " ") + other;
  throw Error(EV_ERROR_MEDIA, "media.type")
      .found(path, ": found ", suffix, ", which is not a type that can be written here")
      .expected("one of ", all, ", or none for a folder");
}

void check_what_is_there(const std::string& path, const fs::path& target) {
  std::error_code error;
  const bool is_folder = fs::is_directory(target, error);
  if (!suffix_of(target).empty()) {
    if (!is_folder) return;
    throw Error(EV_ERROR_MEDIA, "media.place")
        .found(path, " is a folder")
        .expected("the name of a file")
        .hint("choose another");
  }
  if (!fs::exists(target, error) || (is_folder && fs::is_empty(target, error))) return;
  throw Error(EV_ERROR_MEDIA, "media.place")
      .found(path, " is ", is_folder ? "a folder that is not empty" : "a file without a type")
      .expected("a new or an empty folder, or a file with a type")
      .hint("choose another name, such as ", path, ".mp4");
}

void check_place(const std::string& path, const fs::path& target) {
  std::string name = (folder_of(target) / ".ev.XXXXXX").string();
  const int handle = mkstemp(name.data());
  if (handle < 0) {
    throw Error(EV_ERROR_MEDIA, "media.place")
        .found(path, ": nothing can be written in ", folder_of(target).string(), " (", std::strerror(errno), ")")
        .hint("choose another place");
  }
  close(handle);
  unlink(name.c_str());
}

}  // namespace

std::string list_suffixes() {
  std::string known;
  for (const char* suffix : kVideoSuffixes) known += std::string(suffix) + " ";
  for (const char* suffix : kImageSuffixes) known += std::string(suffix) + " ";
  return known.substr(0, known.size() - 1);
}

std::string suffix_of(const fs::path& target) {
  const std::string suffix = in_small_letters(target.extension().string());
  return suffix == "." ? "" : suffix;
}

std::string numbered(const std::string& pattern, std::int64_t number) {
  const NumberPlace place = find_number(pattern, 0);
  if (place.begin == std::string::npos || find_number(pattern, place.end).begin != std::string::npos) return "";
  const std::string digits = std::to_string(number);
  const std::string padding(place.num_digits > digits.size() ? place.num_digits - digits.size() : 0, '0');
  return pattern.substr(0, place.begin) + padding + digits + pattern.substr(place.end);
}

void check_target(const std::string& path, std::optional<double> fps) {
  const fs::path target(path);
  check_name(path, target);
  check_type(path, target);
  check_what_is_there(path, target);
  if (is_video(suffix_of(target)) && fps && !(*fps <= kMaxFps)) {
    throw Error(EV_ERROR_MEDIA, "media.rate")
        .found(path, ": found ", *fps, " frames a second")
        .expected("at most ", kMaxFps, " in ", suffix_of(target))
        .hint("ask for fewer");
  }
  check_place(path, target);
}

}  // namespace ev
